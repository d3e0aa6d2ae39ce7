"""Memories on a mesh of devices: searched, read and written where they are.

XLA's partitioner cannot know that a row's queries meet that row's pairs alone, so it
is told here. Of `S` shards along the mesh axis `memory`, slot `s` is on shard `s % S`,
and is slot `s // S` there. So a shard holds every `S`-th pair of a document and is a
memory of its own, with its own ring, buckets and index: all engines work on it as they
are. Buckets of BKT-1 whose number is a multiple of `S` lie on one shard each. An array
of a sharded memory holds the shards one after the other; see `in_slot_order`.

What travels, along `memory` alone: of a search the scores and slots of the best
`top_k` of each shard; of the attention its sum over a shard's neighbors, and the
gradient of the queries. Of an insertion nothing. Without a mesh, or on one of a single
device, these functions are those they are named after.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from memorizing_jax import attention, bucketed_search, search, sharding
from memorizing_jax import index as indices
from memorizing_jax import memory as memories
from memorizing_jax.config import SearchEngine
from memorizing_jax.errors import InputError
from memorizing_jax.memory import Memory
from memorizing_jax.search import Found
from memorizing_jax.sharding import DATA, MEMORY, MODEL

# [batch, position, num_heads, head_dim], and [batch, num_heads, position, neighbor].
_POSITIONS, _NEIGHBORS = P(DATA, None, MODEL, None), P(DATA, MODEL, None, None)


def empty(
    batch: int,
    memory_size: int,
    num_heads: int,
    head_dim: int,
    dtype: str,
    engine: SearchEngine,
    shards: int = 1,
) -> Memory:
    """Returns what `memory.empty` does, for a mesh with so many shards of a memory."""
    whole = memories.empty(batch, memory_size, num_heads, head_dim, dtype)
    rows, slots = batch * shards, memory_size // shards
    index = indices.empty(engine, rows, slots, num_heads, head_dim)
    return dataclasses.replace(whole, index=index)


def reset(memory: Memory, start_of_document: Bool[Array, " batch"]) -> Memory:
    """Does what `memory.reset` does."""
    mesh = sharding.current()
    if mesh is None:
        return memories.reset(memory, start_of_document)
    specs = _specs(memory, mesh)
    return jax.shard_map(
        memories.reset, in_specs=(specs, P(DATA)), out_specs=specs, check_vma=False
    )(memory, start_of_document)


def find(
    queries: Float[Array, "batch segment_length num_heads head_dim"],
    memory: Memory,
    *,
    top_k: int,
    engine: SearchEngine = "bucketed",
    recall_target: float = 0.98,
) -> Found:
    """Returns what `search.find` does: every shard's best, merged (KNN-1, BKT-1)."""
    mesh = sharding.current()

    def of_shard(queries: jax.Array, memory: Memory, shards: int) -> Found:
        return search.find(
            queries,
            memory,
            top_k=top_k,
            engine=engine,
            recall_target=recall_target,
            shards=shards,
        )

    if mesh is None:
        return of_shard(queries, memory, 1)
    shards = mesh.shape[MEMORY]

    def merged(queries: jax.Array, memory: Memory) -> Found:
        shard = jax.lax.axis_index(MEMORY)
        found = of_shard(queries, _shard(memory, shard, shards), shards)
        slots = jnp.where(found.slots >= 0, found.slots * shards + shard, -1)
        if shards == 1:
            return found
        scores, slots = bucketed_search.best_survivors(
            _gathered(found.scores), _gathered(slots), top_k
        )
        return Found(jnp.where(jnp.isneginf(scores), -1, slots), scores)

    # No gradient passes here. Engines begin with constants, of which JAX would have to
    # be told that they stand for something different on each device.
    return jax.shard_map(
        merged,
        in_specs=(_POSITIONS, _specs(memory, mesh)),
        out_specs=_NEIGHBORS,
        check_vma=False,
    )(*jax.lax.stop_gradient((queries, memory)))


def attend(
    queries: Float[Array, "batch segment_length num_heads head_dim"],
    memory: Memory,
    found: Found,
    attention_scale: Float[Array, " num_heads"],
) -> tuple[
    Float[Array, "batch segment_length num_heads head_dim"],
    Float[Array, "batch num_heads segment_length top_k"],
]:
    """Returns what `attention.memory_attention` does.

    Every shard reads those of the neighbors that it holds.
    """
    mesh = sharding.current()
    if mesh is None:
        return attention.memory_attention(queries, memory, found.slots, attention_scale)
    shards = mesh.shape[MEMORY]

    def summed(
        queries: jax.Array, memory: Memory, found: Found, attention_scale: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        if shards == 1:
            return attention.memory_attention(
                queries, memory, found.slots, attention_scale
            )
        here = found.slots % shards == jax.lax.axis_index(MEMORY)
        slots = jnp.where((found.slots >= 0) & here, found.slots // shards, -1)
        logits, values = attention.neighbors(queries, memory, slots, attention_scale)
        # The search knows the largest score of all shards, but for rounding.
        best = jnp.where(found.slots[..., :1] >= 0, found.scores[..., :1], 0.0)
        peak = best * jnp.abs(attention_scale)[None, :, None, None]
        # Masked before, not after: what overflows has no gradient, not even of 0.
        logits = jnp.where(slots >= 0, logits, -jnp.inf)
        weights = jnp.exp(logits - jax.lax.stop_gradient(peak))
        output = jnp.einsum("bhqn,bhqnd->bhqd", weights.astype(values.dtype), values)
        total, output, weights = jax.lax.psum(
            (weights.sum(axis=-1, keepdims=True), output, weights), MEMORY
        )
        total = jnp.where(total > 0.0, total, 1.0)
        output = output / total.astype(output.dtype)
        return output.swapaxes(1, 2), weights / total

    return jax.shard_map(
        summed,
        in_specs=(_POSITIONS, _specs(memory, mesh), _NEIGHBORS, P(MODEL)),
        out_specs=(_POSITIONS, _NEIGHBORS),
        check_vma=shards > 1,
    )(queries, jax.lax.stop_gradient(memory), found, attention_scale)


def insert(
    memory: Memory,
    keys: Float[Array, "batch segment_length num_heads head_dim"],
    values: Float[Array, "batch segment_length num_heads head_dim"],
    num_tokens: Int[Array, " batch"],
) -> Memory:
    """Does what `memory.insert` does: every shard takes up its own pairs."""
    mesh = sharding.current()
    if mesh is None:
        return memories.insert(memory, keys, values, num_tokens)
    shards = mesh.shape[MEMORY]

    def of_shard(
        memory: Memory, keys: jax.Array, values: jax.Array, num_tokens: jax.Array
    ) -> Memory:
        if shards == 1:
            return memories.insert(memory, keys, values, num_tokens)
        shard, length = jax.lax.axis_index(MEMORY), keys.shape[1]
        # Of each row the first position that belongs here, and every one after.
        first = (shard - memory.num_written) % shards
        step = jnp.arange(0, length, shards, dtype=jnp.int32)
        position = jnp.minimum(first[:, None] + step[None, :], length - 1)
        mine = jnp.maximum(num_tokens - first + shards - 1, 0) // shards
        keys, values = (
            jnp.take_along_axis(x, position[:, :, None, None], axis=1)
            for x in (keys, values)
        )
        grown = memories.insert(_shard(memory, shard, shards), keys, values, mine)
        written = memory.num_written + num_tokens
        return dataclasses.replace(grown, num_written=written)

    specs = _specs(memory, mesh)
    return jax.shard_map(
        of_shard,
        in_specs=(specs, _POSITIONS, _POSITIONS, P(DATA)),
        out_specs=specs,
        check_vma=False,  # As in `find`.
    )(memory, *jax.lax.stop_gradient((keys, values)), num_tokens)


def first_not_finite(
    queries: Float[Array, "batch segment_length num_heads head_dim"], memory: Memory
) -> search.NotFinite:
    """Returns what `search.first_not_finite` does."""
    mesh = sharding.current()
    shards = mesh.shape[MEMORY] if mesh else 1
    keys = in_slot_order(memory.keys, shards)
    return search.first_not_finite(queries, dataclasses.replace(memory, keys=keys))


def in_slot_order(
    stored: Float[Array, "batch num_heads memory_size head_dim"], shards: int
) -> Float[Array, "batch num_heads memory_size head_dim"]:
    """Returns the keys or values of a memory of so many shards, slot by slot."""
    batch, heads, size, dim = stored.shape
    by_shard = stored.reshape(batch, heads, shards, size // shards, dim)
    return by_shard.swapaxes(2, 3).reshape(stored.shape)


def in_shard_order(
    stored: Float[Array, "batch num_heads memory_size head_dim"], shards: int
) -> Float[Array, "batch num_heads memory_size head_dim"]:
    """Returns the inverse of `in_slot_order`."""
    return in_slot_order(stored, stored.shape[2] // shards)


def _shard(memory: Memory, shard: jax.Array, shards: int) -> Memory:
    """Returns a device's part of a memory, as a memory that counts its own pairs."""
    written = (memory.num_written - shard + shards - 1) // shards
    return dataclasses.replace(memory, num_written=written)


def _gathered(candidates: jax.Array) -> jax.Array:
    """Returns the candidates of all shards, side by side."""
    return jax.lax.all_gather(candidates, MEMORY, axis=3, tiled=True)


def _specs(memory: Memory, mesh: AbstractMesh) -> Any:
    shards = mesh.shape[MEMORY]
    if memory.memory_size % shards:
        raise InputError(
            f"memory_size is {memory.memory_size}, which {shards} shards of the mesh "
            "axis memory do not divide; choose a multiple, or another --mesh.memory"
        )
    of_state = sharding.specs({"model": {"memories": (memory,)}}, mesh)
    return of_state["model"]["memories"][0]
