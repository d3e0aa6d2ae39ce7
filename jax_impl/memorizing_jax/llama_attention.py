"""Attention with grouped heads over the local context and retrieved pairs (PRE-1, 5).

The query heads of a group share a key-value head. They are laid out as further
positions of that head, `[batch, segment_length * group_size, num_key_value_heads,
head_dim]`, so that searches and products see as many heads as there are keys.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from memorizing_jax import attention
from memorizing_jax.memory import Memory
from memorizing_jax.search import Found


def fold(
    queries: Float[Array, "batch segment_length num_heads head_dim"],
    num_key_value_heads: int,
) -> Float[Array, "batch folded num_key_value_heads head_dim"]:
    """Lays the query heads of a group out as further positions."""
    batch, length, num_heads, head_dim = queries.shape
    group = num_heads // num_key_value_heads
    split = queries.reshape(batch, length, num_key_value_heads, group, head_dim)
    return split.swapaxes(2, 3).reshape(batch, -1, num_key_value_heads, head_dim)


def unfold(
    folded: Float[Array, "batch folded num_key_value_heads last"], num_heads: int
) -> Float[Array, "batch segment_length num_heads last"]:
    """Undoes `fold`."""
    batch, _, few, last = folded.shape
    split = folded.reshape(batch, -1, num_heads // few, few, last)
    return split.swapaxes(2, 3).reshape(batch, -1, num_heads, last)


class Part(NamedTuple):
    """Pairs of one kind that queries attend to.

    Attributes:
      logits: float32.
      mask: which of them exist.
      read: returns the values summed by weights.
    """

    logits: Float[Array, "batch num_key_value_heads folded pairs"]
    mask: Bool[Array, "batch heads folded pairs"]
    read: Callable[[jax.Array], jax.Array]


def local_part(
    queries: Float[Array, "batch folded num_key_value_heads head_dim"],
    keys: Float[Array, "batch context_length num_key_value_heads head_dim"],
    values: Float[Array, "batch context_length num_key_value_heads head_dim"],
    mask: Bool[Array, "batch segment_length context_length"],
) -> Part:
    """Returns the pairs of the local context; queries and keys are rotated."""
    # b: batch, q: folded query, k: column, h: key-value head, d: head_dim
    score = jnp.einsum(
        "bqhd,bkhd->bhqk", queries, keys, preferred_element_type=jnp.float32
    )
    group = queries.shape[1] // mask.shape[1]
    return Part(
        score / math.sqrt(queries.shape[-1]),
        jnp.repeat(mask, group, axis=1)[:, None],
        lambda weights: jnp.einsum(
            "bhqk,bkhd->bqhd", weights.astype(values.dtype), values
        ),
    )


def memory_part(
    queries: Float[Array, "batch folded num_key_value_heads head_dim"],
    memory: Memory,
    found: Found,
) -> Part:
    """Returns retrieved pairs; queries are rotated by `memory_distance` (PRE-2).

    Gradient reaches the queries, never what is stored (MEM-8).
    """
    scale = jnp.full(queries.shape[2], 1.0 / math.sqrt(queries.shape[-1]))
    logits, values = attention.neighbors(
        queries, memory, found.slots, scale, found.scores
    )
    # b: batch, q: folded query, n: neighbor, h: key-value head, d: head_dim
    return Part(
        logits,
        found.slots >= 0,
        lambda weights: jnp.einsum(
            "bhqn,bhqnd->bqhd", weights.astype(values.dtype), values
        ),
    )


def attend(
    parts: Sequence[Part],
) -> tuple[
    list[Float[Array, "batch folded num_key_value_heads head_dim"]],
    list[Float[Array, "batch num_key_value_heads folded pairs"]],
]:
    """Reads all parts under one softmax (PRE-5).

    Returns:
      What each query reads, zeros where nothing exists (GATE-2), and the weights; both
      part by part.
    """
    # Finite, so that no infinity minus infinity enters the gradient.
    lowest = jnp.finfo(jnp.float32).min
    logits = [jnp.where(part.mask, part.logits, lowest) for part in parts]
    peaks = [some.max(axis=-1, keepdims=True) for some in logits]
    peak = jax.lax.stop_gradient(functools.reduce(jnp.maximum, peaks))
    weights = [
        jnp.where(part.mask, jnp.exp(some - peak), 0.0)
        for part, some in zip(parts, logits, strict=True)
    ]
    totals = [some.sum(axis=-1, keepdims=True) for some in weights]
    total = functools.reduce(jnp.add, totals)
    total = jnp.where(total > 0.0, total, 1.0)
    each = [part.read(some) for part, some in zip(parts, weights, strict=True)]
    # After the sum over pairs, of which there are more than components.
    outputs = [read / total.swapaxes(1, 2).astype(read.dtype) for read in each]
    return outputs, [some / total for some in weights]
