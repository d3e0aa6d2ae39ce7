"""Decoding with a pre-trained model: the counterpart of `decode` (GEN-1)."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memorizing_jax import cache as caches
from memorizing_jax import decode, llama_layer, llama_model, parameters
from memorizing_jax import llama_context as contexts
from memorizing_jax import memory as memories
from memorizing_jax.cache import Cache
from memorizing_jax.decode import DecodeState
from memorizing_jax.layers import Retrieved
from memorizing_jax.llama_config import LlamaConfig
from memorizing_jax.llama_model import LlamaState
from memorizing_jax.memory import Memory
from memorizing_jax.parameters import Parameters


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LlamaDecodeState(DecodeState):
    """What decoding carries from token to token.

    Attributes:
      num_read: [batch]; tokens of its document that each row has read.
      sinks: as in `LlamaState`.
    """

    num_read: jax.Array
    sinks: tuple[Cache, ...]


def init_decode_state(config: LlamaConfig, batch: int) -> LlamaDecodeState:
    """Returns the state before the first token."""
    return from_segments(llama_model.init_state(config, batch), config)


def from_segments(state: LlamaState, config: LlamaConfig) -> LlamaDecodeState:
    """Returns the state to decode from after whole segments, such as of a prompt."""
    every = [range(i, i + 1) for i in range(config.num_layers)]
    widened = decode.widened_caches(state, config, config.num_key_value_heads, every)
    return LlamaDecodeState(
        position=jnp.zeros_like(state.num_cached),
        num_visible=state.num_cached,
        caches=widened,
        memories=state.memories,
        num_read=state.num_read,
        sinks=state.sinks,
    )


def decode_step(
    params: Parameters,
    state: LlamaDecodeState,
    token: Int[Array, " batch"],
    start_of_document: Bool[Array, " batch"],
    config: LlamaConfig,
) -> tuple[Float[Array, "batch vocab_size"], LlamaDecodeState]:
    """Reads one token of every row; arguments and results as of `decode`."""
    return read_token(params, state, token, start_of_document, config)[:2]


def read_token(
    params: Parameters,
    state: LlamaDecodeState,
    token: Int[Array, " batch"],
    start_of_document: Bool[Array, " batch"],
    config: LlamaConfig,
) -> tuple[Float[Array, "batch vocab_size"], LlamaDecodeState, dict[int, Retrieved]]:
    """Does what `decode_step` does; returns also what each memory layer read."""
    position, num_visible, num_read = (
        jnp.where(start_of_document, 0, count)
        for count in (state.position, state.num_visible, state.num_read)
    )
    kept = config.cache_length + config.segment_length
    context = contexts.context(num_read, num_visible, kept, 1, config)
    x = params["embedding"][token[:, None]].astype(config.compute_dtype)
    one = jnp.ones_like(position)
    new_caches, new_sinks, new_memories, retrieved = [], [], [], {}
    for i in range(config.num_layers):
        layer = parameters.of_layer(params, i)
        memory = None
        if i in config.memory_layers and state.memories:
            stored = state.memories[config.memory_layers.index(i)]
            memory = memories.reset(stored, start_of_document)
            new_memories.append(memory)
        sinks = state.sinks[i] if state.sinks else None
        cache = state.caches[i]
        read = llama_layer.read(layer, x, sinks, cache, memory, context, config)
        x = read.x
        if read.found is not None:
            retrieved[i] = read.found
        new_caches.append(caches.append(cache, read.keys, read.values, one))
        if sinks is not None:
            new_sinks.append(
                contexts.keep_sinks(sinks, read.keys, read.values, num_read, one)
            )
    new_state = LlamaDecodeState(
        position=position + 1,
        num_visible=num_visible + 1,
        caches=tuple(new_caches),
        memories=tuple(new_memories),
        num_read=num_read + 1,
        sinks=tuple(new_sinks),
    )
    logits = llama_model.logits_of(params, x, config)[:, 0]
    return logits, _complete(new_state, x, config), retrieved


def _complete(
    state: LlamaDecodeState, read: jax.Array, config: LlamaConfig
) -> LlamaDecodeState:
    """Moves what complete segments leave to the memory there (ORD-1, PRE-6)."""
    length = config.segment_length
    complete = state.position == length
    whole = jnp.where(complete, length, 0)

    def insert(memory: Memory, cache: Cache) -> Memory:
        if config.combination == "gate":
            enter = jax.tree.map(lambda x: x[:, config.cache_length :], cache)
            count = whole
        else:
            before = state.num_read - length
            enter, count = contexts.leave_cache(cache, before, whole, config)
            count = jnp.where(complete, count, 0)
        count = memories.wait_for(count, read)
        return memories.insert(memory, enter.keys, enter.values, count)

    layers = config.memory_layers if state.memories else ()
    return dataclasses.replace(
        state,
        position=jnp.where(complete, 0, state.position),
        num_visible=jnp.where(
            complete,
            jnp.minimum(state.num_visible, config.cache_length),
            state.num_visible,
        ),
        memories=tuple(
            insert(memory, state.caches[layer])
            for memory, layer in zip(state.memories, layers, strict=True)
        ),
    )
