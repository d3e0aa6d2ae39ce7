"""One memory layer on a mesh finds, reads and keeps what it does on one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from memory_layer import ENGINES, on_one_device, run

from memorizing_jax import memory_shards, sharding
from memorizing_jax.errors import InputError
from memorizing_jax.sharding import MeshConfig

MESHES = [(8, 1, 1), (4, 2, 1), (2, 2, 2), (1, 4, 2), (1, 8, 1), (1, 1, 8)]
# Sums of at most seven weighted values around one, added up in another order; in the
# gradient times the scale, and then over all queries.
TOLERANCE = 2e-6


@pytest.mark.parametrize(
    ("sizes", "engine"),
    [(sizes, "exact") for sizes in MESHES]
    + [((2, 2, 2), engine) for engine in ENGINES if engine != "exact"]
    + [((2, 4, 1), "bucketed")],
    ids=str,
)
def test_a_mesh_finds_reads_and_keeps_the_same(sizes, engine):
    mesh = sharding.make_mesh(MeshConfig(*sizes))
    (results, kept), (expected, expected_kept) = (
        run(mesh, engine),
        on_one_device(engine),
    )
    for here, there in zip(results, expected, strict=True):
        (found, *rest), (expected_found, *expected_rest) = here, there
        np.testing.assert_array_equal(found.slots, expected_found.slots)
        np.testing.assert_array_equal(found.scores, expected_found.scores)
        for x, y in zip(
            jax.tree.leaves(rest), jax.tree.leaves(expected_rest), strict=True
        ):
            np.testing.assert_allclose(
                x, y, rtol=TOLERANCE, atol=TOLERANCE * max(1.0, np.abs(y).max())
            )
    for x, y in zip(kept, expected_kept, strict=True):
        np.testing.assert_array_equal(x, y)


def test_slots_that_do_not_divide_are_refused():
    """Of any memory, such as one of another size in an evaluation."""
    memory = memory_shards.empty(1, 25, 2, 3, "float32", "exact")
    mesh = sharding.make_mesh(MeshConfig(1, 8, 1))
    with (
        jax.set_mesh(mesh),
        pytest.raises(InputError, match="memory_size is 25, which 8 shards"),
    ):
        memory_shards.reset(memory, jnp.ones(1, bool))


def test_slot_order_is_that_of_insertion():
    """Of three shards each holds every third slot."""
    slots = np.arange(6.0, dtype=np.float32).reshape(1, 1, 6, 1)
    stored = memory_shards.in_shard_order(jnp.asarray(slots), 3)
    assert stored.ravel().tolist() == [0, 3, 1, 4, 2, 5]
    assert memory_shards.in_slot_order(stored, 3).ravel().tolist() == [*range(6)]
