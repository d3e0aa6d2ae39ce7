"""The local cache: keys and values of the positions just before a segment.

It is what Transformer-XL keeps between segments. Unlike the memory it is short,
attended to in full, with position bias, and every layer has one (LOC-2).
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int


@dataclasses.dataclass(frozen=True)
class Cache:
    """The last `cache_length` positions of each row's document, newest last.

    Attributes:
      keys: normalized keys; only the last `num_cached[b]` positions are filled.
      values: the values that belong to them.
      num_cached: filled positions of each row, 0 at a document's start (LOC-3).
    """

    keys: Float[np.ndarray, "batch cache_length num_heads head_dim"]
    values: Float[np.ndarray, "batch cache_length num_heads head_dim"]
    num_cached: Int[np.ndarray, " batch"]


def empty(
    batch: int,
    cache_length: int,
    num_heads: int,
    head_dim: int,
    computed_in: type[np.floating] = np.float32,
) -> Cache:
    """Returns a cache that holds nothing."""
    zeros = np.zeros((batch, cache_length, num_heads, head_dim), computed_in)
    return Cache(zeros, zeros, np.zeros(batch, np.int64))


def reset(cache: Cache, start_of_document: Bool[np.ndarray, " batch"]) -> Cache:
    """Empties the rows that open a new document (LOC-3)."""
    num_cached = np.where(start_of_document, 0, cache.num_cached)
    return dataclasses.replace(cache, num_cached=num_cached)


def append(
    cache: Cache,
    keys: Float[np.ndarray, "batch segment_length num_heads head_dim"],
    values: Float[np.ndarray, "batch segment_length num_heads head_dim"],
    num_tokens: Int[np.ndarray, " batch"],
) -> Cache:
    """Moves past a segment: its real positions become the newest of the cache.

    A row with `num_tokens` 0 keeps its cache as it was; padding never enters
    (SEG-4).
    """
    cache_length = cache.keys.shape[1]
    row = np.arange(len(num_tokens))[:, None]
    # Of [cache, segment] keep the `cache_length` columns before the padding.
    column = num_tokens[:, None] + np.arange(cache_length)[None, :]
    return Cache(
        np.concatenate([cache.keys, keys], axis=1)[row, column],
        np.concatenate([cache.values, values], axis=1)[row, column],
        np.minimum(cache_length, cache.num_cached + num_tokens),
    )
