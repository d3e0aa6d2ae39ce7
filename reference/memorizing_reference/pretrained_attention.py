"""Attention of a pre-trained model to its local context and to retrieved pairs.

Heads are grouped: `num_heads` query heads share `num_key_value_heads` heads of keys
and values, neighbors sharing one (PRE-1).
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int

from memorizing_reference import attention, local_context, rotary
from memorizing_reference.config import PretrainedConfig
from memorizing_reference.local_context import LocalContext
from memorizing_reference.memory import Memory
from memorizing_reference.search import NO_SLOT


@dataclasses.dataclass(frozen=True)
class Seen:
    """What each query sees of its local context, before any softmax.

    Attributes:
      logits: of every local position.
      mask: true where a position is visible.
      values: one for each query head, that is, repeated within a group.
    """

    logits: Float[np.ndarray, "batch segment_length num_heads local_length"]
    mask: Bool[np.ndarray, "batch segment_length num_heads local_length"]
    values: Float[np.ndarray, "batch local_length num_heads head_dim"]


def see(
    queries: Float[np.ndarray, "batch segment_length num_heads head_dim"],
    context: LocalContext,
    config: PretrainedConfig,
) -> Seen:
    """Returns the logits of the local context (PRE-3, PRE-9).

    logits = rotate(q, i) . rotate(k, j) / sqrt(D)      at places i and j
    """
    segment_length, num_heads = queries.shape[1:3]
    group = num_heads // context.keys.shape[2]
    mask = local_context.mask(
        context, segment_length, config.local_window, config.num_sinks
    )
    queries = rotary.rotate(
        queries, context.place[:, -segment_length:], config.rope_base
    )
    keys = rotary.rotate(context.keys, context.place, config.rope_base)
    keys = np.repeat(keys, group, axis=2)
    # b: batch, q: query, k: local key, h: head, d: head_dim
    score = np.einsum("bqhd,bkhd->bqhk", queries, keys, optimize=True)
    logits = score * _scale(queries)
    return Seen(
        logits=logits,
        mask=np.broadcast_to(mask[:, :, None, :], logits.shape),
        values=np.repeat(context.values, group, axis=2),
    )


def local_attention(
    seen: Seen,
) -> Float[np.ndarray, "batch segment_length num_heads head_dim"]:
    """Returns what each query reads from its local context alone."""
    weights = attention.masked_softmax(seen.logits, seen.mask)
    return np.einsum("bqhk,bkhd->bqhd", weights, seen.values, optimize=True)


def memory_queries(
    queries: Float[np.ndarray, "batch segment_length num_heads head_dim"],
    config: PretrainedConfig,
) -> Float[np.ndarray, "batch segment_length num_heads head_dim"]:
    """Returns queries as the memory meets them.

    Stored keys were never rotated, so a query that is rotated by
    `memory_distance` meets all of them that far back (PRE-2).
    """
    place = np.full(queries.shape[:2], config.memory_distance)
    return rotary.rotate(queries, place, config.rope_base)


def gated(
    seen: Seen,
    queries: Float[np.ndarray, "batch segment_length num_heads head_dim"],
    memory: Memory,
    slots: Int[np.ndarray, "batch segment_length num_heads top_k"],
    gate_bias: Float[np.ndarray, " num_heads"],
) -> Float[np.ndarray, "batch segment_length num_heads head_dim"]:
    """Returns the gated sum of two separate softmaxes (PRE-5, GATE-1 to GATE-3).

    Args:
      seen: the local context.
      queries: as `memory_queries` returns them.
      memory: what was searched.
      slots: what was found.
      gate_bias: learned, by head.
    """
    scale = np.full(queries.shape[2], _scale(queries))
    retrieved = attention.memory_attention(queries, memory, slots, scale)
    return attention.combine(retrieved, local_attention(seen), gate_bias)


def joint(
    seen: Seen,
    queries: Float[np.ndarray, "batch segment_length num_heads head_dim"],
    memory: Memory,
    slots: Int[np.ndarray, "batch segment_length num_heads top_k"],
) -> Float[np.ndarray, "batch segment_length num_heads head_dim"]:
    """Returns what one softmax reads from local context and neighbors (PRE-5).

    A strong local match takes weight away from memory, and the reverse, as if
    retrieved pairs stood in the context. Nothing needs to be learned for that.
    Arguments are those of `gated`.
    """
    keys, values = attention.gather(memory, slots)
    # b: batch, q: query, k: local key, n: neighbor, h: head, d: head_dim
    score = np.einsum("bqhd,bqhnd->bqhn", queries, keys, optimize=True)
    logits = np.concatenate([seen.logits, score * _scale(queries)], axis=-1)
    mask = np.concatenate([seen.mask, slots != NO_SLOT], axis=-1)
    weights = attention.masked_softmax(logits, mask)
    local_length = seen.values.shape[1]
    near, far = weights[..., :local_length], weights[..., local_length:]
    return np.einsum("bqhk,bkhd->bqhd", near, seen.values, optimize=True) + np.einsum(
        "bqhn,bqhnd->bqhd", far, values, optimize=True
    )


def _scale(queries: Float[np.ndarray, "*shape head_dim"]) -> np.floating:
    """Returns what turns scores into logits, in the dtype of the model (PRE-1)."""
    return queries.dtype.type(1.0 / np.sqrt(queries.shape[-1]))
