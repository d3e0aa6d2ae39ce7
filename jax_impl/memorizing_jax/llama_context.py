"""The local context of a pre-trained model: sinks, cache and segment (PRE-3, PRE-4).

Its columns are fixed: `num_sinks`, then `cache_length`, then the segment. A sink that
is still in the cache, or in the segment, stands there and nowhere else. Rotation
depends on distances alone, so the columns of cache and segment count as they lie, and
only sinks need a place of their own while they leave the cache one by one.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from memorizing_jax import rotary
from memorizing_jax.cache import Cache
from memorizing_jax.llama_config import LlamaConfig
from memorizing_jax.rotary import Rotation


class Context(NamedTuple):
    """What all layers have in common for one segment.

    Attributes:
      mask: which columns each query sees (PRE-4, PRE-9).
      present: which columns hold a position of the row's document.
      queries: rotation of the segment's positions.
      keys: rotation of the columns, each row's own.
      to_memory: rotation of a query that meets the memory (PRE-2).
    """

    mask: Bool[Array, "batch segment_length context_length"]
    present: Bool[Array, "batch context_length"]
    queries: Rotation
    keys: Rotation
    to_memory: Rotation


def context(
    num_read: Int[Array, " batch"],
    num_cached: Int[Array, " batch"],
    cache_length: int,
    segment_length: int,
    config: LlamaConfig,
) -> Context:
    """Returns the local context of a segment, or of one more token of it.

    Args:
      num_read: tokens of its document that each row has read before.
      num_cached: how many of them, the newest, count in the cache.
      cache_length: columns of the cache.
      segment_length: positions to read, padding included.
      config: the model's sizes.
    """
    num_sinks = config.num_sinks
    length = num_sinks + cache_length + segment_length
    # The document's position that stands first in the cache, or would.
    oldest = num_read - num_cached
    sink = jnp.arange(num_sinks, dtype=jnp.int32)[None, :]
    dropped = jnp.maximum(0, oldest - num_sinks)
    # As far before the segment's first column as sinks lie before its position.
    place = num_sinks + cache_length - (num_read - dropped)[:, None] + sink
    by_place = rotary.rotation(0, length, config.head_dim, config.rope_base)
    mask, present = _visible(num_read, oldest, cache_length, segment_length, config)
    left = sink < oldest[:, None]
    seen = jnp.broadcast_to(left[:, None], (*mask.shape[:2], num_sinks))
    distance = config.memory_distance
    return Context(
        mask=jnp.concatenate([seen, mask], axis=2),
        present=jnp.concatenate([left, present], axis=1),
        queries=Rotation(*(part[num_sinks + cache_length :] for part in by_place)),
        keys=Rotation(*(_of_columns(part, place, num_sinks) for part in by_place)),
        to_memory=rotary.rotation(
            distance, distance + 1, config.head_dim, config.rope_base
        ),
    )


def _of_columns(
    by_place: Float[Array, "context_length half_dim"],
    place: Int[Array, "batch num_sinks"],
    num_sinks: int,
) -> Float[Array, "batch context_length half_dim"]:
    """Returns a part of each column's rotation: sinks by place, others as they lie."""
    others = by_place[None, num_sinks:]
    others = jnp.broadcast_to(others, (place.shape[0], *others.shape[1:]))
    sinks = by_place[jnp.clip(place, 0, by_place.shape[0] - 1)]
    return jnp.concatenate([sinks, others], axis=1)


def _visible(
    num_read: Int[Array, " batch"],
    oldest: Int[Array, " batch"],
    cache_length: int,
    segment_length: int,
    config: LlamaConfig,
) -> tuple[
    Bool[Array, "batch segment_length local_length"],
    Bool[Array, "batch local_length"],
]:
    """Returns which columns of cache and segment are seen, and which are filled."""
    column = np.arange(cache_length + segment_length)
    query = cache_length + np.arange(segment_length)
    distance = jnp.asarray(query[:, None] - column[None, :])
    position = num_read[:, None] - cache_length + jnp.asarray(column)[None, :]
    near = (distance <= config.local_window)[None]
    near |= (position < config.num_sinks)[:, None, :]
    present = position >= oldest[:, None]
    return near & (distance >= 0)[None] & present[:, None, :], present


def keep_sinks(
    sinks: Cache,
    keys: Float[Array, "batch segment_length num_key_value_heads head_dim"],
    values: Float[Array, "batch segment_length num_key_value_heads head_dim"],
    num_read: Int[Array, " batch"],
    num_tokens: Int[Array, " batch"],
) -> Cache:
    """Stores those of the document's first positions that a segment holds (PRE-4)."""
    sink = jnp.arange(sinks.keys.shape[1], dtype=jnp.int32)[None, :]
    here = sink - num_read[:, None]
    inside = (here >= 0) & (here < num_tokens[:, None])

    def merge(kept: jax.Array, new: jax.Array) -> jax.Array:
        found = columns(jax.lax.stop_gradient(new), here)
        return jnp.where(inside[:, :, None, None], found, kept)

    return Cache(merge(sinks.keys, keys), merge(sinks.values, values))


def leave_cache(
    local: Cache,
    num_read: Int[Array, " batch"],
    num_tokens: Int[Array, " batch"],
    config: LlamaConfig,
) -> tuple[Cache, Int[Array, " batch"]]:
    """Returns the pairs that leave the cache after a segment, and how many (PRE-6).

    Args:
      local: pairs of the cache and the segment.
      num_read: tokens of the document before the segment.
      num_tokens: real tokens of the segment.
      config: the model's sizes.

    Returns:
      As many as a segment is long, of which the first so many count. Sinks are not
      among them.
    """
    oldest = num_read - config.cache_length
    first = jnp.maximum(config.num_sinks, oldest)
    count = jnp.maximum(0, oldest + num_tokens - first)
    segment_length = local.keys.shape[1] - config.cache_length
    offset = jnp.arange(segment_length, dtype=jnp.int32)[None, :]
    column = (first - oldest)[:, None] + offset
    return Cache(columns(local.keys, column), columns(local.values, column)), count


def columns(
    x: Float[Array, "batch length heads head_dim"],
    which: Int[Array, "batch some"],
) -> Float[Array, "batch some heads head_dim"]:
    """Returns some columns of each row; for those out of range, any."""
    which = jnp.clip(which, 0, x.shape[1] - 1)
    return jnp.take_along_axis(x, which[:, :, None, None], axis=1)
