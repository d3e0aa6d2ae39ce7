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

from memorizing_jax import cache as caches
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
    num_read: Int[Array, " batch"], segment_length: int, config: LlamaConfig
) -> Context:
    """Returns the local context of a segment.

    Args:
      num_read: tokens of its document that each row has read before the segment.
      segment_length: positions of the segment, padding included.
      config: the model's sizes.
    """
    num_sinks, cache_length = config.num_sinks, config.cache_length
    length = num_sinks + cache_length + segment_length
    left = jnp.clip(num_read - cache_length, 0, num_sinks)
    sink = jnp.arange(num_sinks, dtype=jnp.int32)[None, :]
    # The sinks that left the cache come just before its first column.
    place = num_sinks - left[:, None] + sink
    by_place = rotary.rotation(0, length, config.head_dim, config.rope_base)
    keys = Rotation(
        *(
            jnp.concatenate(
                [
                    part[place],
                    jnp.broadcast_to(
                        part[None, num_sinks:],
                        (place.shape[0], length - num_sinks, part.shape[1]),
                    ),
                ],
                axis=1,
            )
            for part in by_place
        )
    )
    mask, present = _visible(num_read, segment_length, config)
    present = jnp.concatenate([sink < left[:, None], present], axis=1)
    sinks_seen = jnp.broadcast_to(
        present[:, None, :num_sinks], (*mask.shape[:2], num_sinks)
    )
    distance = config.memory_distance
    return Context(
        mask=jnp.concatenate([sinks_seen, mask], axis=2),
        present=present,
        queries=Rotation(*(part[num_sinks + cache_length :] for part in by_place)),
        keys=keys,
        to_memory=rotary.rotation(
            distance, distance + 1, config.head_dim, config.rope_base
        ),
    )


def _visible(
    num_read: Int[Array, " batch"], segment_length: int, config: LlamaConfig
) -> tuple[
    Bool[Array, "batch segment_length local_length"],
    Bool[Array, "batch local_length"],
]:
    """Returns which columns of cache and segment are seen, and which are filled."""
    column = np.arange(config.cache_length + segment_length)
    query = config.cache_length + np.arange(segment_length)
    distance = jnp.asarray(query[:, None] - column[None, :])
    position = num_read[:, None] - config.cache_length + jnp.asarray(column)[None, :]
    near = (distance <= config.local_window)[None] | (position < config.num_sinks)[
        :, None, :
    ]
    present = position >= 0
    return near & (distance >= 0)[None] & present[:, None, :], present


def local_pairs(
    sinks: Cache | None,
    cache: Cache | None,
    keys: Float[Array, "batch segment_length num_key_value_heads head_dim"],
    values: Float[Array, "batch segment_length num_key_value_heads head_dim"],
) -> Cache:
    """Returns keys, not rotated, and values of every column.

    No gradient flows into what was kept from earlier segments (LOC-7).
    """
    local = caches.local_context(cache, keys, values)
    return Cache(*caches.local_context(sinks, *local))


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
    pairs: Cache,
    num_read: Int[Array, " batch"],
    num_tokens: Int[Array, " batch"],
    config: LlamaConfig,
) -> tuple[Cache, Int[Array, " batch"]]:
    """Returns the pairs that leave the cache after a segment, and how many (PRE-6).

    Args:
      pairs: those of all columns, as `local_pairs` returned them.
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
    segment_length = pairs.keys.shape[1] - config.num_sinks - config.cache_length
    offset = jnp.arange(segment_length, dtype=jnp.int32)[None, :]
    column = config.num_sinks + (first - oldest)[:, None] + offset
    return Cache(columns(pairs.keys, column), columns(pairs.values, column)), count


def columns(
    x: Float[Array, "batch length heads head_dim"],
    which: Int[Array, "batch some"],
) -> Float[Array, "batch some heads head_dim"]:
    """Returns some columns of each row; for those out of range, any."""
    which = jnp.clip(which, 0, x.shape[1] - 1)
    return jnp.take_along_axis(x, which[:, :, None, None], axis=1)
