"""The model: one segment of every row in, logits and the next state out.

Port of `memorizing_reference.model`: the same function, pure and jittable, on an
explicit state. It differs in these ways: activations may be bfloat16, search may
be approximate, and a cache or memory of length zero is no array at all.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memorizing_jax import attention, layers, memory_shards, parameters, sharding
from memorizing_jax import cache as caches
from memorizing_jax import memory as memories
from memorizing_jax.cache import Cache
from memorizing_jax.config import ModelConfig
from memorizing_jax.layers import Retrieved
from memorizing_jax.memory import Memory
from memorizing_jax.parameters import Parameters
from memorizing_jax.sharding import DATA


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """What the model carries from segment to segment.

    Attributes:
      num_cached: [batch]; filled positions of every layer's cache (LOC-3).
      caches: one per group of `parameters.groups`, those of several layers stacked
        along a leading axis; none where `cache_length` is 0.
      memories: one per memory layer, in the order of `config.memory_layers`; none
        where `memory_size` is 0.
    """

    num_cached: jax.Array
    caches: tuple[Cache, ...]
    memories: tuple[Memory, ...]


class Pairs(NamedTuple):
    """What a memory layer will insert (MEM-7).

    Attributes:
      keys: normalized, as the memory keeps them.
      values: that belong to them.
      num_tokens: how many of each row; known when the memory has been read.
    """

    keys: Float[Array, "batch segment_length num_heads head_dim"]
    values: Float[Array, "batch segment_length num_heads head_dim"]
    num_tokens: Int[Array, " batch"]


class Read(NamedTuple):
    """What reading a segment gives.

    Attributes:
      logits: for the token that follows each position, in float32.
      caches: for the next segment, as in `State`.
      pairs: by memory layer, what its memory takes up.
      retrieved: by memory layer, what it read.
    """

    logits: Float[Array, "batch segment_length vocab_size"]
    caches: tuple[Cache, ...]
    pairs: dict[int, Pairs]
    retrieved: dict[int, Retrieved]


def init_state(config: ModelConfig, batch: int, shards: int = 1) -> State:
    """Returns the state before the first segment: empty caches and memories.

    `shards` is the size of the mesh axis `memory`, of which an index depends.
    """
    heads, dim = config.num_heads, config.head_dim
    groups = parameters.groups(config) if config.cache_length else ()
    num_memories = len(config.memory_layers) if config.memory_size else 0
    length, size = config.cache_length, config.memory_size
    # Each array its own buffer: the step donates them, and none twice.
    return State(
        num_cached=jnp.zeros(batch, jnp.int32),
        caches=tuple(
            caches.empty(batch, length, heads, dim, config.compute_dtype, len(group))
            for group in groups
        ),
        memories=tuple(
            memory_shards.empty(
                batch, size, heads, dim, config.memory_dtype, config.search, shards
            )
            for _ in range(num_memories)
        ),
    )


def forward(
    params: Parameters,
    state: State,
    tokens: Int[Array, "batch segment_length"],
    start_of_document: Bool[Array, " batch"],
    num_tokens: Int[Array, " batch"],
    config: ModelConfig,
) -> tuple[
    Float[Array, "batch segment_length vocab_size"], State, dict[int, Retrieved]
]:
    """Reads one segment of every row (MOD-1, ORD-1).

    Args:
      params: float32, in either layout of `parameters`. Groups of stacked layers
        are scanned, those of flat ones written out one after the other.
      state: what the call for the segment before returned. Donate it where the
        call is jitted, and the memory is written in place.
      tokens: the segment; what stands behind `num_tokens` is padding (SEG-1).
      start_of_document: rows whose segment opens a document (SEG-2).
      num_tokens: real tokens of each row.
      config: the model's sizes; static.

    Returns:
      Logits in float32 for the token that follows each position (those at padded
      positions mean nothing), the next state, and what each memory layer
      retrieved, by layer.
    """
    state = reset(state, start_of_document)
    found = read(params, state, tokens, num_tokens, config)
    after = insert(state, found.caches, found.pairs, num_tokens, config)
    return found.logits, after, found.retrieved


def reset(state: State, start_of_document: Bool[Array, " batch"]) -> State:
    """Forgets everything in the rows that open a new document (LOC-3, MEM-5)."""
    return State(
        num_cached=jnp.where(start_of_document, 0, state.num_cached),
        caches=state.caches,
        memories=tuple(
            memory_shards.reset(memory, start_of_document) for memory in state.memories
        ),
    )


def read(
    params: Parameters,
    state: State,
    tokens: Int[Array, "batch segment_length"],
    num_tokens: Int[Array, " batch"],
    config: ModelConfig,
) -> Read:
    """Reads one segment of every row, and leaves the memories as they are.

    The arguments are those of `forward`, the state one that was reset.
    """
    dtype = jnp.dtype(config.compute_dtype)
    position = jnp.arange(tokens.shape[1], dtype=jnp.int32)
    tokens = jnp.where(position[None, :] < num_tokens[:, None], tokens, 0)
    mask = attention.local_mask(
        tokens.shape[1], config.local_window, config.cache_length, state.num_cached
    )
    new_caches, pairs, retrieved = [], {}, {}
    x = embed(params, tokens, dtype)
    for g, group in enumerate(parameters.groups(config)):
        cache = state.caches[g] if state.caches else None
        i = group[0]
        if i in config.memory_layers and state.memories:
            memory = state.memories[config.memory_layers.index(i)]
            layer = parameters.of_layer(params, i)
            x, keys, values, found = layers.layer_function(config)(
                layer, x, cache, memory, mask
            )
            cache = cache and caches.append(cache, keys, values, num_tokens)
            assert found is not None
            pairs[i] = Pairs(keys, values, memories.wait_for(num_tokens, x))
            retrieved[i] = found
        else:
            x, cache = read_group(params, group, x, cache, mask, num_tokens, config)
        if cache is not None:
            new_caches.append(cache)
    return Read(logits_of(params, x), tuple(new_caches), pairs, retrieved)


def insert(
    state: State,
    new_caches: tuple[Cache, ...],
    pairs: dict[int, Pairs],
    num_tokens: Int[Array, " batch"],
    config: ModelConfig,
) -> State:
    """Returns the state for the next segment: what was read enters the memories."""
    return State(
        num_cached=jnp.minimum(config.cache_length, state.num_cached + num_tokens),
        caches=new_caches,
        memories=tuple(
            memory_shards.insert(memory, *jax.lax.stop_gradient(pairs[i]))
            for memory, i in zip(state.memories, config.memory_layers, strict=False)
        ),
    )


def embed(
    params: Parameters, tokens: Int[Array, "batch segment_length"], dtype: jnp.dtype
) -> Float[Array, "batch segment_length model_dim"]:
    """Returns the embeddings of tokens, unscaled (MOD-1)."""
    table = sharding.gathered(params, "embedding", dtype)
    return sharding.constrain(table[tokens], DATA, None, None)


def read_group(
    params: Parameters,
    group: range,
    x: Float[Array, "batch segment_length model_dim"],
    cache: Cache | None,
    mask: Bool[Array, "batch segment_length local_length"],
    num_tokens: Int[Array, " batch"],
    config: ModelConfig,
) -> tuple[Float[Array, "batch segment_length model_dim"], Cache | None]:
    """Runs a group of layers, none of which has a memory to read.

    Returns:
      The residual stream after the last of them, and what the next segment finds
      in their caches.
    """
    function = layers.layer_function(config)

    def one_layer(
        x: jax.Array, layer_and_cache: tuple[Parameters, Cache | None]
    ) -> tuple[jax.Array, Cache | None]:
        layer, cache = layer_and_cache
        x, keys, values, _ = function(layer, x, cache, None, mask)
        return x, cache and caches.append(cache, keys, values, num_tokens)

    if len(group) == 1:
        return one_layer(x, (parameters.of_layer(params, group[0]), cache))
    stacked = parameters.of_group(params, group)
    scanned = stacked or parameters.of_group(parameters.stack(params, config), group)
    return jax.lax.scan(one_layer, x, (scanned, cache), unroll=not stacked)


def logits_of(
    params: Parameters, x: Float[Array, "batch segment_length model_dim"]
) -> Float[Array, "batch segment_length vocab_size"]:
    """Returns `rms_norm(x) embedding^T / sqrt(E)` in float32 (MOD-1)."""
    x = layers.rms_norm(x, params["final_norm_gain"])
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    table = sharding.gathered(params, "embedding", x.dtype)
    logits = product("bqe,ve->bqv", x, table)
    return logits / jnp.sqrt(jnp.float32(x.shape[-1]))
