"""What a pre-trained model sees around it: sinks, cache and segment.

A model falls apart without the first positions of its document, the sinks, on which
it learned to rest attention that has nowhere else to go. And it cannot count further
than it was trained to. So the sinks stay when everything else around them goes, and
places are counted anew for every segment, as if what went had never been:

    document  0 1 2 3 4 5 6 7 8 9 | 10 11 12     ten read before this segment
    sinks     0 1                                two
    cache                 6 7 8 9                four
    place     0 1         2 3 4 5 |  6  7  8     2 to 5 of the document were dropped

All keys here are as projected: they are rotated when a segment knows their places.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int

from memorizing_reference.cache import Cache


@dataclasses.dataclass(frozen=True)
class Sinks:
    """The first positions of each row's document (PRE-4).

    Attributes:
      keys: only the first `num_read[b]` are filled.
      values: the values that belong to them.
      num_read: real tokens of the document that the row has read.
    """

    keys: Float[np.ndarray, "batch num_sinks num_key_value_heads head_dim"]
    values: Float[np.ndarray, "batch num_sinks num_key_value_heads head_dim"]
    num_read: Int[np.ndarray, " batch"]


@dataclasses.dataclass(frozen=True)
class LocalContext:
    """Sinks, cache and segment side by side, with room for each in every row.

    Attributes:
      keys: as projected, zero where nothing is.
      values: zero where nothing is.
      position: number in the document.
      place: number in the local context, by which keys are rotated (PRE-3).
      present: false where the cache is not filled, and where a sink is not needed
        because cache or segment still hold it.
    """

    keys: Float[np.ndarray, "batch local_length num_key_value_heads head_dim"]
    values: Float[np.ndarray, "batch local_length num_key_value_heads head_dim"]
    position: Int[np.ndarray, "batch local_length"]
    place: Int[np.ndarray, "batch local_length"]
    present: Bool[np.ndarray, "batch local_length"]


def empty(
    batch: int,
    num_sinks: int,
    num_key_value_heads: int,
    head_dim: int,
    computed_in: type[np.floating] = np.float32,
) -> Sinks:
    """Returns sinks before the first token."""
    zeros = np.zeros((batch, num_sinks, num_key_value_heads, head_dim), computed_in)
    return Sinks(zeros, zeros, np.zeros(batch, np.int64))


def reset(sinks: Sinks, start_of_document: Bool[np.ndarray, " batch"]) -> Sinks:
    """Forgets the sinks of rows that open a new document."""
    num_read = np.where(start_of_document, 0, sinks.num_read)
    return dataclasses.replace(sinks, num_read=num_read)


def append(
    sinks: Sinks,
    keys: Float[np.ndarray, "batch segment_length num_key_value_heads head_dim"],
    values: Float[np.ndarray, "batch segment_length num_key_value_heads head_dim"],
    num_tokens: Int[np.ndarray, " batch"],
) -> Sinks:
    """Moves past a segment: positions of it that are sinks are kept (PRE-4)."""
    new_keys, new_values = sinks.keys.copy(), sinks.values.copy()
    num_read = sinks.num_read + num_tokens
    for row, first in enumerate(sinks.num_read):
        last = min(num_read[row], sinks.keys.shape[1])
        if first < last:
            new_keys[row, first:last] = keys[row, : last - first]
            new_values[row, first:last] = values[row, : last - first]
    return Sinks(new_keys, new_values, num_read)


def num_dropped(
    num_read: Int[np.ndarray, " batch"], cache_length: int, num_sinks: int
) -> Int[np.ndarray, " batch"]:
    """Returns how many positions are neither sinks nor in the cache (PRE-3)."""
    return np.maximum(0, num_read - cache_length - num_sinks)


def join(
    sinks: Sinks,
    cache: Cache,
    keys: Float[np.ndarray, "batch segment_length num_key_value_heads head_dim"],
    values: Float[np.ndarray, "batch segment_length num_key_value_heads head_dim"],
) -> LocalContext:
    """Returns the local context of a segment, each position of it once (PRE-3)."""
    batch, segment_length = keys.shape[:2]
    num_sinks, cache_length = sinks.keys.shape[1], cache.keys.shape[1]
    sink = np.broadcast_to(np.arange(num_sinks), (batch, num_sinks))
    oldest = sinks.num_read[:, None] - cache_length  # Of the cache, once it is full.
    recent = oldest + np.arange(cache_length + segment_length)
    position = np.concatenate([sink, recent], axis=1)
    present = np.concatenate([sink < oldest, recent >= 0], axis=1)
    dropped = num_dropped(sinks.num_read, cache_length, num_sinks)
    # What lies where nothing is, NaN included, must not matter (LOC-3).
    there = present[:, :, None, None]
    return LocalContext(
        keys=np.where(there, np.concatenate([sinks.keys, cache.keys, keys], axis=1), 0),
        values=np.where(
            there, np.concatenate([sinks.values, cache.values, values], axis=1), 0
        ),
        position=position,
        place=np.where(position < num_sinks, position, position - dropped[:, None]),
        present=present,
    )


def mask(
    context: LocalContext, segment_length: int, local_window: int, num_sinks: int
) -> Bool[np.ndarray, "batch segment_length local_length"]:
    """Returns which local positions each query sees (PRE-4, PRE-9).

    Two sinks, of which the cache of 2 still holds one, a segment of 3, a window
    of 2; columns are sinks, cache, segment:

        1 . 1 1 1 . .
        1 . 1 1 1 1 .
        1 . 1 . 1 1 1
    """
    query = context.position[:, -segment_length:, None]
    key = context.position[:, None, :]
    near = (query - key <= local_window) | (key < num_sinks)
    return context.present[:, None, :] & (key <= query) & near


def leaving(
    sinks: Sinks,
    cache: Cache,
    keys: Float[np.ndarray, "batch segment_length num_key_value_heads head_dim"],
    values: Float[np.ndarray, "batch segment_length num_key_value_heads head_dim"],
    num_tokens: Int[np.ndarray, " batch"],
) -> tuple[
    Float[np.ndarray, "batch segment_length num_key_value_heads head_dim"],
    Float[np.ndarray, "batch segment_length num_key_value_heads head_dim"],
    Int[np.ndarray, " batch"],
]:
    """Returns the pairs that a segment pushes out of the local context (PRE-6).

    Returns:
      Keys, values, and how many of each row count: the first ones, oldest first.
    """
    num_sinks, cache_length = sinks.keys.shape[1], cache.keys.shape[1]
    local_keys = np.concatenate([cache.keys, keys], axis=1)
    local_values = np.concatenate([cache.values, values], axis=1)
    # `num_tokens` columns go. Before `first` they hold nothing, or a sink.
    first = np.clip(cache_length + num_sinks - sinks.num_read, 0, num_tokens)
    row = np.arange(len(num_tokens))[:, None]
    column = first[:, None] + np.arange(keys.shape[1])[None, :]
    column = np.minimum(column, local_keys.shape[1] - 1)
    return local_keys[row, column], local_values[row, column], num_tokens - first
