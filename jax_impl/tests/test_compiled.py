"""What the compiler made of it: in place, in blocks, and once.

Most of this compiles for shapes alone, so that a memory of a million pairs costs
nothing.
"""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import SMALL, draw_parameters, draw_tokens

from memorizing_jax import (
    blocks,
    bucketed_search,
    memory,
    model,
    parameters,
    search,
    train_step,
)
from memorizing_jax.train_config import OptimizerConfig, TrainConfig
from memorizing_jax.train_step import Segments

LARGE, SMALLER = 1_048_576, 65_536
BATCH, HEADS, DIM, QUERIES = 1, 2, 8, 64
TOP_K = 32

# A memory of a million pairs, in two layers of a model that is small otherwise.
WIDE = SMALL.replace(memory_size=LARGE, search="bucketed", top_k=4)


@pytest.fixture(autouse=True)
def compile_afresh():
    """Keeps what was compiled before out of it: its statistics are not all kept."""
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", True)


def shapes_of(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def empty_shapes(memory_size, dtype="float32"):
    make = functools.partial(memory.empty, BATCH, memory_size, HEADS, DIM, dtype)
    return shapes_of(jax.eval_shape(make))


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def arrays_in(text):
    """Returns the operation and sizes of every array that the program makes."""
    found = re.findall(r"= \(?\w+\[([\d,]+)\]\S* (\w[\w-]*)\(", text)
    assert len(found) > 5
    return {(op, tuple(map(int, sizes.split(",")))) for sizes, op in found}


def assert_in_place(compiled, stored):
    """No copy of a stored array, and its buffers handed through."""
    kept = [x for x in jax.tree.leaves(stored) if x.ndim == 4 and LARGE in x.shape]
    num_bytes = sum(x.size * x.dtype.itemsize for x in kept)
    for op, sizes in arrays_in(compiled.as_text()):
        if math.prod(sizes) >= min(x.size for x in kept):
            assert op not in {"copy", "transpose", "concatenate", "broadcast"}, op
    used = compiled.memory_analysis()
    assert used.alias_size_in_bytes >= num_bytes
    return used.temp_size_in_bytes


def test_insertion_writes_in_place():
    """Its scratch space is that of the segment, whatever the memory holds.

    Of float32: XLA for CPUs has no scatter of bfloat16, and widens the memory.
    """
    insert = jax.jit(memory.insert, donate_argnums=0)
    stored = empty_shapes(LARGE, "float32")
    pairs = shape(BATCH, QUERIES, HEADS, DIM)
    counts = shape(BATCH, dtype=jnp.int32)
    compiled = insert.lower(stored, pairs, pairs, counts).compile()
    temp = assert_in_place(compiled, stored)
    # Slots, and keys and values as stored, twice: of 64 MiB it is a thousandth.
    assert temp <= 4 * pairs.size * 4 + 1024


def segments_of(config, batch):
    tokens = shape(batch, config.segment_length, dtype=jnp.int32)
    counts = shape(batch, dtype=jnp.int32)
    return Segments(tokens, tokens, shape(batch, dtype=jnp.bool_), counts, counts)


def test_a_forward_pass_holds_no_second_memory():
    state = jax.eval_shape(functools.partial(model.init_state, WIDE, 2))
    params = jax.eval_shape(lambda: parameters.init(WIDE, jax.random.key(0)))
    segments = segments_of(WIDE, 2)
    forward = jax.jit(model.forward, static_argnums=5, donate_argnums=1)
    compiled = forward.lower(
        params,
        state,
        segments.tokens,
        segments.start_of_document,
        segments.num_tokens,
        WIDE,
    ).compile()
    temp = assert_in_place(compiled, state)
    assert temp < state.memories[0].keys.size * 4 / 20


def test_a_training_step_holds_no_second_memory():
    config = TrainConfig(
        model=WIDE,
        optimizer=OptimizerConfig(optimizer="adamw", warmup_steps=3),
        batch=2,
    )
    run = jax.eval_shape(functools.partial(train_step.init, config))
    step = train_step.train_step_jit.lower(run, segments_of(WIDE, 2), config)
    temp = assert_in_place(step.compile(), run.model)
    assert temp < run.model.memories[0].keys.size * 4 / 20


@pytest.mark.parametrize("engine", ["exact", "bucketed", "approx_max_k"])
def test_search_never_holds_all_scores(engine):
    """Not even one number per query and slot; its space is that of a block."""
    find = jax.jit(
        functools.partial(search.find, top_k=TOP_K, engine=engine, recall_target=0.98)
    )
    queries = shape(BATCH, QUERIES, HEADS, DIM)
    temps = []
    for memory_size in (SMALLER, LARGE):
        compiled = find.lower(queries, empty_shapes(memory_size)).compile()
        # The keys themselves have fewer: a head has more queries than dimensions.
        all_scores = BATCH * HEADS * QUERIES * memory_size
        for op, sizes in arrays_in(compiled.as_text()):
            assert math.prod(sizes) < all_scores, op
        temps.append(compiled.memory_analysis().temp_size_in_bytes)
    assert temps[0] == temps[1]
    buckets, winners = bucketed_search.choose_buckets(0.98, LARGE, TOP_K)
    kept = buckets * winners if engine == "bucketed" else TOP_K
    per_query = blocks.BLOCK_SIZE + kept + TOP_K
    # Bytes: scores and slots, and as much again for what a step hands to the next.
    assert temps[0] <= 16 * BATCH * HEADS * QUERIES * per_query


def count_compilations(jitted, run):
    before = jitted._cache_size()
    run()
    return jitted._cache_size() - before


def test_a_stream_compiles_once():
    """Whatever resets, is padded or idle; the first segment included."""
    params = draw_parameters(SMALL)
    forward = jax.jit(model.forward, static_argnums=5, donate_argnums=1)
    rng = np.random.default_rng(0)

    def stream():
        state = model.init_state(SMALL, 2)
        for tokens in draw_tokens(SMALL, 5, 2):
            start, count = rng.random(2) < 0.5, rng.integers(0, 8, 2, np.int32)
            _, state, _ = forward(params, state, tokens, start, count, SMALL)
        jax.block_until_ready(state)

    assert count_compilations(forward, stream) == 1


def test_training_compiles_once(no_validation):
    config = no_validation
    length = config.model.segment_length
    step = train_step.train_step_jit
    rng = np.random.default_rng(0)

    def steps():
        run = jax.jit(lambda: train_step.init(config))()
        for _ in range(3):
            tokens = rng.integers(0, 256, (config.batch, length), np.int32)
            count = rng.integers(0, length + 1, config.batch, np.int32)
            start = rng.random(config.batch) < 0.5
            segments = Segments(tokens, tokens, start, count, count)
            run, _ = step(run, segments, config)
        jax.block_until_ready(run)

    # Another test of this process may have come first.
    assert count_compilations(step, steps) <= 1
