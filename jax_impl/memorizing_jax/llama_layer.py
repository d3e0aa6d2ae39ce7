"""The parts of a layer of the Llama family: projections, attention, SwiGLU (PRE-7)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from memorizing_jax import attention, llama_attention, rotary, search
from memorizing_jax import cache as caches
from memorizing_jax.cache import Cache
from memorizing_jax.llama_config import LlamaConfig
from memorizing_jax.llama_context import Context
from memorizing_jax.memory import Memory
from memorizing_jax.model import Retrieved, output_projection, rms_norm
from memorizing_jax.parameters import Parameters


class Read(NamedTuple):
    """What a layer made of a segment.

    Attributes:
      x: the residual stream after it.
      update: what attention added to it.
      local: pairs of the cache and the segment; keys not rotated.
      keys: of the segment, as cache, sinks and memory will keep them.
      values: same.
      found: what was retrieved, if anything could be.
    """

    x: jax.Array
    update: jax.Array
    local: Cache
    keys: jax.Array
    values: jax.Array
    found: Retrieved | None


def read(
    layer: Parameters,
    x: Float[Array, "batch segment_length model_dim"],
    sinks: Cache | None,
    cache: Cache | None,
    memory: Memory | None,
    context: Context,
    config: LlamaConfig,
) -> Read:
    """Runs a layer (PRE-7). No gradient flows into sinks and cache (LOC-7)."""
    normed = rms_norm(x, layer["attention_norm_gain"], config.norm_epsilon)
    queries, keys, values = project(layer, normed)
    local = Cache(*caches.local_context(cache, keys, values))
    pairs = Cache(*caches.local_context(sinks, local.keys, local.values))
    output, found = attend(layer, queries, pairs, memory, context, config)
    update = output_projection(layer, output)
    x = x + update
    x = x + mlp(layer, rms_norm(x, layer["mlp_norm_gain"], config.norm_epsilon))
    return Read(x, update, local, keys, values, found)


def attend(
    layer: Parameters,
    queries: Float[Array, "batch segment_length num_heads head_dim"],
    pairs: Cache,
    memory: Memory | None,
    context: Context,
    config: LlamaConfig,
) -> tuple[Float[Array, "batch segment_length num_heads head_dim"], Retrieved | None]:
    """Attends to the local context and, in a memory layer, to what it retrieves.

    Args:
      layer: for the gate.
      queries: not rotated.
      pairs: of the local context; keys not rotated.
      memory: None in layers without one.
      context: which of the pairs are seen, and the rotations.
      config: the model's sizes.

    Returns:
      What is read, before the output projection; what was retrieved, if anything
      could be.
    """
    few = config.num_key_value_heads
    # What is not there may hold anything, even a NaN of an earlier document: a weight
    # of 0 would keep it alive (MEM-11).
    keys, values = (
        jnp.where(context.present[:, :, None, None], x, 0)
        for x in (pairs.keys, pairs.values)
    )
    local = llama_attention.local_part(
        llama_attention.fold(rotary.rotate(queries, context.queries), few),
        rotary.rotate(keys, context.keys),
        values,
        context.mask,
    )
    found = None
    if memory is None:
        output, _ = llama_attention.attend([local])
    else:
        turned = rotary.rotate(queries, context.to_memory)
        part, slots = retrieve(turned, memory, config)
        if config.combination == "joint":
            output, (_, weights) = llama_attention.attend([local, part])
        else:
            from_memory, (weights,) = llama_attention.attend([part])
            output, _ = llama_attention.attend([local])
        found = _by_query_head(slots, weights, turned, memory, config)
    output = llama_attention.unfold(output, config.num_heads)
    if "gate_bias" in layer:
        read = jnp.zeros_like(output)
        if memory is not None:
            read = llama_attention.unfold(from_memory, config.num_heads)
        output = attention.combine(read, output, layer["gate_bias"])
    return output, found


def retrieve(
    queries: Float[Array, "batch segment_length num_heads head_dim"],
    memory: Memory,
    config: LlamaConfig,
) -> tuple[llama_attention.Part, Int[Array, "batch num_key_value_heads folded top_k"]]:
    """Searches the memory for each query head's neighbors (PRE-1, PRE-2)."""
    folded = llama_attention.fold(queries, config.num_key_value_heads)
    with jax.named_scope("search"):
        slots = search.find(
            folded,
            memory,
            top_k=config.top_k,
            engine=config.search,
            recall_target=config.recall_target,
        ).slots
    return llama_attention.memory_part(folded, memory, slots), slots


def _by_query_head(
    slots: jax.Array,
    weights: jax.Array,
    queries: jax.Array,
    memory: Memory,
    config: LlamaConfig,
) -> Retrieved:
    """Returns what was retrieved as `model` does, head by head of the queries."""

    def lay_out(x: jax.Array) -> jax.Array:
        by_head = llama_attention.unfold(x.swapaxes(1, 2), config.num_heads)
        return by_head.swapaxes(1, 2)

    bad = search.first_not_finite(queries, memory) if config.checked else None
    return Retrieved(lay_out(slots), lay_out(weights), bad)


def project(
    layer: Parameters, x: Float[Array, "batch segment_length model_dim"]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns queries of all heads, keys and values of the few (PRE-1)."""
    # b: batch, q: position, e: model_dim, h: head, d: head_dim
    queries, keys, values = (
        jnp.einsum("bqe,ehd->bqhd", x, layer[name].astype(x.dtype))
        for name in ("query_kernel", "key_kernel", "value_kernel")
    )
    return queries, keys, values


def mlp(
    layer: Parameters, x: Float[Array, "batch segment_length model_dim"]
) -> Float[Array, "batch segment_length model_dim"]:
    """Returns the update of the residual stream: SwiGLU (PRE-7)."""
    gate, up = (
        jnp.matmul(x, layer[name].astype(x.dtype))
        for name in ("mlp_gate_kernel", "mlp_up_kernel")
    )
    hidden = jax.nn.silu(gate) * up
    return jnp.matmul(hidden, layer["mlp_out_kernel"].astype(x.dtype))
