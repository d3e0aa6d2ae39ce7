"""Decoders of the Llama family, with a memory: one segment of every row (PRE).

The counterpart of `model` for models that were trained without memory. State,
memories, searches and what is returned are the same, but for the sinks.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memorizing_jax import cache as caches
from memorizing_jax import llama_context as contexts
from memorizing_jax import llama_layer, parameters
from memorizing_jax import memory as memories
from memorizing_jax.cache import Cache
from memorizing_jax.layers import Retrieved, rms_norm
from memorizing_jax.llama_config import LlamaConfig
from memorizing_jax.model import Pairs, Read, State
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
    state = reset(state, start_of_document)
    found = read(params, state, tokens, num_tokens, config)
    after = insert(state, found.caches, found.pairs, num_tokens, config)
    return found.logits, after, found.retrieved


def reset(state: LlamaState, start_of_document: Bool[Array, " batch"]) -> LlamaState:
    """Forgets everything in the rows that open a new document (LOC-3, MEM-5)."""
    return dataclasses.replace(
        state,
        num_cached=jnp.where(start_of_document, 0, state.num_cached),
        num_read=jnp.where(start_of_document, 0, state.num_read),
        memories=tuple(
            memories.reset(memory, start_of_document) for memory in state.memories
        ),
    )


def read(
    params: Parameters,
    state: LlamaState,
    tokens: Int[Array, "batch segment_length"],
    num_tokens: Int[Array, " batch"],
    config: LlamaConfig,
) -> Read:
    """Does what `model.read` does; caches are those of the state, then its sinks."""
    dtype = jnp.dtype(config.compute_dtype)
    position = jnp.arange(tokens.shape[1], dtype=jnp.int32)
    tokens = jnp.where(position[None, :] < num_tokens[:, None], tokens, 0)
    context = contexts.context(
        state.num_read, state.num_cached, config.cache_length, tokens.shape[1], config
    )
    new_caches, new_sinks, pairs, retrieved = [], [], {}, {}
    x = params["embedding"][tokens].astype(dtype)
    for i in range(config.num_layers):
        layer = parameters.of_layer(params, i)
        cache = state.caches[i] if state.caches else None
        sinks = state.sinks[i] if state.sinks else None
        memory = None
        if i in config.memory_layers and state.memories:
            memory = state.memories[config.memory_layers.index(i)]

        read = llama_layer.read(layer, x, sinks, cache, memory, context, config)
        x = read.x
        new = read.keys, read.values
        if cache is not None:
            new_caches.append(caches.append(cache, *new, num_tokens))
        if sinks is not None:
            new_sinks.append(
                contexts.keep_sinks(sinks, *new, state.num_read, num_tokens)
            )
        if read.found is not None:
            enter, count = entering(read, state.num_read, num_tokens, config)
            count = memories.wait_for(count, read.update)
            pairs[i] = Pairs(enter.keys, enter.values, count)
            retrieved[i] = read.found
    kept = *new_caches, *new_sinks
    return Read(logits_of(params, x, config), kept, pairs, retrieved)


def insert(
    state: LlamaState,
    kept: tuple[Cache, ...],
    pairs: dict[int, Pairs],
    num_tokens: Int[Array, " batch"],
    config: LlamaConfig,
) -> LlamaState:
    """Does what `model.insert` does."""
    num_read = state.num_read + num_tokens
    return LlamaState(
        num_cached=jnp.minimum(config.cache_length, num_read),
        num_read=num_read,
        caches=kept[: len(state.caches)],
        sinks=kept[len(state.caches) :],
        memories=tuple(
            memories.insert(memory, *pairs[i])
            for memory, i in zip(state.memories, config.memory_layers, strict=False)
        ),
    )


def entering(
    read: llama_layer.Read,
    num_read: Int[Array, " batch"],
    num_tokens: Int[Array, " batch"],
    config: LlamaConfig,
) -> tuple[Cache, Int[Array, " batch"]]:
    """Returns the pairs that enter the memory after a segment, and how many (PRE-6)."""
    if config.combination == "gate":
        return Cache(read.keys, read.values), num_tokens
    return contexts.leave_cache(read.local, num_read, num_tokens, config)


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
