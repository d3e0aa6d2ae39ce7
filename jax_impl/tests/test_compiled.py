"""What the compiler made of it: in place, in blocks, and once.

Most of this compiles for shapes alone, so that a memory of a million pairs costs
nothing.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled_text import arrays_in
from helpers import SMALL, draw_parameters, draw_tokens

from memorizing_jax import (
    blocks,
    bucketed_search,
    decode,
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

# A memory of a million pairs in a model that is small otherwise.
WIDE = SMALL.replace(
    num_layers=1, memory_layers=(0,), memory_size=LARGE, search="bucketed"
)
# Bytes, a twentieth of its keys: far from a copy of them, and more than all else.
LITTLE = 2 * 2 * LARGE * 5 * 4 // 20


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def empty_shapes(memory_size, dtype="float32"):
    make = functools.partial(memory.empty, BATCH, memory_size, HEADS, DIM, dtype)
    return jax.eval_shape(make)


def assert_in_place(compiled, stored):
    """Nothing of a memory's size is made, and its buffers are handed through.

    What is handed in, looked at in another form, or updated in part is not made.
    Returns the bytes of scratch space.
    """
    made = {op for op, sizes in arrays_in(compiled) if math.prod(sizes) >= 4 * LARGE}
    here = {"dynamic-update-slice", "fusion"}
    assert made <= {"parameter", "bitcast", "get-tuple-element"} | here
    analysis = compiled.memory_analysis()
    num_bytes = (stored.keys.size + stored.values.size) * 4
    assert analysis.alias_size_in_bytes >= num_bytes
    return analysis.temp_size_in_bytes


def test_insertion_writes_in_place():
    """Its scratch space is that of the segment, whatever the memory holds."""
    insert = jax.jit(memory.insert, donate_argnums=0)
    stored, pairs = empty_shapes(LARGE), shape(BATCH, QUERIES, HEADS, DIM)
    lowered = insert.lower(stored, pairs, pairs, shape(BATCH, dtype=jnp.int32))
    # Keys and values once more with room on both sides, and a window of each.
    assert assert_in_place(lowered.compile(), stored) <= 2 * 4 * pairs.size * 4


def test_insertion_does_not_widen_bfloat16():
    """XLA for CPUs passes over such a memory, but takes no float32 copy of it."""
    insert = jax.jit(memory.insert, donate_argnums=0)
    stored, pairs = empty_shapes(LARGE, "bfloat16"), shape(BATCH, QUERIES, HEADS, DIM)
    args = stored, pairs, pairs, shape(BATCH, dtype=jnp.int32)
    compiled = insert.lower(*args).compile()
    assert f"f32[{','.join(map(str, stored.keys.shape))}]" not in compiled.as_text()
    analysis = compiled.memory_analysis()
    num_bytes = 2 * (stored.keys.size + stored.values.size)
    assert analysis.alias_size_in_bytes >= num_bytes
    assert analysis.temp_size_in_bytes <= num_bytes + 2 * 4 * pairs.size * 4


@pytest.fixture(scope="module")
def wide():
    """Returns the shapes of parameters and state, and of segments, of two rows."""
    params = jax.eval_shape(lambda: parameters.init(WIDE, jax.random.key(0)))
    state = jax.eval_shape(functools.partial(model.init_state, WIDE, 2))
    tokens = shape(2, WIDE.segment_length, dtype=jnp.int32)
    counts = shape(2, dtype=jnp.int32)
    segments = Segments(tokens, tokens, shape(2, dtype=jnp.bool_), counts, counts)
    return params, state, segments


def test_a_forward_pass_holds_no_second_memory(wide):
    params, state, segments = wide
    forward = jax.jit(model.forward, static_argnums=5, donate_argnums=1)
    compiled = forward.lower(
        params,
        state,
        segments.tokens,
        segments.start_of_document,
        segments.num_tokens,
        WIDE,
    ).compile()
    assert assert_in_place(compiled, state.memories[0]) < LITTLE


def test_decoding_a_token_holds_no_second_memory(wide):
    params, state, segments = wide
    state = jax.eval_shape(lambda state: decode.from_segments(state, WIDE), state)
    step = jax.jit(decode.decode_step, static_argnums=4, donate_argnums=1)
    compiled = step.lower(
        params, state, segments.num_tokens, segments.start_of_document, WIDE
    ).compile()
    assert assert_in_place(compiled, state.memories[0]) < LITTLE


@pytest.mark.parametrize("rematerialize", [False, True])
def test_a_training_step_holds_no_second_memory(wide, rematerialize):
    sizes = WIDE.replace(rematerialize=rematerialize)
    run, compiled = compiled_step(wide, model=sizes)
    assert assert_in_place(compiled, run.model.memories[0]) < LITTLE


def test_a_step_in_parts_copies_some_rows_and_no_memory(wide):
    """What is searched is cut out, a part at a time; all of it is written in place."""
    run, compiled = compiled_step(wide, model=WIDE, accumulation=2)
    stored = run.model.memories[0]
    made = {
        op for op, sizes in arrays_in(compiled) if math.prod(sizes) >= stored.keys.size
    }
    here = {"dynamic-update-slice", "fusion"}
    assert made <= {"parameter", "bitcast", "get-tuple-element"} | here
    analysis, num_bytes = compiled.memory_analysis(), 2 * stored.keys.size * 4
    assert analysis.alias_size_in_bytes >= num_bytes
    assert analysis.temp_size_in_bytes < num_bytes // 2 + LITTLE


def compiled_step(wide, **settings):
    optimizer = OptimizerConfig(optimizer="adamw", warmup_steps=3)
    config = TrainConfig(optimizer=optimizer, batch=2, **settings)
    run = jax.eval_shape(functools.partial(train_step.init, config))
    return run, train_step.train_step_jit.lower(run, wide[2], config).compile()


@pytest.mark.parametrize("engine", ["exact", "bucketed", "approx_max_k"])
def test_search_never_holds_all_scores(engine):
    """Not even one number per query and slot; its space is that of a block."""
    find = jax.jit(
        functools.partial(search.find, top_k=TOP_K, engine=engine, recall_target=0.98)
    )
    queries, temps = shape(BATCH, QUERIES, HEADS, DIM), []
    for memory_size in (SMALLER, LARGE):
        compiled = find.lower(queries, empty_shapes(memory_size)).compile()
        # The keys themselves have fewer: a head has more queries than dimensions.
        all_scores = BATCH * HEADS * QUERIES * memory_size
        assert max(math.prod(sizes) for _, sizes in arrays_in(compiled)) < all_scores
        temps.append(compiled.memory_analysis().temp_size_in_bytes)
    # The same whatever the memory, but for a list of its blocks.
    assert abs(temps[1] - temps[0]) <= 4 * LARGE // blocks.BLOCK_SIZE
    queries = BATCH * HEADS * QUERIES
    if engine == "bucketed":
        # What streams by is no more than what is kept; so few are searched together.
        buckets, winners = bucketed_search.choose_buckets(0.98, LARGE, TOP_K)
        assert queries <= bucketed_search._ON_CPU.queries_at_once
        assert temps[1] <= 40 * queries * (buckets * winners + TOP_K)
    else:
        # Eight bytes for a score and its slot, those of a block and those kept, and as
        # much again for what a step hands to the next.
        assert temps[1] <= 16 * queries * (blocks.BLOCK_SIZE + TOP_K)


def test_a_stream_compiles_once():
    """Whatever resets, is padded or idle; the first segment included."""
    params = draw_parameters(SMALL)
    forward = jax.jit(
        lambda *arrays: model.forward(*arrays, config=SMALL), donate_argnums=1
    )
    rng = np.random.default_rng(0)
    state = model.init_state(SMALL, 3)
    for tokens in draw_tokens(SMALL, 5, 3):
        start, count = rng.random(3) < 0.5, rng.integers(0, 8, 3, np.int32)
        _, state, _ = forward(params, state, tokens, start, count)
    assert int(state.num_cached.max()) <= SMALL.cache_length
    assert forward._cache_size() == 1


def test_deeper_models_are_no_larger_programs(small):
    """What is compiled for 30 layers is what is compiled for 6."""

    def program(num_layers):
        sizes = small.model.replace(
            num_layers=num_layers, memory_layers=(num_layers // 2,)
        )
        config = dataclasses.replace(small, model=sizes)
        run = jax.eval_shape(functools.partial(train_step.init, config))
        tokens = shape(config.batch, sizes.segment_length, dtype=jnp.int32)
        counts = shape(config.batch, dtype=jnp.int32)
        starts = shape(config.batch, dtype=jnp.bool_)
        segments = Segments(tokens, tokens, starts, counts, counts)
        lowered = train_step.train_step_jit.lower(run, segments, config)
        return lowered.as_text().count("\n")

    assert program(30) == program(6)


def test_training_compiles_once(small):
    sizes = small.model.replace(num_layers=1, memory_layers=(0,))
    config = dataclasses.replace(small, model=sizes)
    step, length = train_step.train_step_jit, sizes.segment_length
    given, rng = draw_parameters(sizes), np.random.default_rng(0)
    run = jax.jit(lambda given: train_step.init(config, given))(given)
    before = step._cache_size()
    for _ in range(3):
        tokens = rng.integers(0, 256, (config.batch, length), np.int32)
        count = rng.integers(0, length + 1, config.batch, np.int32)
        start = rng.random(config.batch) < 0.5
        run, _ = step(run, Segments(tokens, tokens, start, count, count), config)
    assert int(run.step) == 3
    assert step._cache_size() - before == 1
