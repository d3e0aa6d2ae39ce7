"""Decoders of the Llama family, with a memory: one segment of every row (PRE).

The counterpart of `model` for models that were trained without memory. State,
memories, searches and what is returned are the same, but for the sinks.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memorizing_jax import attention, llama_attention, parameters, rotary, search
from memorizing_jax import cache as caches
from memorizing_jax import llama_context as contexts
from memorizing_jax import memory as memories
from memorizing_jax.cache import Cache
from memorizing_jax.llama_config import LlamaConfig
from memorizing_jax.llama_context import Context
from memorizing_jax.memory import Memory
from memorizing_jax.model import Retrieved, State, output_projection, rms_norm
from memorizing_jax.parameters import Parameters


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LlamaState(State):
    """What the model carries from segment to segment.

    Keys are kept as they were before rotation, in caches, sinks and memories alike
    (PRE-2).

    Attributes:
      num_read: [batch]; tokens of its document that each row has read.
      sinks: one per layer, of `num_sinks` positions; none where that is 0 (PRE-4).
    """

    num_read: jax.Array
    sinks: tuple[Cache, ...]


def init_state(config: LlamaConfig, batch: int) -> LlamaState:
    """Returns the state before the first segment: empty caches and memories."""
    heads, dim, dtype = (
        config.num_key_value_heads,
        config.head_dim,
        config.compute_dtype,
    )

    def of_layers(length: int) -> tuple[Cache, ...]:
        layers = range(config.num_layers if length else 0)
        return tuple(caches.empty(batch, length, heads, dim, dtype) for _ in layers)

    # Each array its own buffer: the step donates them, and none twice.
    return LlamaState(
        num_cached=jnp.zeros(batch, jnp.int32),
        num_read=jnp.zeros(batch, jnp.int32),
        caches=of_layers(config.cache_length),
        sinks=of_layers(config.num_sinks),
        memories=tuple(
            memories.empty(
                batch,
                config.memory_size,
                heads,
                dim,
                config.memory_dtype,
                config.search,
            )
            for _ in (config.memory_layers if config.memory_size else ())
        ),
    )


def forward(
    params: Parameters,
    state: LlamaState,
    tokens: Int[Array, "batch segment_length"],
    start_of_document: Bool[Array, " batch"],
    num_tokens: Int[Array, " batch"],
    config: LlamaConfig,
) -> tuple[
    Float[Array, "batch segment_length vocab_size"], LlamaState, dict[int, Retrieved]
]:
    """Reads one segment of every row (PRE-7, ORD-1).

    Arguments and results are those of `model.forward`.
    """
    dtype = jnp.dtype(config.compute_dtype)
    position = jnp.arange(tokens.shape[1], dtype=jnp.int32)
    tokens = jnp.where(position[None, :] < num_tokens[:, None], tokens, 0)
    num_read = jnp.where(start_of_document, 0, state.num_read)
    context = contexts.context(num_read, tokens.shape[1], config)
    new_caches, new_sinks, new_memories, retrieved = [], [], [], {}
    x = params["embedding"][tokens].astype(dtype)
    for i in range(config.num_layers):
        layer = parameters.of_layer(params, i)
        cache = state.caches[i] if state.caches else None
        sinks = state.sinks[i] if state.sinks else None
        memory = None
        if i in config.memory_layers and state.memories:
            stored = state.memories[config.memory_layers.index(i)]
            memory = memories.reset(stored, start_of_document)

        normed = rms_norm(x, layer["attention_norm_gain"], config.norm_epsilon)
        queries, keys, values = project(layer, normed)
        pairs = contexts.local_pairs(sinks, cache, keys, values)
        output, found = attend(layer, queries, pairs, memory, context, config)
        update = output_projection(layer, output)
        x = x + update
        x = x + mlp(layer, rms_norm(x, layer["mlp_norm_gain"], config.norm_epsilon))

        if cache is not None:
            new_caches.append(caches.append(cache, keys, values, num_tokens))
        if sinks is not None:
            kept = contexts.keep_sinks(sinks, keys, values, num_read, num_tokens)
            new_sinks.append(kept)
        if memory is not None and found is not None:
            enter, counts = Cache(keys, values), num_tokens
            if config.combination == "joint":
                enter, counts = contexts.leave_cache(
                    pairs, num_read, num_tokens, config
                )
            counts = memories.wait_for(counts, update)
            new_memories.append(
                memories.insert(memory, enter.keys, enter.values, counts)
            )
            retrieved[i] = found

    new_state = LlamaState(
        num_cached=jnp.minimum(config.cache_length, num_read + num_tokens),
        num_read=num_read + num_tokens,
        caches=tuple(new_caches),
        sinks=tuple(new_sinks),
        memories=tuple(new_memories),
    )
    return logits_of(params, x, config), new_state, retrieved


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


def logits_of(
    params: Parameters,
    x: Float[Array, "batch segment_length model_dim"],
    config: LlamaConfig,
) -> Float[Array, "batch segment_length vocab_size"]:
    """Returns the logits in float32, without a factor (PRE-7)."""
    x = rms_norm(x, params["final_norm_gain"], config.norm_epsilon)
    name = "embedding" if config.tied_embedding else "output_embedding"
    return jnp.einsum(
        "bqe,ve->bqv",
        x,
        params[name].astype(x.dtype),
        preferred_element_type=jnp.float32,
    )
