"""Memories of a checkpoint, laid out for a mesh other than the one that saved them.

How the pairs of a row lie in an array depends on the mesh (`memory_shards`): shards of
the slots one after the other, and an index device by device. Rows, heads and slots stay
what they are; only their places change.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from memorizing_jax.errors import InputError
from memorizing_jax.memory import Memory
from memorizing_jax.memory_shards import in_shard_order, in_slot_order
from memorizing_jax.sharding import DATA, MEMORY, MODEL

Sizes = Mapping[str, int]  # Of a mesh, by axis.


def check(search: str, before: Sizes, now: Sizes) -> None:
    """Refuses a mesh for which the index of a memory would have to be made anew.

    Raises:
      InputError: the search keeps an index, and the shards of a memory change.
    """
    if search == "clustered" and before[MEMORY] != now[MEMORY]:
        raise InputError(
            f"the checkpoint has clustered indices for --mesh.memory {before[MEMORY]}, "
            f"and this run has --mesh.memory {now[MEMORY]}; continue with "
            f"{before[MEMORY]}, the other axes may change"
        )


def moved(
    memories: tuple[Memory, ...], before: Sizes, now: Sizes, where: Any
) -> tuple[Memory, ...]:
    """Returns memories of the mesh `before` as the mesh `now` keeps them.

    Args:
      memories: as they were saved; donated.
      before: sizes of the axes of the mesh that saved them.
      now: sizes of the axes of this mesh.
      where: shardings of the result.
    """
    if before == now:
        return memories

    def move(memories: tuple[Memory, ...]) -> tuple[Memory, ...]:
        return tuple(_moved(memory, before, now) for memory in memories)

    found: tuple[Memory, ...]
    found = jax.jit(move, out_shardings=where, donate_argnums=0)(memories)
    return found


def _moved(memory: Memory, before: Sizes, now: Sizes) -> Memory:
    def pairs(stored: jax.Array) -> jax.Array:
        return in_shard_order(in_slot_order(stored, before[MEMORY]), now[MEMORY])

    batch, num_heads = memory.keys.shape[:2]

    def index(stored: jax.Array) -> jax.Array:
        # Device by device: along data, model and memory, and of each rows by heads.
        data, model, shards = before[DATA], before[MODEL], before[MEMORY]
        rows, heads = batch // data, num_heads // model
        rest = stored.shape[1:]
        by_device = stored.reshape(data, model, shards, rows, heads, *rest)
        by_row = jnp.moveaxis(by_device, (3, 2), (1, 4))
        data, model = now[DATA], now[MODEL]
        rows, heads = batch // data, num_heads // model
        by_row = by_row.reshape(data, rows, model, heads, shards, *rest)
        return jnp.moveaxis(by_row, (1, 4), (3, 2)).reshape(stored.shape)

    return dataclasses.replace(
        memory,
        keys=pairs(memory.keys),
        values=pairs(memory.values),
        index=jax.tree.map(index, memory.index),
    )
