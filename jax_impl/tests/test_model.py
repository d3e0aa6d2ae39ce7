"""The whole model: what it may depend on, what it keeps, and where gradient stops."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import SMALL, draw_parameters, draw_tokens, read

from memorizing_jax import attention, model, parameters, presets

BATCH = 3
# Two compilations of the same sums, in float32.
SAME = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(scope="module")
def params():
    return draw_parameters(SMALL)


@pytest.fixture(scope="module")
def stream():
    """Returns tokens, starts and counts of four segments: rows wrap, reset, idle."""
    starts = [[1, 1, 1], [0, 0, 1], [0, 1, 0], [0, 0, 0]]
    counts = [[7, 7, 4], [7, 5, 7], [7, 7, 0], [7, 2, 7]]
    return draw_tokens(SMALL, 4, BATCH), np.array(starts, bool), np.array(counts)


@pytest.fixture(scope="module")
def found(params, stream):
    """Returns the logits of each segment, the last state, and what was retrieved."""
    return read(params, SMALL, *stream)


def same_state(a, b):
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.rule("SEG-1")
def test_logits_at_each_position_do_not_depend_on_later_ones(params):
    """By gradient, with regard to embeddings of tokens that occur once."""
    tokens = np.arange(14, dtype=np.int32).reshape(2, 1, 7)
    full, unused = np.array([7], np.int32), SMALL.vocab_size - 1

    def logits(embedding):
        state, result = model.init_state(SMALL, 1), []
        for i in range(2):
            out, state, _ = model.forward(
                params | {"embedding": embedding},
                state,
                tokens[i],
                jnp.array([i == 0]),
                full,
                SMALL,
            )
            # A column whose own embedding is none of those that were read.
            result.append(out[0, :, unused])
        return jnp.stack(result)

    slopes = jax.jit(jax.jacrev(logits))(params["embedding"])
    depends = np.abs(slopes[:, :, :14]).sum(axis=-1) > 0
    for segment, i, token in np.ndindex(depends.shape):
        # Its own segment up to itself; of an earlier one no gradient (LOC-7, MEM-8).
        expected = 7 * segment <= token <= 7 * segment + i
        assert depends[segment, i, token] == expected, (segment, i, token)
    # All the same, what an earlier segment held matters.
    other = np.concatenate([tokens[:1, :, ::-1], tokens[1:]])
    before, after = (read(params, SMALL, segments)[0] for segments in (tokens, other))
    assert (np.abs(before - after)[1, 0].max(axis=-1) > 1e-4).all()


@pytest.mark.rule("LOC-2")
def test_a_cache_as_long_as_the_window_makes_segments_invisible():
    config = SMALL.replace(memory_layers=(), cache_length=9)
    params = draw_parameters(config)
    tokens = draw_tokens(config, 4, 1)[:, 0].reshape(1, 28)
    found = []
    for length in (7, 14):
        segments = tokens.reshape(-1, 1, length)
        logits, _, _ = read(params, config.replace(segment_length=length), segments)
        found.append(logits.reshape(28, SMALL.vocab_size))
    np.testing.assert_allclose(*found, **SAME)


@pytest.mark.rule("SEG-2")
def test_a_row_does_not_see_another(params, stream, found):
    tokens, starts, counts = (part.copy() for part in stream)
    tokens[:, 1:] = (tokens[:, 1:] + 1) % SMALL.vocab_size
    starts[:, 1:], counts[:, 1:] = True, 3
    logits, state, _ = read(params, SMALL, tokens, starts, counts)
    np.testing.assert_array_equal(logits[:, 0], found[0][:, 0])
    same_state(*(jax.tree.map(lambda x: x[0], s) for s in (state, found[1])))


@pytest.mark.rule("SEG-4")
@pytest.mark.rule("MEM-6")
def test_padding_may_be_anything(params, stream, found):
    tokens, starts, counts = stream
    spoiled = tokens.copy()
    is_padding = np.arange(7) >= counts[:, :, None]
    spoiled[is_padding] = np.resize([-1, 10**6, 5], is_padding.sum())
    logits, state, _ = read(params, SMALL, spoiled, starts, counts)
    np.testing.assert_array_equal(logits, found[0])
    same_state(state, found[1])


@pytest.mark.rule("MEM-6")
def test_a_row_without_tokens_keeps_its_state(params, stream):
    tokens, starts, counts = (part[:3] for part in stream)
    _, before, _ = read(params, SMALL, tokens[:2], starts[:2], counts[:2])
    _, after, _ = read(params, SMALL, tokens[2:], starts[2:], counts[2:], before)
    same_state(*(jax.tree.map(lambda x: x[2], s) for s in (after, before)))


@pytest.mark.rule("MEM-5")
@pytest.mark.rule("LOC-3")
@pytest.mark.rule("MEM-11")
def test_a_document_begins_as_if_nothing_had_been(params, stream):
    """Whatever the row held before, NaN included; the other rows go on."""
    tokens, starts, counts = stream
    _, state, _ = read(params, SMALL, tokens[:1], starts[:1], counts[:1])
    spoiled = jax.tree.map(
        lambda x: x.at[1].set(jnp.nan) if x.dtype == jnp.float32 else x, state
    )
    start = np.array([[False, True, False]] + [[False] * 3] * 2)
    calm, _, _ = read(params, SMALL, tokens[1:], start, counts[1:], state)
    found, _, _ = read(params, SMALL, tokens[1:], start, counts[1:], spoiled)
    np.testing.assert_array_equal(found, calm)
    alone = read(params, SMALL, tokens[1:], None, counts[1:])[0]
    np.testing.assert_array_equal(found[:, 1], alone[:, 1])
    assert (np.abs(found - alone)[0, [0, 2]].max(axis=-1) > 1e-4).all()


@pytest.mark.rule("MEM-4")
@pytest.mark.rule("ORD-1")
def test_retrieves_what_was_there_before_the_segment(stream, found):
    _, starts, counts = stream
    written = np.zeros(BATCH, int)
    for i, retrieved in enumerate(found[2]):
        written[starts[i]] = 0
        assert set(retrieved) == {0, 2}
        for layer in retrieved.values():
            assert layer.slots.shape == (BATCH, 2, 7, SMALL.top_k)
            for row in range(BATCH):
                slots = np.asarray(layer.slots[row])
                valid = min(written[row], SMALL.memory_size)
                assert ((slots >= 0).sum(axis=-1) == min(SMALL.top_k, valid)).all()
                assert slots.max() < max(valid, 1)
            total = np.asarray(layer.weights).sum(axis=-1)
            # Sums of three float32 weights; 0 where nothing was found.
            expected = (np.asarray(layer.slots)[..., 0] >= 0).astype(float)
            np.testing.assert_allclose(total, expected, atol=1e-6)
        written += counts[i]


@pytest.mark.rule("MEM-7")
@pytest.mark.rule("QKN-2")
def test_stores_normalized_keys_and_raw_values_of_its_own_layer(params, stream):
    """Layer 0, whose input is the embedding, computed here in float64."""
    tokens, starts, counts = (part[:1] for part in stream)
    _, state, _ = read(params, SMALL, tokens, starts, counts)
    layer = {n: np.asarray(p, float) for n, p in parameters.of_layer(params, 0).items()}
    x = np.asarray(params["embedding"], float)[tokens[0]]
    x = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-6)
    x = x * layer["attention_norm_gain"]
    keys, values = (
        np.einsum("bqe,ehd->bhqd", x, layer[name])
        for name in ("key_kernel", "value_kernel")
    )
    keys = keys / np.sqrt((keys * keys).sum(axis=-1, keepdims=True) + 1e-6)
    memory = state.memories[0]
    for row in range(BATCH):
        real = counts[0, row]
        for stored, true in ((memory.keys, keys), (memory.values, values)):
            np.testing.assert_allclose(
                stored[row, :, :real], true[row, :, :real], **SAME
            )
            assert (stored[row, :, real:] == 0).all()
    # The same pairs, in the other layout, are in the cache (MEM-9).
    newest = np.asarray(memory.keys[0, :, 3:7]).swapaxes(0, 1)
    np.testing.assert_array_equal(state.caches[0].keys[0], newest)


def test_counters_stay_integers_and_sizes_stay_as_they_are(stream, found):
    _, starts, counts = stream
    state = found[1]
    written = np.zeros(BATCH, int)
    for start, count in zip(starts, counts, strict=True):
        written = np.where(start, 0, written) + count
    for memory in state.memories:
        assert memory.num_written.dtype == jnp.int32
        assert memory.num_written.tolist() == written.tolist()
    assert state.num_cached.dtype == jnp.int32
    assert state.num_cached.tolist() == np.minimum(written, 4).tolist()
    sizes = jax.tree.map(lambda x: (x.shape, x.dtype), model.init_state(SMALL, BATCH))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == sizes


@pytest.mark.rule("GATE-2")
def test_a_memory_of_size_zero_still_has_its_gate(params, stream):
    """It reads zeros: what is left is the share of local attention."""
    none = SMALL.replace(memory_size=0)
    with_gate, state, retrieved = read(params, none, *stream)
    assert state.memories == ()
    assert retrieved == [{}] * 4
    scaled = {n: p for n, p in params.items() if not n.endswith("gate_bias")}
    for i in SMALL.memory_layers:
        share = 1 - jax.nn.sigmoid(params[f"layers.{i}.gate_bias"])
        scaled[f"layers.{i}.output_kernel"] *= share[:, None, None]
    without, _, _ = read(scaled, SMALL.replace(memory_layers=()), *stream)
    np.testing.assert_allclose(with_gate, without, **SAME)


@pytest.mark.rule("MOD-5")
def test_another_engine_that_finds_all_gives_the_same_logits(params, stream, found):
    bucketed = SMALL.replace(search="bucketed", recall_target=1.0)
    logits, state, _ = read(params, bucketed, *stream)
    np.testing.assert_allclose(logits, found[0], **SAME)
    assert (state.memories[1].num_written == found[1].memories[1].num_written).all()


@pytest.mark.rule("MEM-10")
def test_bfloat16_runs_and_stays_near_float32(params, stream, found):
    narrow = SMALL.replace(compute_dtype="bfloat16", memory_dtype="bfloat16")
    logits, state, _ = read(params, narrow, *stream)
    assert logits.dtype == np.float32
    assert state.memories[0].keys.dtype == state.caches[0].keys.dtype == jnp.bfloat16
    is_real = np.arange(7) < stream[2][:, :, None]
    wide, found_here = found[0][is_real], logits[is_real]
    assert np.isfinite(found_here).all()
    # Each of some twenty roundings is half of 2^-7 at most, and a near-tie that falls
    # the other way retrieves another neighbor. Measured: 0.014.
    error = np.sqrt(np.mean((found_here - wide) ** 2) / np.mean(wide**2))
    assert 0 < error < 0.05


@pytest.mark.rule("MEM-8")
def test_gradient_reaches_what_reads_the_memory(params, stream):
    """Queries, scale and gate of the last layer learn from memory, its keys do not."""
    tokens, starts, counts = stream
    _, state, _ = read(params, SMALL, tokens[:2], starts[:2], counts[:2])
    memory, queries = state.memories[1], jnp.ones((BATCH, 7, 2, 5))
    layer = parameters.of_layer(params, 2)

    def read_memory(queries, scale, gate_bias, memory):
        changed = layer | {"attention_scale": scale}
        output, _ = model.retrieve(changed, queries, memory, SMALL)
        local = jnp.zeros_like(output)
        return jnp.square(attention.combine(output, local, gate_bias)).sum()

    of_queries, of_scale, of_gate, of_memory = jax.jit(
        jax.grad(read_memory, argnums=(0, 1, 2, 3), allow_int=True)
    )(queries, layer["attention_scale"], layer["gate_bias"], memory)
    # Row 2 holds pairs too; row 1 as well: every query found several neighbors.
    assert (np.abs(of_queries).sum(axis=-1) > 0).all()
    assert (of_scale != 0).all()
    assert (of_gate != 0).all()
    assert (of_memory.keys == 0).all()
    assert (of_memory.values == 0).all()


@pytest.mark.rule("MOD-6")
def test_the_papers_model_has_the_papers_size():
    """Shapes only: it has 200 million parameters, and no array is made."""
    config = dataclasses.replace(presets.base(), batch=2).with_vocabulary(32_000)
    sizes = config.model
    params = jax.eval_shape(lambda: parameters.init(sizes, jax.random.key(0)))
    per_layer = 4 * 1024 * 1024 + 2 * 1024 * 4096 + 2 * 1024 + 8 + 8 * 32
    expected = 32_000 * 1024 + 12 * per_layer + 1024 + 8
    assert sum(math.prod(p.shape) for p in params.values()) == expected
    assert expected == pytest.approx(184e6, rel=0.01)
    assert all(p.dtype == jnp.float32 for p in params.values())

    state = jax.eval_shape(functools.partial(model.init_state, sizes, 2))
    logits, after, retrieved = jax.eval_shape(
        functools.partial(model.forward, config=sizes),
        params,
        state,
        jax.ShapeDtypeStruct((2, 512), jnp.int32),
        jax.ShapeDtypeStruct((2,), jnp.bool_),
        jax.ShapeDtypeStruct((2,), jnp.int32),
    )
    assert (logits.shape, logits.dtype) == ((2, 512, 32_000), jnp.float32)
    assert after == state
    assert after.memories[0].keys.shape == (2, 8, 8192, 128)
    assert after.memories[0].num_written.dtype == jnp.int32
    assert retrieved[8].slots.shape == (2, 8, 512, 32)
