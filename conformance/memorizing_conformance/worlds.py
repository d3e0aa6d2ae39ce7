"""Small situations that several tests of the suite start from."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from memorizing_conformance.strategies import Stream


def counting(
    implementation: Any,
    *,
    memory_size: int,
    lengths: Sequence[int],
    segment_length: int = 3,
) -> Any:
    """Returns a memory of one row and head whose pair `t` has key and value `t + 1`.

    Args:
      implementation: what is under test.
      memory_size: slots; all of them are searched for.
      lengths: num_tokens of each segment inserted. Padding goes on counting, so it
        would be found first.
      segment_length: of every segment.
    """
    state = implementation.init(
        batch=1, memory_size=memory_size, num_heads=1, head_dim=1, top_k=memory_size
    )
    return count_on(
        implementation, state, lengths=lengths, segment_length=segment_length
    )


def count_on(
    implementation: Any,
    state: Any,
    *,
    lengths: Sequence[int],
    segment_length: int = 3,
    first_key: int = 1,
) -> Any:
    """Returns the memory after more segments with keys from `first_key` up."""
    for length in lengths:
        numbers = np.arange(first_key, first_key + segment_length, dtype=np.float32)
        keys = numbers.reshape(1, segment_length, 1, 1)
        state = implementation.insert(state, keys, keys, np.array([length]))
        first_key += length
    return state


def newest_first(implementation: Any, state: Any) -> list[int]:
    """Returns the slots that the query 1 finds: those of the largest keys first."""
    queries = np.ones((1, 3, 1, 1), np.float32)
    return np.asarray(implementation.search(state, queries))[0, 0, 0].tolist()


def stored_values(implementation: Any, values: np.ndarray, dtype: str) -> np.ndarray:
    """Returns three values after a stay in memory.

    Each lies at a right angle to the others' keys, so it is the best match of one
    query; with one neighbor it is read with weight 1.
    """
    state = implementation.init(
        batch=1, memory_size=5, num_heads=1, head_dim=3, top_k=1, memory_dtype=dtype
    )
    keys = np.eye(3, dtype=np.float32)[None, :, None]
    repeated = np.repeat(values.astype(np.float32), 3).reshape(1, 3, 1, 3)
    state = implementation.insert(state, keys, repeated, np.array([3]))
    output = implementation.attend_memory(state, keys, np.ones(1, np.float32))
    return np.asarray(output)[0, :, 0, 0]


def search_stream(
    implementation: Any, stream: Stream, sizes: Mapping[str, Any] | None = None
) -> list[np.ndarray]:
    """Feeds a stream and returns the slots that each segment's queries found."""
    state, found = implementation.init(**(sizes or stream.sizes.memory)), []
    for segment in stream.segments():
        state = implementation.reset(state, segment.start_of_document)
        found.append(np.array(implementation.search(state, segment.queries)))
        state = implementation.insert(
            state, segment.keys, segment.values, segment.num_tokens
        )
    return found


def attend_stream(
    implementation: Any,
    stream: Stream,
    sizes: Mapping[str, Any] | None = None,
    *,
    padding: float | None = None,
) -> list[np.ndarray]:
    """Feeds a stream and returns what each segment's queries read from memory.

    Args:
      implementation: what is under test.
      stream: its segments.
      sizes: of the memory, if not those of the stream.
      padding: what stands in padded keys and values, if not what was drawn.
    """
    sizes = sizes or stream.sizes.memory
    state, found = implementation.init(**sizes), []
    scale = np.ones(sizes["num_heads"], np.float32)
    for segment in stream.segments():
        if padding is not None:
            segment = with_padding(segment, padding)
        state = implementation.reset(state, segment.start_of_document)
        output = implementation.attend_memory(state, segment.queries, scale)
        found.append(np.array(output))
        state = implementation.insert(
            state, segment.keys, segment.values, segment.num_tokens
        )
    return found


def with_padding(segment: Any, padding: float) -> Any:
    """Returns a segment whose padded keys and values are all `padding`."""
    position = np.arange(segment.keys.shape[1])
    real = position[None, :] < segment.num_tokens[:, None]
    real = real[:, :, None, None]
    return dataclasses.replace(
        segment,
        keys=np.where(real, segment.keys, np.float32(padding)),
        values=np.where(real, segment.values, np.float32(padding)),
    )
