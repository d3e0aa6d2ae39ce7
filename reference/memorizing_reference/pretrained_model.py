"""A pre-trained decoder of the Llama family, with memory (PRE-1 to PRE-10).

It reads documents as `model` does: call `forward` once per segment and hand each
call the state that the one before it returned. What differs is inside: rotary
positions, grouped heads, sinks, and when a pair enters memory.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int

from memorizing_reference import cache as caches
from memorizing_reference import local_context, model, pretrained_attention
from memorizing_reference import memory as memories
from memorizing_reference.attention import sigmoid
from memorizing_reference.cache import Cache
from memorizing_reference.config import PretrainedConfig
from memorizing_reference.local_context import Sinks
from memorizing_reference.memory import Memory
from memorizing_reference.parameters import Parameters


@dataclasses.dataclass(frozen=True)
class State(model.State):
    """What the model carries from segment to segment.

    Attributes:
      sinks: one per layer (PRE-4).
    """

    sinks: tuple[Sinks, ...]


def init_state(
    config: PretrainedConfig, batch: int, dtype: type[np.floating] = np.float32
) -> State:
    """Returns the state before the first segment."""
    heads, dim = config.num_key_value_heads, config.head_dim
    cache = caches.empty(batch, config.cache_length, heads, dim, dtype)
    sinks = local_context.empty(batch, config.num_sinks, heads, dim, dtype)
    memory = memories.empty(
        batch,
        config.memory_size,
        heads,
        dim,
        dtype=config.memory_dtype,
        computed_in=dtype,
    )
    return State(
        caches=(cache,) * config.num_layers,
        memories=dict.fromkeys(config.memory_layers, memory),
        sinks=(sinks,) * config.num_layers,
    )


def forward(
    parameters: Parameters,
    state: State,
    tokens: Int[np.ndarray, "batch segment_length"],
    start_of_document: Bool[np.ndarray, " batch"],
    num_tokens: Int[np.ndarray, " batch"],
    config: PretrainedConfig,
) -> tuple[Float[np.ndarray, "batch segment_length vocab_size"], State]:
    """Reads one segment of every row (PRE-7, ORD-1).

    Arguments, results and errors are those of `model.forward`; parameters are
    named as in PRE-10.
    """
    model.require_same_kind(state, tokens, parameters)
    memories.require_num_tokens(num_tokens, tokens.shape[1])
    tokens = model.without_padding(tokens, num_tokens, config.vocab_size)

    new_caches, new_memories, new_sinks = [], {}, []
    x = parameters["embedding"][tokens]
    for i in range(config.num_layers):
        layer = model.layer_parameters(parameters, i)
        cache = caches.reset(state.caches[i], start_of_document)
        sinks = local_context.reset(state.sinks[i], start_of_document)
        memory = None
        if i in state.memories:
            memory = memories.reset(state.memories[i], start_of_document)

        normed = model.rms_norm(x, layer["attention_norm_gain"], config.norm_epsilon)
        update, keys, values = attention_layer(
            layer, normed, cache, sinks, memory, config
        )
        x = x + update
        normed = model.rms_norm(x, layer["mlp_norm_gain"], config.norm_epsilon)
        x = x + mlp(layer, normed)

        if memory is not None:
            entering = keys, values, num_tokens
            if config.combination == "joint":
                entering = local_context.leaving(sinks, cache, *entering)
            new_memories[i] = memories.insert(memory, *entering)
        new_caches.append(caches.append(cache, keys, values, num_tokens))
        new_sinks.append(local_context.append(sinks, keys, values, num_tokens))

    x = model.rms_norm(x, parameters["final_norm_gain"], config.norm_epsilon)
    output = "embedding" if config.tied_embedding else "output_embedding"
    logits = x @ parameters[output].T
    return logits, State(tuple(new_caches), new_memories, tuple(new_sinks))


def attention_layer(
    layer: Parameters,
    x: Float[np.ndarray, "batch segment_length model_dim"],
    cache: Cache,
    sinks: Sinks,
    memory: Memory | None,
    config: PretrainedConfig,
) -> tuple[
    Float[np.ndarray, "batch segment_length model_dim"],
    Float[np.ndarray, "batch segment_length num_key_value_heads head_dim"],
    Float[np.ndarray, "batch segment_length num_key_value_heads head_dim"],
]:
    """Attends locally and, in a memory layer, to what the memory retrieves.

    Returns:
      The update of the residual stream, and the segment's keys and values as
      sinks, cache and memory will keep them: not normalized and not rotated
      (PRE-1, PRE-2).
    """
    # b: batch, q: position, e: model_dim, h: head, d: head_dim
    project = "bqe,ehd->bqhd"
    queries = np.einsum(project, x, layer["query_kernel"], optimize=True)
    keys = np.einsum(project, x, layer["key_kernel"], optimize=True)
    values = np.einsum(project, x, layer["value_kernel"], optimize=True)

    context = local_context.join(sinks, cache, keys, values)
    seen = pretrained_attention.see(queries, context, config)
    if memory is None:
        output = pretrained_attention.local_attention(seen)
    else:
        queries = pretrained_attention.memory_queries(queries, config)
        slots = model.find_slots(queries, memory, config)
        if config.combination == "joint":
            output = pretrained_attention.joint(seen, queries, memory, slots)
        else:
            output = pretrained_attention.gated(
                seen, queries, memory, slots, layer["gate_bias"]
            )
    update = np.einsum("bqhd,hde->bqe", output, layer["output_kernel"], optimize=True)
    return update, keys, values


def mlp(
    layer: Parameters, x: Float[np.ndarray, "batch segment_length model_dim"]
) -> Float[np.ndarray, "batch segment_length model_dim"]:
    """Returns the update of a SwiGLU (PRE-7)."""
    gate = x @ layer["mlp_gate_kernel"]
    inside = gate * sigmoid(gate) * (x @ layer["mlp_up_kernel"])
    return inside @ layer["mlp_out_kernel"]
