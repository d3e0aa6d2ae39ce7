"""Memories and checksums of one mesh serve another."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from memory_layer import (
    BATCH,
    DIM,
    HEADS,
    MEMORY_SIZE,
    draw_segments,
    on_one_device,
    read_and_write,
    where,
)

from memorizing_jax import memory_layout, memory_shards, sharding
from memorizing_jax.checksum import checksums
from memorizing_jax.errors import InputError
from memorizing_jax.sharding import MeshConfig


@pytest.mark.parametrize(
    ("before", "now", "engine"),
    [
        ((8, 1, 1), (2, 4, 1), "exact"),
        ((1, 4, 2), (4, 2, 1), "bucketed"),
        ((2, 2, 2), (4, 2, 1), "clustered"),
        ((1, 2, 4), (2, 2, 2), "clustered"),
    ],
    ids=str,
)
def test_a_memory_goes_on_elsewhere(before, now, engine):
    """Three segments on one mesh, the others on another: all find the same."""
    meshes = [sharding.make_mesh(MeshConfig(*sizes)) for sizes in (before, now)]
    make = functools.partial(
        memory_shards.empty, BATCH, MEMORY_SIZE, HEADS, DIM, "float32", engine
    )
    shards = [mesh.shape["memory"] for mesh in meshes]
    places = [
        where(jax.eval_shape(functools.partial(make, n)), mesh)
        for n, mesh in zip(shards, meshes, strict=True)
    ]
    memory = jax.jit(functools.partial(make, shards[0]), out_shardings=places[0])()
    scale = jnp.linspace(-3.0, 4.0, HEADS)
    found = []
    segments = draw_segments()
    for mesh, count in zip(meshes, (3, None), strict=True):
        if mesh is meshes[1]:
            # From the host, as a checkpoint is read.
            memory = jax.device_put(jax.device_get(memory), places[1])
            sizes = [dict(mesh.shape) for mesh in meshes]
            (memory,) = memory_layout.moved((memory,), *sizes, (places[1],))
        with jax.set_mesh(mesh):
            for segment in itertools.islice(segments, count):
                memory, result = read_and_write(memory, scale, *segment, engine=engine)
                found.append(jax.device_get(result[0]))
    for here, (there, *_) in zip(found, on_one_device(engine)[0], strict=True):
        np.testing.assert_array_equal(here.slots, there.slots)
        np.testing.assert_array_equal(here.scores, there.scores)


def test_an_index_stays_with_its_number_of_shards():
    sizes = {"data": 4, "memory": 2, "model": 1}
    memory_layout.check("clustered", sizes, sizes | {"data": 2, "model": 2})
    memory_layout.check("exact", sizes, sizes | {"memory": 1})
    with pytest.raises(InputError, match=r"continue with 2, the other axes may"):
        memory_layout.check("clustered", sizes, sizes | {"memory": 1})


def test_checksums_do_not_depend_on_the_mesh():
    rng = np.random.default_rng(0)
    array = rng.standard_normal((8, 4, 6)).astype(np.float32)
    mesh = sharding.make_mesh(MeshConfig(4, 2, 1))
    found = [
        checksums({"x": jax.device_put(array, NamedSharding(mesh, spec))})
        for spec in (P(), P("data"), P(("memory", "data")), P(None, "data", "memory"))
    ]
    assert found == [checksums({"x": jnp.asarray(array)})] * 4
