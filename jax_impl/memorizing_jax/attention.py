"""Attention over the local context, over retrieved pairs, and their gated sum.

Port of `memorizing_reference.attention`. It differs in two ways: retrieved slots
and pairs are laid out head by head, as the memory is, and products may be taken
in bfloat16, with logits and softmax in float32.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from memorizing_jax import memory as memories
from memorizing_jax import positions
from memorizing_jax.memory import Memory


def masked_softmax(
    logits: Float[Array, "*shape n"], mask: Bool[Array, "*shape n"]
) -> Float[Array, "*shape n"]:
    """Softmax over the last axis that gives masked entries weight exactly 0.

    Where nothing is visible the weights are zeros, not NaN (LOC-6, GATE-2), and
    so is the gradient.
    """
    # Finite, so that no infinity minus infinity enters the gradient; the mask
    # below, not this number, is what takes the weight away.
    logits = jnp.where(mask, logits, jnp.finfo(logits.dtype).min)
    peak = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
    weights = jnp.where(mask, jnp.exp(logits - peak), 0.0)
    total = weights.sum(axis=-1, keepdims=True)
    return weights / jnp.where(total > 0.0, total, 1.0)


def normalize(
    x: Float[Array, "*shape head_dim"],
) -> Float[Array, "*shape head_dim"]:
    """Scales queries or keys to length one over the last axis (QKN-2)."""
    wide = x.astype(jnp.float32)
    squares = jnp.sum(wide * wide, axis=-1, keepdims=True)
    return (wide * jax.lax.rsqrt(squares + 1e-6)).astype(x.dtype)


def local_mask(
    segment_length: int,
    local_window: int,
    cache_length: int,
    num_cached: Int[Array, " batch"],
) -> Bool[Array, "batch segment_length local_length"]:
    """Returns which local positions each query sees (LOC-1 to LOC-3).

    Columns are the cache, oldest first, then the segment. With `local_window` 3,
    a cache of 2 and a segment of 4 (`num_cached` 2 on the left, 1 on the right):

        1 1 . . . .        . 1 . . . .
        1 1 1 . . .        . 1 1 . . .
        . 1 1 1 . .        . 1 1 1 . .
        . . 1 1 1 .        . . 1 1 1 .
    """
    column = np.arange(cache_length + segment_length)
    query = cache_length + np.arange(segment_length)
    distance = query[:, None] - column[None, :]
    near = (distance >= 1) & (distance <= local_window)
    present = jnp.asarray(column)[None, :] >= cache_length - num_cached[:, None]
    return jnp.asarray(near)[None, :, :] & present[:, None, :]


def local_attention(
    queries: Float[Array, "batch segment_length num_heads head_dim"],
    local_keys: Float[Array, "batch local_length num_heads head_dim"],
    local_values: Float[Array, "batch local_length num_heads head_dim"],
    mask: Bool[Array, "batch segment_length local_length"],
    *,
    relative_bias: Float[Array, "num_heads buckets"],
    attention_scale: Float[Array, " num_heads"],
) -> Float[Array, "batch segment_length num_heads head_dim"]:
    """Returns what each query reads from the cache and its own segment, `V_c`.

        logits = (q . k + relative_bias[h, bucket(i - j)]) * |attention_scale[h]|

    (LOC-4, QKN-3). A query that sees nothing reads zeros (LOC-6). `mask` is that
    of `local_mask`.
    """
    # What no query sees may hold anything, even a NaN of an earlier document: a
    # weight of 0 would keep it alive, here or in the gradient (LOC-3).
    seen_by_any = mask.any(axis=1)[:, :, None, None]
    local_keys, local_values = (
        jnp.where(seen_by_any, x, 0) for x in (local_keys, local_values)
    )
    # b: batch, q: query, k: local key, h: head, d: head_dim
    score = jnp.einsum(
        "bqhd,bkhd->bhqk", queries, local_keys, preferred_element_type=jnp.float32
    )
    bias = positions.bias(relative_bias, queries.shape[1], local_keys.shape[1])
    logits = (score + bias[None]) * jnp.abs(attention_scale)[None, :, None, None]
    visible = jnp.broadcast_to(mask[:, None, :, :], logits.shape)
    weights = masked_softmax(logits, visible).astype(local_values.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, local_values)


def memory_attention(
    queries: Float[Array, "batch segment_length num_heads head_dim"],
    memory: Memory,
    slots: Int[Array, "batch num_heads segment_length top_k"],
    attention_scale: Float[Array, " num_heads"],
    scores: Float[Array, "batch num_heads segment_length top_k"] | None = None,
) -> tuple[
    Float[Array, "batch segment_length num_heads head_dim"],
    Float[Array, "batch num_heads segment_length top_k"],
]:
    """Returns what each query reads from its neighbors, `V_m`, and the weights.

    The softmax runs over the neighbors alone, without position bias (GATE-1).
    Where no neighbor exists the result is zero (GATE-2). Gradient reaches the
    queries and the scale, never what is stored (MEM-8).

    Args:
      queries: normalized, not scaled.
      memory: what was searched.
      slots: neighbors, -1 where there is none.
      attention_scale: of each head.
      scores: those of the slots, where the search has found them already.
    """
    logits, values = neighbors(queries, memory, slots, attention_scale, scores)
    weights = masked_softmax(logits, slots >= 0)
    # b: batch, h: head, q: query, n: neighbor, d: head_dim
    output = jnp.einsum("bhqn,bhqnd->bhqd", weights.astype(values.dtype), values)
    return output.swapaxes(1, 2), weights


def neighbors(
    queries: Float[Array, "batch segment_length num_heads head_dim"],
    memory: Memory,
    slots: Int[Array, "batch num_heads segment_length top_k"],
    attention_scale: Float[Array, " num_heads"],
    scores: Float[Array, "batch num_heads segment_length top_k"] | None = None,
) -> tuple[
    Float[Array, "batch num_heads segment_length top_k"],
    Float[Array, "batch num_heads segment_length top_k head_dim"],
]:
    """Returns the logits and the values of each query's neighbors.

    What is gathered serves the gradient too: by then the segment's own pairs may stand
    in those slots.
    """
    stored = jax.lax.stop_gradient((memory.keys, memory.values))
    # A slot that was not found may hold anything, even a NaN from before a
    # reset: it is replaced, not multiplied by zero (MEM-11).
    found = slots >= 0
    keys, values = (
        jnp.where(found[..., None], memories.gather(x, slots), 0).astype(queries.dtype)
        for x in stored
    )
    # Head by head throughout, as pairs are stored: otherwise XLA moves the retrieved
    # pairs around, the largest arrays here.
    queries = queries.swapaxes(1, 2)
    if scores is None:
        scores = _products(queries, keys)
    else:
        scores = jax.lax.stop_gradient(jnp.where(found, scores, 0.0))
        scores = _known_products(queries, keys, scores)
    return scores * jnp.abs(attention_scale)[None, :, None, None], values


def _products(queries: jax.Array, keys: jax.Array) -> jax.Array:
    # b: batch, h: head, q: query, n: neighbor, d: head_dim
    return jnp.einsum(
        "bhqd,bhqnd->bhqn", queries, keys, preferred_element_type=jnp.float32
    )


@jax.custom_vjp
def _known_products(
    queries: jax.Array, keys: jax.Array, scores: jax.Array
) -> jax.Array:
    """Returns the scores, with the gradient of the products that they are.

    Without a gradient the keys are not even gathered. With one they are, and must be
    before the segment's own pairs overwrite any: see `memory.wait_for`. So then their
    products are taken, which is what makes XLA read them in time; beside the gathering
    that costs little.
    """
    del queries, keys
    return scores


def _known_products_forward(
    queries: jax.Array, keys: jax.Array, scores: jax.Array
) -> tuple[jax.Array, Callable[[jax.Array], Any]]:
    del scores
    return jax.vjp(_products, queries, keys)


def _known_products_backward(
    pull: Callable[[jax.Array], Any], cotangent: jax.Array
) -> tuple[jax.Array, None, None]:
    return pull(cotangent)[0], None, None


_known_products.defvjp(_known_products_forward, _known_products_backward)


def combine(
    memory_output: Float[Array, "batch segment_length num_heads head_dim"],
    local_output: Float[Array, "batch segment_length num_heads head_dim"],
    gate_bias: Float[Array, " num_heads"],
) -> Float[Array, "batch segment_length num_heads head_dim"]:
    """Mixes the two attentions, head by head, by `sigmoid(gate_bias)` (GATE-3)."""
    gate = jax.nn.sigmoid(gate_bias)[None, None, :, None].astype(local_output.dtype)
    return gate * memory_output + (1 - gate) * local_output
