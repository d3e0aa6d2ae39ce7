"""Small models, their parameters, and documents to read with them."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np

from memorizing_conformance import reference_model
from memorizing_conformance.implementation import Arrays, StreamSegment
from memorizing_conformance.reference_adapter import Oracle
from memorizing_reference import parameters, search

Config = Mapping[str, Any]

# All sizes differ. The window reaches beyond the cache, the memory holds no whole
# number of segments, and two of three layers have one.
MAIN: Final[Config] = {
    "vocab_size": 41,
    "num_layers": 3,
    "model_dim": 12,
    "num_heads": 2,
    "head_dim": 5,
    "mlp_dim": 17,
    "memory_layers": (0, 2),
    "memory_size": 16,
    "top_k": 4,
    "local_window": 9,
    "cache_length": 6,
    "segment_length": 7,
}
# The cache reaches as far as the window, and all of the memory is retrieved.
EXHAUSTIVE: Final[Config] = {
    **MAIN,
    "local_window": 7,
    "cache_length": 7,
    "top_k": 16,
}
# No cache, and segments longer than the memory.
LONG: Final[Config] = {
    **MAIN,
    "memory_layers": (1,),
    "memory_size": 5,
    "top_k": 3,
    "local_window": 4,
    "cache_length": 0,
    "segment_length": 11,
}
# Small enough for finite differences over every parameter.
TINY: Final[Config] = {
    "vocab_size": 13,
    "num_layers": 2,
    "model_dim": 6,
    "num_heads": 2,
    "head_dim": 3,
    "mlp_dim": 7,
    "memory_layers": (1,),
    "memory_size": 8,
    "top_k": 4,
    "local_window": 5,
    "cache_length": 4,
    "segment_length": 5,
}

BATCH: Final = 2
# Read by two rows: documents that wrap the memory, that fit one segment exactly, that
# are one token long, and resets of one row while the other goes on.
LENGTHS: Final = (37, 5, 14, 1, 23, 7, 12)
# Scores of float32 models are off by about 1e-6; a gap of this size keeps the choice
# of neighbors the same.
MIN_GAP: Final = 2e-5


def draw_parameters(config: Config, seed: int) -> Arrays:
    """Returns float32 parameters that leave nothing at a neutral value."""
    rng = np.random.default_rng(seed)
    result: Arrays = {}
    for name, shape in parameters.shapes(reference_model.config_of(config)).items():
        kind = name.rpartition(".")[2]
        array = rng.standard_normal(shape)
        if kind.endswith("_kernel"):
            fan_in = shape[0] * shape[1] if kind == "output_kernel" else shape[0]
            array /= np.sqrt(fan_in)
            if kind == "query_kernel" and config.get("family") == "llama":
                array *= 2.0  # It learns no scale, and retrieval has to matter.
        elif kind.endswith("_gain"):
            array = 1.0 + 0.3 * array
        elif kind == "attention_scale":
            array = rng.choice([-1.0, 1.0], shape) * rng.uniform(1.5, 4.0, shape)
        result[name] = array.astype(np.float32)
    return result


def changed(parameters: Arrays, kind: str, value: Any) -> Arrays:
    """Returns parameters of which all of one kind have a value.

    Args:
      parameters: by the names of MOD-6.
      kind: last part of the names, or a whole name.
      value: the new value, or a function of the old one.
    """
    result = dict(parameters)
    for name, array in parameters.items():
        if kind in (name, name.rpartition(".")[2]):
            new = value(array) if callable(value) else np.full_like(array, value)
            result[name] = new.astype(np.float32)
    return result


def draw_documents(
    seed: int, lengths: Sequence[int] = LENGTHS, vocab_size: int = 41
) -> list[np.ndarray]:
    """Returns documents in which no token repeats while the vocabulary lasts.

    Equal tokens make equal keys, whose order is a matter of rounding.
    """
    rng = np.random.default_rng(seed)
    return [
        np.resize(rng.permutation(vocab_size), length).astype(np.int64)
        for length in lengths
    ]


def cut(
    config: Config, documents: Sequence[np.ndarray], batch: int = BATCH
) -> list[StreamSegment]:
    """Returns the segments of documents."""
    return list(Oracle().stream(documents, batch, config["segment_length"]))


def read(
    implementation: Any,
    config: Config,
    parameters: Arrays,
    segments: Sequence[StreamSegment],
) -> list[np.ndarray]:
    """Returns the logits of each segment; zeros where it is padded."""
    state = implementation.init_model(config, parameters, len(segments[0][0]))
    found = []
    for tokens, start_of_document, num_tokens, _, _ in segments:
        logits, state = implementation.forward(
            state, tokens, start_of_document, num_tokens
        )
        found.append(without_padding(logits, num_tokens))
    return found


def without_padding(logits: Any, num_tokens: np.ndarray) -> np.ndarray:
    """Returns logits with zeros where they mean nothing."""
    logits = np.asarray(logits)
    real = np.arange(logits.shape[1])[None, :] < num_tokens[:, None]
    return np.where(real[..., None], logits, 0)


@contextlib.contextmanager
def watching_the_gap() -> Iterator[list[float]]:
    """Yields a list that collects how close searches of the oracle came to a tie.

    That is the least difference between a neighbor that was retrieved and the best
    one that was not, over the searches of the reference inside the block.
    """
    gaps = [np.inf]
    original = search.top_k_slots

    def watched(queries: Any, memory: Any, top_k: int) -> np.ndarray:
        score = -np.sort(-search.scores(queries, memory), axis=-1)
        if score.shape[-1] > top_k:
            there = np.isfinite(score[..., top_k])
            last, next_best = score[there, top_k - 1], score[there, top_k]
            gaps.append(float((last - next_best).min(initial=np.inf)))
        return original(queries, memory, top_k)

    search.top_k_slots = watched
    try:
        yield gaps
    finally:
        search.top_k_slots = original


def expected(
    config: Config, parameters: Arrays, segments: Sequence[StreamSegment]
) -> tuple[list[np.ndarray], float]:
    """Returns the oracle's logits, and how close its searches came to a tie."""
    with watching_the_gap() as gaps:
        logits = read(Oracle(), config, parameters, segments)
    return logits, min(gaps)
