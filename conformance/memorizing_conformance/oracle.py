"""What is right, computed by the reference in float64 beside the implementation."""

from collections.abc import Iterator

import numpy as np

from memorizing_conformance.reference_adapter import Oracle
from memorizing_conformance.reference_memory import MemoryState
from memorizing_conformance.strategies import Stream
from memorizing_reference import attention, bucketed_search, search


def memories(stream: Stream) -> Iterator[tuple[np.ndarray, MemoryState]]:
    """Yields each segment's queries, with the memory that they meet."""
    oracle = Oracle()
    state = oracle.init(**stream.sizes.memory)
    for segment in stream.segments():
        state = oracle.reset(state, segment.start_of_document)
        yield segment.queries.astype(np.float64), state
        state = oracle.insert(state, segment.keys, segment.values, segment.num_tokens)


def scores(stream: Stream) -> Iterator[np.ndarray]:
    """Yields the true scores of all slots, minus infinity where one is not valid."""
    for queries, state in memories(stream):
        yield search.scores(queries, state.memory)


def bucketed_search_slots(
    stream: Stream, num_buckets: int, winners_per_bucket: int
) -> Iterator[np.ndarray]:
    """Yields the slots that BKT-1 defines."""
    for queries, state in memories(stream):
        yield bucketed_search.top_k_slots_numpy(
            queries,
            state.memory,
            state.top_k,
            num_buckets=num_buckets,
            winners_per_bucket=winners_per_bucket,
        )


def attend(
    state: MemoryState, queries: np.ndarray, slots: np.ndarray, scale: np.ndarray
) -> np.ndarray:
    """Returns what the queries read from the given slots (GATE-1)."""
    return attention.memory_attention(
        queries.astype(np.float64),
        state.memory,
        slots.astype(np.int64),
        scale.astype(np.float64),
    )
