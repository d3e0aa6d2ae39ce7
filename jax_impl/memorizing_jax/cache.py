"""The local cache: keys and values of the positions just before a segment.

Port of `memorizing_reference.cache`. It differs in one way: how many positions
are filled is the same in every layer, so the model counts them once.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """The last `cache_length` positions of each row's document, newest last.

    Attributes:
      keys: [batch, cache_length, num_heads, head_dim], normalized.
      values: same shape.
    """

    keys: jax.Array
    values: jax.Array


def empty(
    batch: int,
    cache_length: int,
    num_heads: int,
    head_dim: int,
    dtype: str,
    num_layers: int = 1,
) -> Cache:
    """Returns a cache of zeros; the model's `num_cached` says that none count.

    That of several layers has one more axis, in front.
    """
    shape: tuple[int, ...] = (batch, cache_length, num_heads, head_dim)
    if num_layers > 1:
        shape = (num_layers, *shape)
    return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def append(
    cache: Cache,
    keys: Float[Array, "batch segment_length num_heads head_dim"],
    values: Float[Array, "batch segment_length num_heads head_dim"],
    num_tokens: Int[Array, " batch"],
) -> Cache:
    """Moves past a segment: its real positions become the newest of the cache.

    No gradient flows into what is kept (LOC-7), and padding never enters (SEG-4).
    """
    cache_length = cache.keys.shape[1]

    def newest(cached: jax.Array, new: jax.Array, count: jax.Array) -> jax.Array:
        # Of [cache, segment] keep the `cache_length` columns before the padding.
        both = jnp.concatenate([cached, jax.lax.stop_gradient(new)])
        return jax.lax.dynamic_slice_in_dim(both, count, cache_length)

    return Cache(
        jax.vmap(newest)(cache.keys, keys, num_tokens),
        jax.vmap(newest)(cache.values, values, num_tokens),
    )


def local_context(
    cache: Cache | None,
    keys: Float[Array, "batch segment_length num_heads head_dim"],
    values: Float[Array, "batch segment_length num_heads head_dim"],
) -> tuple[jax.Array, jax.Array]:
    """Returns keys and values of the cache followed by those of the segment (LOC-2).

    No gradient flows into what was cached: it was computed a step ago (LOC-7).
    """
    if cache is None:
        return keys, values
    cache = jax.lax.stop_gradient(cache)
    return (
        jnp.concatenate([cache.keys, keys], axis=1),
        jnp.concatenate([cache.values, values], axis=1),
    )
