"""Decoding token by token, with the logits of the segment-parallel pass (GEN-1).

A decode step is a segment of one token, whose cache also holds the part of the real
segment read so far: `cache_length + segment_length` positions, of which as many count
as a segment-parallel pass would show. When a row's segment is complete, its pairs
enter the memory, and the cache shrinks to what it keeps between segments.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memorizing_jax import attention, layers, memory_shards, model, parameters
from memorizing_jax import cache as caches
from memorizing_jax import memory as memories
from memorizing_jax.cache import Cache
from memorizing_jax.config import ModelConfig
from memorizing_jax.memory import Memory
from memorizing_jax.parameters import Parameters


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeState:
    """What decoding carries from token to token.

    Attributes:
      position: [batch]; tokens of its segment that each row has read.
      num_visible: [batch]; newest positions of `caches` that a query may see.
      caches: as in `model.State`, of `cache_length + segment_length` positions.
      memories: as in `model.State`, as of each row's last complete segment.
    """

    position: jax.Array
    num_visible: jax.Array
    caches: tuple[Cache, ...]
    memories: tuple[Memory, ...]


def init_decode_state(config: ModelConfig, batch: int) -> DecodeState:
    """Returns the state before the first token."""
    return from_segments(model.init_state(config, batch), config)


def from_segments(state: model.State, config: ModelConfig) -> DecodeState:
    """Returns the state to decode from after whole segments, such as of a prompt."""
    return DecodeState(
        position=jnp.zeros_like(state.num_cached),
        num_visible=state.num_cached,
        caches=widened_caches(
            state, config, config.num_heads, parameters.groups(config)
        ),
        memories=state.memories,
    )


def widened_caches(
    state: model.State, config: ModelConfig, num_heads: int, groups: Sequence[range]
) -> tuple[Cache, ...]:
    """Returns the caches with room for a segment, whose newest positions come last.

    `groups` are the layers that have a cache together.
    """
    batch = state.num_cached.shape[0]
    length, dtype = config.segment_length, config.compute_dtype
    # Without a cache between segments, the segment's own part is all there is.
    widened = tuple(
        caches.empty(batch, length, num_heads, config.head_dim, dtype, len(group))
        for group in groups
    )
    if state.caches:
        # The newest positions are on the right, so what is blank comes first.
        widened = jax.tree.map(
            lambda *parts: jnp.concatenate(parts, axis=-3), widened, state.caches
        )
    return widened


def to_segments(state: DecodeState, config: ModelConfig) -> model.State:
    """Returns the state to read whole segments from, the inverse of `from_segments`.

    Every row must stand at the end of a segment, with `position` 0.
    """
    newest = jax.tree.map(lambda x: x[..., config.segment_length :, :, :], state.caches)
    return model.State(
        num_cached=state.num_visible,
        caches=newest if config.cache_length else (),
        memories=state.memories,
    )


def decode_step(
    params: Parameters,
    state: DecodeState,
    token: Int[Array, " batch"],
    start_of_document: Bool[Array, " batch"],
    config: ModelConfig,
) -> tuple[Float[Array, "batch vocab_size"], DecodeState]:
    """Reads one token of every row.

    Args:
      params: float32, in either layout of `parameters`.
      state: what the step before returned. Donate it where the call is jitted.
      token: the next token of each row's document.
      start_of_document: rows whose token opens a document; their segments are counted
        from here.
      config: the model's sizes; static.

    Returns:
      Logits in float32 for the token after it, and the next state.
    """
    return read_token(params, state, token, start_of_document, config)[:2]


def read_token(
    params: Parameters,
    state: DecodeState,
    token: Int[Array, " batch"],
    start_of_document: Bool[Array, " batch"],
    config: ModelConfig,
) -> tuple[Float[Array, "batch vocab_size"], DecodeState, dict[int, layers.Retrieved]]:
    """Does what `decode_step` does; returns also what each memory layer read."""
    position = jnp.where(start_of_document, 0, state.position)
    num_visible = jnp.where(start_of_document, 0, state.num_visible)
    kept = config.cache_length + config.segment_length
    mask = attention.local_mask(1, config.local_window, kept, num_visible)
    dtype = jnp.dtype(config.compute_dtype)
    x = model.embed(params, token[:, None], dtype)
    one = jnp.ones_like(position)
    new_caches, new_memories, retrieved = [], [], {}
    for cache, group in zip(state.caches, parameters.groups(config), strict=True):
        i = group[0]
        if i in config.memory_layers and state.memories:
            stored = state.memories[config.memory_layers.index(i)]
            memory = memory_shards.reset(stored, start_of_document)
            layer = parameters.of_layer(params, i)
            x, keys, values, found = layers.read_layer(
                layer, x, cache, memory, mask, config
            )
            assert found is not None
            retrieved[i] = found
            new_memories.append(memory)
            new_caches.append(caches.append(cache, keys, values, one))
        else:
            x, grown = model.read_group(params, group, x, cache, mask, one, config)
            assert grown is not None
            new_caches.append(grown)
    new_state = DecodeState(
        position=position + 1,
        num_visible=num_visible + 1,
        caches=tuple(new_caches),
        memories=tuple(new_memories),
    )
    logits = model.logits_of(params, x)[:, 0]
    return logits, _complete(new_state, x, config), retrieved


def _complete(state: DecodeState, read: jax.Array, config: ModelConfig) -> DecodeState:
    """Moves the pairs of complete segments into the memory (ORD-1).

    `read` is what the step made of what it read there; see `memory.wait_for`.
    """
    complete = state.position == config.segment_length
    # A row whose segment goes on inserts nothing yet. Cheaper than a branch, which
    # would copy the memory.
    count = memories.wait_for(jnp.where(complete, config.segment_length, 0), read)
    kept = config.cache_length
    few = jnp.minimum(state.num_visible, kept)
    # A memory layer is a group of its own.
    of_memory_layers = [
        cache
        for cache, group in zip(state.caches, parameters.groups(config), strict=True)
        if group[0] in config.memory_layers and state.memories
    ]
    return DecodeState(
        position=jnp.where(complete, 0, state.position),
        num_visible=jnp.where(complete, few, state.num_visible),
        caches=state.caches,
        memories=tuple(
            memory_shards.insert(
                memory, cache.keys[:, kept:], cache.values[:, kept:], count
            )
            for memory, cache in zip(state.memories, of_memory_layers, strict=True)
        ),
    )
