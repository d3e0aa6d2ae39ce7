"""The backward pass of a memory layer's attention, by hand: where gradient stops.

`forward` computes what `attention.local_attention`, `attention.memory_attention` and
`attention.combine` compute together, and saves what `backward` needs. Both attentions
are the same function of what a query may see, and share one backward pass. Gradient
then stops in three places, and each is one line of `backward` or none:

- at stored pairs: what arrives at neighbors is dropped (MEM-8);
- at cached pairs: what arrives there is dropped (LOC-7);
- at the selection: `slots` comes in from outside as whole numbers (MEM-8).
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int

from memorizing_reference import attention, positions
from memorizing_reference.memory import Memory
from memorizing_reference.search import NO_SLOT


@dataclasses.dataclass(frozen=True)
class Read:
    """One of the two attentions, with what its backward pass needs.

    The axis `n` counts what a query may see: local positions, or neighbors.

    Attributes:
      queries: the segment's queries.
      keys: what each query was compared with; zeros where it sees nothing.
      values: what each query read.
      score: inner products, with the position bias where there is one.
      scale: what turns scores into logits, `|attention_scale|`.
      weights: the softmax of the logits.
      output: the weighted sum of the values, `V_c` or `V_m`.
    """

    queries: Float[np.ndarray, "batch segment_length num_heads head_dim"]
    keys: Float[np.ndarray, "batch segment_length num_heads n head_dim"]
    values: Float[np.ndarray, "batch segment_length num_heads n head_dim"]
    score: Float[np.ndarray, "batch segment_length num_heads n"]
    scale: Float[np.ndarray, " num_heads"]
    weights: Float[np.ndarray, "batch segment_length num_heads n"]
    output: Float[np.ndarray, "batch segment_length num_heads head_dim"]


@dataclasses.dataclass(frozen=True)
class Saved:
    """What `forward` hands to `backward`.

    Attributes:
      memory: the attention over neighbors.
      local: the attention over the local context.
      bucket: position bucket of every local position for every query (LOC-5).
      attention_scale: the parameter, with its sign.
      gate: sigmoid of `gate_bias`.
    """

    memory: Read
    local: Read
    bucket: Int[np.ndarray, "segment_length local_length"]
    attention_scale: Float[np.ndarray, " num_heads"]
    gate: Float[np.ndarray, " num_heads"]


def forward(
    queries: Float[np.ndarray, "batch segment_length num_heads head_dim"],
    local_keys: Float[np.ndarray, "batch local_length num_heads head_dim"],
    local_values: Float[np.ndarray, "batch local_length num_heads head_dim"],
    num_cached: Int[np.ndarray, " batch"],
    memory: Memory,
    slots: Int[np.ndarray, "batch segment_length num_heads top_k"],
    *,
    local_window: int,
    relative_bias: Float[np.ndarray, "num_heads buckets"],
    attention_scale: Float[np.ndarray, " num_heads"],
    gate_bias: Float[np.ndarray, " num_heads"],
) -> tuple[Float[np.ndarray, "batch segment_length num_heads head_dim"], Saved]:
    """Returns the combined output (GATE-3), and what `backward` needs.

    Args:
      queries: the segment's queries, normalized.
      local_keys: normalized keys of the cache followed by those of the segment.
      local_values: their values.
      num_cached: filled cache positions of each row (LOC-3).
      memory: the state that was searched.
      slots: what the search found for each query.
      local_window: how far back a query sees (LOC-1).
      relative_bias: learned, by head and distance bucket.
      attention_scale: learned, by head.
      gate_bias: learned, by head.
    """
    segment_length = queries.shape[1]
    cache_length = local_keys.shape[1] - segment_length
    distance = attention.local_distance(segment_length, cache_length)
    visible = attention.local_mask(
        segment_length, local_window, cache_length, num_cached
    )
    scale = np.abs(attention_scale)

    neighbors = attention.gather(memory, slots)
    far = _read(queries, *neighbors, np.zeros(1, scale.dtype), slots != NO_SLOT, scale)
    near = _read(
        queries,
        local_keys.swapaxes(1, 2)[:, None],
        local_values.swapaxes(1, 2)[:, None],
        positions.bias(relative_bias, distance)[None],
        visible[:, :, None],
        scale,
    )
    output = attention.combine(far.output, near.output, gate_bias)
    bucket = positions.bucket(np.maximum(distance, 0))
    gate = attention.sigmoid(gate_bias)
    return output, Saved(far, near, bucket, attention_scale, gate)


def backward(
    saved: Saved,
    cotangent: Float[np.ndarray, "batch segment_length num_heads head_dim"],
) -> dict[str, np.ndarray]:
    """Returns the gradient of `sum(cotangent * output)`, by name of the argument.

    The names are `queries`, `local_keys`, `local_values`, `relative_bias`,
    `attention_scale` and `gate_bias`; each array has the shape of its argument.
    Cached columns of the two local ones are zero (LOC-7). At `attention_scale` 0,
    where the absolute value has no slope, the gradient is 0.

    Args:
      saved: second result of `forward`.
      cotangent: gradient of the loss with respect to the first result.
    """
    gate = saved.gate[None, None, :, None]
    far = _read_backward(saved.memory, gate * cotangent)
    near = _read_backward(saved.local, (1.0 - gate) * cotangent)

    segment_length, local_length = saved.bucket.shape
    cache_length = local_length - segment_length
    # Each local pair is met by many queries. `far` has such entries too: they belong
    # to stored pairs, and end here (MEM-8).
    local_keys = near["keys"].sum(axis=1).swapaxes(1, 2)
    local_values = near["values"].sum(axis=1).swapaxes(1, 2)
    local_keys[:, :cache_length] = 0  # LOC-7
    local_values[:, :cache_length] = 0

    head = np.arange(len(saved.gate))[None, :, None]
    relative_bias = np.zeros((len(saved.gate), positions.NUM_BUCKETS), gate.dtype)
    np.add.at(relative_bias, (head, saved.bucket[:, None]), near["score"].sum(axis=0))

    swing = cotangent * (saved.memory.output - saved.local.output)
    return {
        "queries": far["queries"] + near["queries"],
        "local_keys": local_keys,
        "local_values": local_values,
        "relative_bias": relative_bias,
        "attention_scale": np.sign(saved.attention_scale)
        * (far["scale"] + near["scale"]),
        "gate_bias": saved.gate * (1.0 - saved.gate) * swing.sum(axis=(0, 1, 3)),
    }


def _read(
    queries: Float[np.ndarray, "batch segment_length num_heads head_dim"],
    keys: Float[np.ndarray, "*places num_heads n head_dim"],
    values: Float[np.ndarray, "*places num_heads n head_dim"],
    bias: Float[np.ndarray, "*bias_shape"],
    mask: Bool[np.ndarray, "batch segment_length #num_heads n"],
    scale: Float[np.ndarray, " num_heads"],
) -> Read:
    """Attends; `bias` broadcasts against the scores."""
    keys = np.where(mask[..., None], keys, 0)
    values = np.where(mask[..., None], values, 0)
    # b: batch, q: query, h: head, n: what the query may see, d: head_dim
    score = np.einsum("bqhd,bqhnd->bqhn", queries, keys, optimize=True) + bias
    logits = score * scale[:, None]
    weights = attention.masked_softmax(logits, np.broadcast_to(mask, logits.shape))
    output = np.einsum("bqhn,bqhnd->bqhd", weights, values, optimize=True)
    return Read(queries, keys, values, score, scale, weights, output)


def _read_backward(
    read: Read,
    cotangent: Float[np.ndarray, "batch segment_length num_heads head_dim"],
) -> dict[str, np.ndarray]:
    """Walks `_read` from its last line to its first."""
    values = read.weights[..., None] * cotangent[:, :, :, None, :]
    weights = np.einsum("bqhd,bqhnd->bqhn", cotangent, read.values, optimize=True)
    # Raising one logit takes weight from all others: hence the mean that goes off.
    mean = (read.weights * weights).sum(axis=-1, keepdims=True)
    logits = read.weights * (weights - mean)
    score = logits * read.scale[:, None]
    return {
        "queries": np.einsum("bqhn,bqhnd->bqhd", score, read.keys, optimize=True),
        "keys": score[..., None] * read.queries[:, :, :, None, :],
        "values": values,
        "score": score,
        "scale": (logits * read.score).sum(axis=(0, 1, 3)),
    }
