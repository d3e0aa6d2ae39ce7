"""ScaNN on the host: a searcher for every row and head, which pairs enter and leave.

ScaNN (arXiv 1908.10396) is Google's library; 1.4.2 is the first release whose Python
searchers can be changed. It needs a few thousand keys to learn partitions and
quantization from, so fewer are searched by brute force. What it learned it learns
again when the keys have doubled or have all been replaced.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]

# Fewer keys than this are scored in a few milliseconds, all of them.
_FEWEST = 4096
# Keys to learn each partition from; all of them make the searcher little better, and
# slower to build: 3 s and not 1 s at 65,536 keys.
_SAMPLE = 100
# Candidates by quantized scores for each neighbor wanted.
_CANDIDATES = 32


class HeadSearcher:
    """The keys of one row and head, searchable.

    Args:
      memory_size: slots.
      head_dim: size of a key.
    """

    def __init__(self, memory_size: int, head_dim: int):
        self._keys = np.zeros((memory_size, head_dim), np.float32)
        self.clear()

    def clear(self) -> None:
        """Forgets all keys."""
        self._count = self._trained_on = self._written_since = 0
        self._searcher: Any = None

    def write(self, slots: npt.NDArray[np.int64], keys: Vectors) -> None:
        """Puts keys into slots, new ones in order behind those in use."""
        self._keys[slots] = keys
        self._count = max(self._count, int(slots.max()) + 1)
        self._written_since += len(slots)
        if self._count < _FEWEST:
            return
        stale = self._written_since >= len(self._keys)
        if self._searcher is None or stale or self._count >= 2 * self._trained_on:
            self._train()
        else:
            self._searcher.upsert(slots.tolist(), keys, batch_size=len(slots))

    def find(
        self, queries: Vectors, wanted: int, recall_target: float
    ) -> npt.NDArray[np.int32]:
        """Returns `[queries, wanted]` slots in any order, -1 for none."""
        if self._searcher is None:
            found = self._by_brute_force(queries, wanted)
        else:
            found = self._by_scann(queries, wanted, recall_target)
        missing = wanted - found.shape[1]
        return np.pad(found, ((0, 0), (0, missing)), constant_values=-1)

    def _by_brute_force(self, queries: Vectors, wanted: int) -> npt.NDArray[np.int32]:
        scores = queries @ self._keys[: self._count].T
        if self._count > wanted:
            best = np.argpartition(-scores, wanted, axis=1)[:, :wanted]
            return best.astype(np.int32)
        every = np.arange(self._count, dtype=np.int32)
        return np.broadcast_to(every, scores.shape)

    def _by_scann(
        self, queries: Vectors, wanted: int, recall_target: float
    ) -> npt.NDArray[np.int32]:
        leaves = num_leaves(self._trained_on)
        # Around the wrapper, which would look up every neighbor in a Python list:
        # here a pair's name is its slot, and its place in the searcher too.
        slots, scores = self._searcher.searcher.search_batched(
            queries,
            min(wanted, self._count),
            min(_CANDIDATES * wanted, self._count),
            leaves_to_search(recall_target, leaves),
            True,
            64,
        )
        # Where it has too few, it says slot 0, with a score that is no number.
        return np.where(np.isnan(scores), -1, slots.astype(np.int32))

    def _train(self) -> None:
        from scann.scann_ops.py import scann_ops_pybind

        keys = self._keys[: self._count]
        leaves = num_leaves(self._count)
        sample = min(self._count, _SAMPLE * leaves)
        builder = scann_ops_pybind.builder(keys, 1, "dot_product")
        builder.tree(leaves, 1, training_sample_size=sample)
        builder.score_ah(
            2, anisotropic_quantization_threshold=0.2, training_sample_size=sample
        )
        builder.reorder(_CANDIDATES)
        with _silence():
            self._searcher = builder.build(docids=list(range(self._count)))
        self._trained_on, self._written_since = self._count, 0


def num_leaves(count: int) -> int:
    """Returns the partitions to learn from `count` keys."""
    return round(count**0.5)


def leaves_to_search(recall_target: float, leaves: int) -> int:
    """Returns how many partitions a query reads: a fit to keys of a trained model."""
    share = 0.082 * max(1.0 - recall_target, 1e-3) ** -0.65 / leaves**0.15
    return max(1, round(min(1.0, share) * leaves))


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keeps ScaNN's C++ from writing three lines of log for each training.

    Nothing else turns them off. Errors come as exceptions.
    """
    saved = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
