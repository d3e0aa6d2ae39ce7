"""The kernels of bucketed search: interpreted, and as the TPU compiler takes them.

No kernel runs on its hardware here. Interpreted, both give what bucketed search gives;
the TPU compiler accepts the one, and the other can be lowered to Triton.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled_text import largest_made
from helpers import holding
from jax.sharding import PartitionSpec as P
from search_cases import NUM_WRITTEN, draw

from memorizing_jax import (
    bucketed_search,
    memory,
    pallas_gpu,
    pallas_search,
    pallas_tpu,
    search,
    tpu_compiler,
)

LARGE, SMALLER = 1_048_576, 65_536


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Cuts these few queries and slots into several tiles and blocks."""
    monkeypatch.setattr(pallas_tpu, "MAX_QUERY_TILE", 16)
    monkeypatch.setattr(pallas_tpu, "MIN_BLOCK_SIZE", 256)
    monkeypatch.setattr(pallas_gpu, "QUERY_TILE", 16)


@pytest.mark.rule("BKT-1")
@pytest.mark.parametrize("kernel", [pallas_tpu.winners, pallas_gpu.winners])
@pytest.mark.parametrize(
    ("memory_size", "num_buckets", "winners", "top_k", "stored", "queried"),
    [
        # One block, in part; several columns to a bucket.
        (37, 4, 1, 3, "float32", "float32"),
        # Three blocks; the last in part, or not at all; a bucket to a column.
        (700, 128, 2, 9, "float32", "float32"),
        # Columns in two groups; fewer survivors than neighbors.
        (300, 256, 1, 300, "bfloat16", "float32"),
        # Three winners of few buckets.
        (260, 2, 3, 5, "bfloat16", "bfloat16"),
    ],
)
def test_interpreted_kernels_equal_bucketed_search(
    monkeypatch, memory_size, num_buckets, winners, top_k, stored, queried, kernel
):
    monkeypatch.setattr(pallas_tpu, "winners", kernel)  # What the interpreter runs.
    sizes = {
        "top_k": top_k,
        "num_buckets": num_buckets,
        "winners_per_bucket": winners,
    }
    by_kernel, by_blocks = (
        jax.jit(functools.partial(module.top_k, **sizes))
        for module in (pallas_search, bucketed_search)
    )
    # Without a tie; then with many, where most scores are zero, of either sign.
    for seed, above in enumerate((None, 1)):
        queries, keys = draw(memory_size, seed, above)
        # More queries than a tile has rows.
        queries = jnp.asarray(np.tile(queries, (1, 2, 1, 1)), queried).swapaxes(1, 2)
        held = holding(keys, NUM_WRITTEN, stored)
        expected = by_blocks(queries, held.keys, held.num_valid)
        score, slots = by_kernel(queries, held.keys, held.num_valid)
        np.testing.assert_array_equal(score, expected[0])
        found = np.isfinite(score)
        np.testing.assert_array_equal(found, np.isfinite(expected[0]))
        np.testing.assert_array_equal(
            np.where(found, slots, -1), np.where(found, expected[1], -1)
        )
        assert found.sum(axis=(1, 2, 3))[0] == 0
        assert found[1:].any(axis=(1, 2, 3)).all()
        assert not np.signbit(score[found & (score == 0)]).any()


def test_a_kernel_runs_on_each_device_of_a_mesh():
    """Of any number of buckets: it rounds up to a power of two."""
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, sizes = P("data"), {"top_k": 4, "winners_per_bucket": 1}
    find = functools.partial(pallas_search.top_k, num_buckets=5, **sizes)
    on_mesh = jax.shard_map(
        find, mesh=mesh, in_specs=(rows, rows, rows), out_specs=rows, check_vma=False
    )
    queries, keys = draw(37, 0)
    held = holding(keys, NUM_WRITTEN)
    args = jnp.asarray(queries).swapaxes(1, 2), held.keys, held.num_valid
    expected = bucketed_search.top_k(*args, num_buckets=8, **sizes)
    np.testing.assert_array_equal(jax.jit(on_mesh)(*args)[0], expected[0])


def test_the_gpu_kernel_lowers_to_triton_without_a_gpu():
    find = functools.partial(
        pallas_search.top_k, top_k=32, num_buckets=128, winners_per_bucket=2
    )
    for dtype in (jnp.float32, jnp.bfloat16):
        shape = functools.partial(jax.ShapeDtypeStruct, dtype=dtype)
        counts = jax.ShapeDtypeStruct((2,), jnp.int32)
        args = shape((2, 3, 70, 96)), shape((2, 3, SMALLER, 96)), counts
        lowered = jax.jit(find).trace(*args).lower(lowering_platforms=("cuda",))
        assert "__gpu$xla.gpu.triton" in lowered.as_text()


def compiled_kernel(topology, memory_size, head_dim, dtype):
    """Compiles the kernel alone, as for 32 neighbors at a recall of 0.98."""
    pytest.importorskip("libtpu")
    shape, heads, segment_length = jax.ShapeDtypeStruct, 4, 512
    args = (
        shape((heads, segment_length, head_dim), dtype),
        shape((heads, memory_size, head_dim), dtype),
        shape((heads,), jnp.int32),
    )
    run = functools.partial(pallas_tpu.winners, num_columns=128, winners_per_column=2)
    args = tpu_compiler.placed(args, tpu_compiler.one_device(topology))
    return tpu_compiler.compiled(jax.jit(run).lower(*args))


@pytest.fixture
def real_tiles(monkeypatch):
    """Undoes `small_tiles`."""
    monkeypatch.undo()


@pytest.mark.usefixtures("real_tiles")
@pytest.mark.parametrize("topology", ["v4:2x2x1", "v5p:2x2x1", "v6e:2x2"])
def test_the_compiler_of_every_tpu_accepts_the_kernel(topology):
    compiled = compiled_kernel(topology, SMALLER, 128, jnp.bfloat16)
    assert "tpu_custom_call" in compiled.as_text()
    assert compiled.memory_analysis().temp_size_in_bytes == 0


@pytest.mark.usefixtures("real_tiles")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_on_v5e_the_kernel_takes_keys_as_they_lie(head_dim, dtype):
    """It makes no scores and no copy of the keys; of narrow queries, at most."""
    compiled = compiled_kernel("v5e:2x2", LARGE, head_dim, dtype)
    assert compiled.memory_analysis().temp_size_in_bytes == 0
    assert "tpu_custom_call" in compiled.as_text()
    assert largest_made(compiled) <= 4 * 512 * head_dim


@pytest.mark.usefixtures("real_tiles")
def test_on_v5e_a_search_holds_neither_scores_nor_a_second_memory():
    pytest.importorskip("libtpu")
    batch, heads, head_dim, segment_length = 1, 2, 64, 256
    empty = functools.partial(memory.empty, batch, SMALLER, heads, head_dim)
    queries = jax.ShapeDtypeStruct((batch, segment_length, heads, head_dim), "float32")
    find = functools.partial(search.find, top_k=32, engine="pallas")
    args = queries, jax.eval_shape(empty)
    args = tpu_compiler.placed(args, tpu_compiler.one_device())
    compiled = tpu_compiler.compiled(jax.jit(find).lower(*args))
    # Scores and slots of 128 buckets, two of each, and what selects among them.
    survivors = batch * heads * segment_length * 256
    assert largest_made(compiled) == survivors
    assert compiled.memory_analysis().temp_size_in_bytes < 16 * survivors
