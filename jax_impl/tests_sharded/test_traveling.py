"""What travels between devices, and that memories never do."""

import collections
import functools
import math
import re

import jax
import jax.numpy as jnp
from compiled_text import traveling
from memory_layer import (
    BATCH,
    DIM,
    HEADS,
    LENGTH,
    MEMORY_SIZE,
    TOP_K,
    draw_segments,
    read_and_write,
    where,
)

from memorizing_jax import memory_shards, sharding
from memorizing_jax.sharding import MeshConfig


def test_of_a_search_the_best_of_each_shard_travel_and_sums_of_the_attention():
    mesh = sharding.make_mesh(MeshConfig(data=2, memory=2, model=2))
    make = functools.partial(
        memory_shards.empty, BATCH, MEMORY_SIZE, HEADS, DIM, "float32", "exact"
    )
    memory = jax.eval_shape(make)
    memory = jax.tree.map(placed, memory, where(memory, mesh))
    with jax.set_mesh(mesh):
        lowered = read_and_write.lower(
            memory, jnp.ones(HEADS), *next(draw_segments()), engine="exact"
        )
    found = traveling(lowered.compile().as_text())
    rows, heads = BATCH // 2, HEADS // 2
    of_query = functools.partial(lambda n: (rows, heads, LENGTH, n))
    # The scale of the heads gets a sum of a few numbers, which other sums may join.
    large = collections.Counter(
        (t.kind, t.dtype, t.shape) for t in found if size(t) > heads
    )
    assert large == {
        ("all-gather", "f32", of_query(2 * TOP_K)): 1,
        ("all-gather", "s32", of_query(2 * TOP_K)): 1,
        ("all-reduce", "f32", of_query(1)): 1,
        # Of the output, and in the backward pass of the queries.
        ("all-reduce", "f32", of_query(DIM)): 2,
        # Returned here; a training step has no use for them.
        ("all-reduce", "f32", of_query(TOP_K)): 1,
    }
    # Devices are numbered along `model` first, then along `memory`.
    along_memory = "{{0,2},{1,3},{4,6},{5,7}},"
    assert {t.groups for t in found if size(t) > heads} == {along_memory}


def test_insertion_sends_nothing_and_writes_in_place():
    mesh = sharding.make_mesh(MeshConfig(data=2, memory=4))
    memory_size = 2**20
    make = functools.partial(
        memory_shards.empty, BATCH, memory_size, HEADS, DIM, "float32", "exact"
    )
    memory = jax.eval_shape(make)
    memory = jax.tree.map(placed, memory, where(memory, mesh))
    pairs = jax.ShapeDtypeStruct((BATCH, LENGTH, HEADS, DIM), jnp.float32)
    counts = jax.ShapeDtypeStruct((BATCH,), jnp.int32)
    with jax.set_mesh(mesh):
        insert = jax.jit(memory_shards.insert, donate_argnums=0)
        compiled = insert.lower(memory, pairs, pairs, counts).compile()
    assert not traveling(compiled.as_text())
    # Per device: keys and values of its rows and slots.
    stored = 2 * 4 * math.prod(memory.keys.shape) // 8
    analysis = compiled.memory_analysis()
    assert analysis.alias_size_in_bytes >= stored
    assert analysis.temp_size_in_bytes <= 8 * 4 * math.prod(pairs.shape)
    # Nothing of a memory's size is made but by writing into it.
    made = re.findall(r"= \w+\[([\d,]+)\]\S* (\w[\w-]*)\(", compiled.as_text())
    large = {
        op for sizes, op in made if math.prod(map(int, sizes.split(","))) * 16 >= stored
    }
    here = {"dynamic-update-slice", "fusion"}
    assert large <= {"parameter", "bitcast", "get-tuple-element"} | here


def placed(leaf, sharding):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def size(array):
    return math.prod(array.shape)
