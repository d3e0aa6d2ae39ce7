"""Other people's searches, for comparison: NumPy, faiss, ScaNN, each as it comes.

A peer gets all keys at once and answers queries; it need not insert, evict or reset.
"""

import importlib.util
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
Slots = npt.NDArray[np.int64]
# Takes queries `[num_queries, num_heads, head_dim]`.
Find = Callable[[Vectors], Slots]


def available(top_k: int) -> dict[str, Callable[[Vectors], Find]]:
    """Returns the peers that are installed: from keys to a search, by name."""
    peers: dict[str, Callable[[Vectors], Find]] = {
        "NumPy": lambda keys: _by_head(keys, lambda of_head: _numpy(of_head, top_k))
    }
    if importlib.util.find_spec("faiss"):
        peers |= {
            "faiss Flat": lambda keys: _by_head(
                keys, lambda of_head: _faiss_flat(of_head, top_k)
            ),
            "faiss HNSW": lambda keys: _by_head(
                keys, lambda of_head: _faiss_hnsw(of_head, top_k)
            ),
        }
    if importlib.util.find_spec("scann"):
        peers["ScaNN"] = lambda keys: _by_head(
            keys, lambda of_head: _scann(of_head, top_k)
        )
    return peers


def _by_head(keys: Vectors, build: Callable[[Vectors], Find]) -> Find:
    """Builds one index per head, as a memory has; they are asked one after another."""
    num_heads = keys.shape[1]
    finds = [build(np.ascontiguousarray(keys[:, head])) for head in range(num_heads)]

    def find(queries: Vectors) -> Slots:
        of_heads = (np.ascontiguousarray(queries[:, head]) for head in range(num_heads))
        found = [find(q) for find, q in zip(finds, of_heads, strict=True)]
        return np.stack(found, axis=1)

    return find


def _numpy(keys: Vectors, top_k: int) -> Find:
    def find(queries: Vectors) -> Slots:
        score = queries @ keys.T
        best = np.argpartition(-score, top_k - 1, axis=-1)[:, :top_k]
        order = np.argsort(-np.take_along_axis(score, best, axis=-1), axis=-1)
        return np.take_along_axis(best, order, axis=-1)

    return find


def _faiss_flat(keys: Vectors, top_k: int) -> Find:
    import faiss

    index = faiss.IndexFlatIP(keys.shape[1])
    index.add(keys)
    return lambda queries: index.search(queries, top_k)[1]


def _faiss_hnsw(keys: Vectors, top_k: int) -> Find:
    import faiss

    index = faiss.IndexHNSWFlat(keys.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efSearch = 4 * top_k
    index.add(keys)
    return lambda queries: index.search(queries, top_k)[1]


def _scann(keys: Vectors, top_k: int) -> Find:
    import scann

    # The sizes that ScaNN's own guide gives for this many points.
    leaves = max(1, int(np.sqrt(len(keys))))
    builder = scann.scann_ops_pybind.builder(keys, top_k, "dot_product")
    index = (
        builder.tree(leaves, max(1, leaves // 10), training_sample_size=len(keys))
        .score_ah(2, anisotropic_quantization_threshold=0.2)
        .reorder(4 * top_k)
        .build()
    )
    return lambda queries: index.search_batched(queries)[0].astype(np.int64)
