"""The parts of a layer of the Llama family: projections, attention, SwiGLU (PRE-7)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from memorizing_jax import attention, llama_attention, rotary, search, shared_memory
from memorizing_jax import cache as caches
from memorizing_jax.cache import Cache
from memorizing_jax.layers import Retrieved, output_projection, rms_norm
from memorizing_jax.llama_config import LlamaConfig
from memorizing_jax.llama_context import Context
from memorizing_jax.memory import Memory
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
      layer: for the gate, and for pairs that all rows share.
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

    def by_head(x: jax.Array) -> jax.Array:
        return llama_attention.unfold(x, config.num_heads)

    shared = shared_memory.of_layer(layer)
    if memory is None and shared is None:
        (output,), _ = llama_attention.attend([local])
        output, from_memory, found = by_head(output), jnp.zeros_like(queries), None
    else:
        turned = rotary.rotate(queries, context.to_memory)
        part, slots = retrieve(turned, memory, shared, config)
        if config.combination == "joint":
            outputs, (_, weights) = llama_attention.attend([local, part])
        else:
            alone = [llama_attention.attend([each]) for each in (local, part)]
            outputs, weights = [o for (o,), _ in alone], alone[1][1][0]
        output, from_memory = map(by_head, outputs)
        found = Retrieved(
            slots=by_head(slots.swapaxes(1, 2)).swapaxes(1, 2),
            weights=by_head(weights.swapaxes(1, 2)).swapaxes(1, 2),
            not_finite=search.first_not_finite(turned, memory)
            if config.checked and memory is not None
            else None,
            queries=turned,
            memory_output=from_memory,
            local_output=output,
        )
    if config.combination == "joint":
        output = output + from_memory
    elif "gate_bias" in layer:
        output = attention.combine(from_memory, output, layer["gate_bias"])
    return output, found


def retrieve(
    queries: Float[Array, "batch segment_length num_heads head_dim"],
    memory: Memory | None,
    shared: Memory | None,
    config: LlamaConfig,
) -> tuple[llama_attention.Part, Int[Array, "batch num_key_value_heads folded top_k"]]:
    """Searches the memories for each query head's neighbors (PRE-1, PRE-2).

    There is one at least: the rows' own, or that which they share.
    """
    folded = llama_attention.fold(queries, config.num_key_value_heads)
    found = None
    with jax.named_scope("search"):
        if memory is not None:
            found = search.find(
                folded,
                memory,
                top_k=config.top_k,
                engine=config.search,
                recall_target=config.recall_target,
            )
        if shared is not None:
            found = shared_memory.find(folded, shared, found, config)
    assert found is not None
    if shared is not None:
        part = shared_memory.part(folded, shared, memory, found)
    else:
        assert memory is not None
        part = llama_attention.memory_part(folded, memory, found)
    return part, found.slots


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
