"""One memory layer, as a function of a memory and a segment, on any mesh.

Keys and queries are multiples of 1/8, so that scores are exact and ties are real.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from memorizing_jax import memory_shards, sharding
from memorizing_jax.memory import Memory
from memorizing_jax.sharding import MeshConfig

# No two sizes alike, and all divide over every mesh below but the segment, which also
# is longer than the memory.
BATCH, HEADS, DIM, LENGTH, MEMORY_SIZE, TOP_K = 8, 16, 5, 29, 24, 7
ENGINES = {"exact": 1.0, "bucketed": 0.6, "approx_max_k": 0.9, "clustered": 1.0}


def draw_segments():
    """Draws segments of which rows begin anew, are padded, idle, wrap or overflow."""
    rng = np.random.default_rng(0)
    shape = (BATCH, LENGTH, HEADS, DIM)
    for most in (9, 9, LENGTH, 9, 14):
        # Few keys, so that many scores tie.
        queries, keys, values = (
            (rng.integers(-high, high + 1, shape) / 8).astype(np.float32)
            for high in (2, 2, 16)
        )
        start = rng.random(BATCH) < 0.2
        counts = rng.integers(0, most + 1, BATCH, np.int32)
        yield queries, keys, values, start, counts


@functools.partial(jax.jit, static_argnames="engine", donate_argnums=0)
def read_and_write(memory, scale, queries, keys, values, start, counts, engine):
    memory = memory_shards.reset(memory, start)
    found = memory_shards.find(
        queries,
        memory,
        top_k=TOP_K,
        engine=engine,
        recall_target=ENGINES[engine],
    )

    def read(queries, scale):
        output, weights = memory_shards.attend(queries, memory, found, scale)
        # Any function of the output with a gradient that differs everywhere.
        return jnp.sum(jnp.sin(output)), (output, weights)

    gradient = jax.grad(read, argnums=(0, 1), has_aux=True)
    gradients, (output, weights) = gradient(queries, scale)
    memory = memory_shards.insert(memory, keys, values, counts)
    return memory, (found, output, weights, gradients)


def run(mesh, engine):
    """Returns what each segment read, and the memory slot by slot at the end."""
    shards = mesh.shape["memory"]
    make = functools.partial(
        memory_shards.empty, BATCH, MEMORY_SIZE, HEADS, DIM, "float32", engine, shards
    )
    memory = jax.jit(make, out_shardings=where(jax.eval_shape(make), mesh))()
    # The last is so large that exponentials overflow unless the largest is taken off.
    scale = jnp.linspace(-3.0, 4.0, HEADS).at[-1].set(600.0)
    results = []
    with jax.set_mesh(mesh):
        for segment in draw_segments():
            memory, result = read_and_write(memory, scale, *segment, engine=engine)
            results.append(jax.tree.map(np.asarray, result))
    pairs = (
        memory_shards.in_slot_order(x, shards) for x in (memory.keys, memory.values)
    )
    return results, [*map(np.asarray, pairs), np.asarray(memory.num_written)]


def where(memory: Memory, mesh):
    of_state = sharding.shardings({"model": {"memories": (memory,)}}, mesh)
    return of_state["model"]["memories"][0]


@functools.cache
def on_one_device(engine):
    return run(sharding.make_mesh(MeshConfig(), jax.devices()[:1]), engine)
