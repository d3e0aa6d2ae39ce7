"""The whole model: what its memories keep, and what reading them gives."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import SMALL, draw_parameters, draw_stream, read

from memorizing_jax import attention, layers, model, parameters, presets

BATCH = 3
# Two compilations of the same sums, in float32.
SAME = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(scope="module")
def params():
    return draw_parameters(SMALL)


@pytest.fixture(scope="module")
def stream():
    return draw_stream()


@pytest.fixture(scope="module")
def found(params, stream):
    """Returns the logits of each segment, the last state, and what was retrieved."""
    return read(params, SMALL, *stream)


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


@pytest.mark.rule("MEM-8")
def test_gradient_reaches_what_reads_the_memory(params, stream):
    """Queries, scale and gate of the last layer learn from memory, its keys do not."""
    tokens, starts, counts = stream
    _, state, _ = read(params, SMALL, tokens[:2], starts[:2], counts[:2])
    memory, queries = state.memories[1], jnp.ones((BATCH, 7, 2, 5))
    layer = parameters.of_layer(params, 2)

    def read_memory(queries, scale, gate_bias, memory):
        changed = layer | {"attention_scale": scale}
        local = jnp.zeros_like(queries)
        found = layers.retrieve(changed, queries, local, memory, SMALL)
        output = attention.combine(found.memory_output, local, gate_bias)
        return jnp.square(output).sum()

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
