"""Attention over the local context, over retrieved pairs, and their gated sum."""

import numpy as np
from jaxtyping import Bool, Float, Int

from memorizing_reference import positions
from memorizing_reference.memory import Memory
from memorizing_reference.search import NO_SLOT


def masked_softmax(
    logits: Float[np.ndarray, "*shape n"],
    mask: Bool[np.ndarray, "*shape n"],
) -> Float[np.ndarray, "*shape n"]:
    """Softmax over the last axis that gives masked entries weight exactly 0.

    A row with no unmasked entry gets all zeros, not NaN: there is nothing to
    attend to, so nothing is read (LOC-6, GATE-2).
    """
    logits = np.where(mask, logits, -np.inf)
    peak = logits.max(axis=-1, keepdims=True, initial=-np.inf)
    weights = np.exp(logits - np.where(np.isfinite(peak), peak, 0.0))
    total = weights.sum(axis=-1, keepdims=True)
    return weights / np.where(total > 0.0, total, 1.0)


def sigmoid(x: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Logistic function, written so that no input overflows."""
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def normalize(
    x: Float[np.ndarray, "*shape head_dim"],
) -> Float[np.ndarray, "*shape head_dim"]:
    """Scales queries or keys to length one over the last axis (QKN-2)."""
    return x / np.sqrt(np.sum(x * x, axis=-1, keepdims=True) + 1e-6)


def local_mask(
    segment_length: int,
    local_window: int,
    cache_length: int,
    num_cached: Int[np.ndarray, " batch"],
) -> Bool[np.ndarray, "batch segment_length local_length"]:
    """Returns which local positions each query sees (LOC-1 to LOC-3).

    Columns are the cache, oldest first, then the segment. With `local_window` 3,
    a cache of 2 and a segment of 4 (`num_cached` 2 on the left, 1 on the right):

        1 1 . . . .        . 1 . . . .
        1 1 1 . . .        . 1 1 . . .
        . 1 1 1 . .        . 1 1 1 . .
        . . 1 1 1 .        . . 1 1 1 .

    Args:
      segment_length: queries per row, `N`.
      local_window: how far back a query sees, `W`.
      cache_length: columns of the cache, `C`.
      num_cached: how many of those are filled; always the newest, on the right.
    """
    distance = local_distance(segment_length, cache_length)
    column = np.arange(cache_length + segment_length)
    present = column[None, :] >= cache_length - num_cached[:, None]
    near = (distance >= 1) & (distance <= local_window)
    return near[None, :, :] & present[:, None, :]


def local_distance(
    segment_length: int, cache_length: int
) -> Int[np.ndarray, "segment_length local_length"]:
    """Returns `i - j`: how far each local position lies behind each query."""
    query = cache_length + np.arange(segment_length)
    return query[:, None] - np.arange(cache_length + segment_length)[None, :]


def local_attention(
    queries: Float[np.ndarray, "batch segment_length num_heads head_dim"],
    local_keys: Float[np.ndarray, "batch local_length num_heads head_dim"],
    local_values: Float[np.ndarray, "batch local_length num_heads head_dim"],
    num_cached: Int[np.ndarray, " batch"],
    *,
    local_window: int,
    relative_bias: Float[np.ndarray, "num_heads buckets"],
    attention_scale: Float[np.ndarray, " num_heads"],
) -> Float[np.ndarray, "batch segment_length num_heads head_dim"]:
    """Returns what each query reads from the cache and its own segment, `V_c`.

        logits = (q . k + relative_bias[h, bucket(i - j)]) * |attention_scale[h]|

    (LOC-4, QKN-3). A query that sees nothing reads zeros (LOC-6).

    Args:
      queries: the segment's queries, normalized.
      local_keys: normalized keys of the cache followed by those of the segment.
      local_values: their values.
      num_cached: filled cache positions of each row (LOC-3).
      local_window: how far back a query sees (LOC-1).
      relative_bias: learned, by head and distance bucket.
      attention_scale: learned, by head.
    """
    segment_length = queries.shape[1]
    cache_length = local_keys.shape[1] - segment_length
    mask = local_mask(segment_length, local_window, cache_length, num_cached)
    distance = local_distance(segment_length, cache_length)
    # b: batch, q: query, k: local key, h: head, d: head_dim
    score = np.einsum("bqhd,bkhd->bqhk", queries, local_keys, optimize=True)
    logits = score + positions.bias(relative_bias, distance)[None]
    logits = logits * np.abs(attention_scale)[None, None, :, None]
    visible = np.broadcast_to(mask[:, :, None, :], logits.shape)
    weights = masked_softmax(logits, visible)
    # A weight of 0 would keep a NaN alive that an earlier document left here.
    seen_by_any = np.logical_or.reduce(mask, axis=1)
    values = np.where(seen_by_any[:, :, None, None], local_values, 0)
    return np.einsum("bqhk,bkhd->bqhd", weights, values, optimize=True)


def gather(
    memory: Memory,
    slots: Int[np.ndarray, "batch segment_length num_heads top_k"],
) -> tuple[
    Float[np.ndarray, "batch segment_length num_heads top_k head_dim"],
    Float[np.ndarray, "batch segment_length num_heads top_k head_dim"],
]:
    """Returns the keys and values of retrieved slots; zeros where there is none."""
    found = (slots != NO_SLOT)[..., None]
    if memory.memory_size == 0:
        nothing = np.zeros((*slots.shape, memory.keys.shape[-1]), memory.keys.dtype)
        return nothing, nothing
    row = np.arange(slots.shape[0])[:, None, None, None]
    # Where query heads share a memory, `group` of them have the same one (PRE-1).
    group = slots.shape[2] // memory.keys.shape[2]
    head = np.arange(slots.shape[2])[None, None, :, None] // group
    slot = np.where(slots == NO_SLOT, 0, slots)
    keys, values = memory.keys[row, slot, head], memory.values[row, slot, head]
    return np.where(found, keys, 0), np.where(found, values, 0)


def memory_attention(
    queries: Float[np.ndarray, "batch segment_length num_heads head_dim"],
    memory: Memory,
    slots: Int[np.ndarray, "batch segment_length num_heads top_k"],
    attention_scale: Float[np.ndarray, " num_heads"],
) -> Float[np.ndarray, "batch segment_length num_heads head_dim"]:
    """Returns what each query reads from its retrieved neighbors, `V_m` (GATE-1).

    The softmax runs over the neighbors alone, without position bias. Where no
    neighbor exists the result is zero (GATE-2).
    """
    keys, values = gather(memory, slots)
    # b: batch, q: query, n: neighbor, h: head, d: head_dim
    score = np.einsum("bqhd,bqhnd->bqhn", queries, keys, optimize=True)
    logits = score * np.abs(attention_scale)[None, None, :, None]
    weights = masked_softmax(logits, slots != NO_SLOT)
    return np.einsum("bqhn,bqhnd->bqhd", weights, values, optimize=True)


def combine(
    memory_output: Float[np.ndarray, "batch segment_length num_heads head_dim"],
    local_output: Float[np.ndarray, "batch segment_length num_heads head_dim"],
    gate_bias: Float[np.ndarray, " num_heads"],
) -> Float[np.ndarray, "batch segment_length num_heads head_dim"]:
    """Mixes the two attentions, head by head (GATE-3).

        gate   = sigmoid(gate_bias)                        one number per head
        output = gate * memory + (1 - gate) * local

    The two softmaxes stay separate: a strong local match takes no weight away
    from memory. Only the gate divides the output between them.
    """
    gate = sigmoid(gate_bias)[None, None, :, None]
    return gate * memory_output + (1.0 - gate) * local_output
