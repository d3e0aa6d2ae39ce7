"""Local attention and the gate: masks, empty rows, formulas worked out by a loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import grid

from memorizing_jax import attention, positions

BATCH, HEADS, DIM = 2, 3, 5
SEGMENT, CACHED, WINDOW = 4, 2, 3
LOCAL = CACHED + SEGMENT

local_mask = jax.jit(attention.local_mask, static_argnums=(0, 1, 2))


@jax.jit
def local_attention(x, mask):
    return attention.local_attention(
        x["queries"],
        x["keys"],
        x["values"],
        mask,
        relative_bias=x["relative_bias"],
        attention_scale=x["attention_scale"],
    )


def draw(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "queries": grid(rng, BATCH, SEGMENT, HEADS, DIM),
        "keys": grid(rng, BATCH, LOCAL, HEADS, DIM),
        "values": grid(rng, BATCH, LOCAL, HEADS, DIM),
        "relative_bias": grid(rng, HEADS, positions.NUM_BUCKETS),
        "attention_scale": np.array([0.5, -1.5, 1.0], np.float32),
    }


@pytest.mark.rule("LOC-1")
@pytest.mark.rule("LOC-3")
@pytest.mark.parametrize(
    ("segment_length", "local_window", "cache_length"),
    [(4, 3, 2), (3, 1, 0), (2, 9, 5), (1, 1, 1), (5, 2, 4)],
)
def test_mask_equals_its_definition(segment_length, local_window, cache_length):
    num_cached = np.arange(cache_length + 1, dtype=np.int32)
    found = local_mask(segment_length, local_window, cache_length, num_cached)
    assert found.shape == (
        cache_length + 1,
        segment_length,
        cache_length + segment_length,
    )
    for row, i, column in np.ndindex(found.shape):
        j = column - cache_length  # Positions count from the segment's start.
        visible = i - local_window <= j < i and j >= -num_cached[row]
        assert bool(found[row, i, column]) == visible


def test_mask_as_drawn_in_its_docstring():
    drawn = """
        1 1 . . . .        . 1 . . . .
        1 1 1 . . .        . 1 1 . . .
        . 1 1 1 . .        . 1 1 1 . .
        . . 1 1 1 .        . . 1 1 1 .
    """
    assert drawn.strip() in attention.local_mask.__doc__
    found = local_mask(SEGMENT, WINDOW, CACHED, np.array([2, 1], np.int32))
    rows = [line.split("        ") for line in drawn.strip("\n ").splitlines()]
    for i, (left, right) in enumerate([part for part in row if part] for row in rows):
        for row, part in enumerate((left, right)):
            assert [c == "1" for c in part.split()] == found[row, i].tolist()


@pytest.mark.rule("LOC-6")
def test_softmax_of_nothing_is_zero_and_so_is_its_gradient():
    logits = np.array([[1, 2, 3], [np.nan, -1e30, 1e30], [-5, 7, 7]], np.float32)
    mask = np.array([[0, 0, 0], [0, 1, 0], [0, 1, 1]], bool)

    def weighted(logits):
        weights = attention.masked_softmax(logits, mask)
        return (weights * np.arange(3, dtype=np.float32)[None, :]).sum(), weights

    weighted = jax.jit(jax.value_and_grad(weighted, has_aux=True))
    (_, weights), gradient = weighted(logits)
    assert weights.tolist() == [[0, 0, 0], [0, 1, 0], [0, 0.5, 0.5]]
    assert gradient.tolist() == [[0, 0, 0], [0, 0, 0], [0, -0.25, 0.25]]


@pytest.mark.rule("LOC-4")
@pytest.mark.rule("QKN-3")
def test_local_attention_equals_its_formula():
    x = draw()
    num_cached = np.array([2, 1], np.int32)
    mask = np.asarray(local_mask(SEGMENT, WINDOW, CACHED, num_cached))
    found = np.asarray(local_attention(x, mask))
    for b, i, h in np.ndindex(BATCH, SEGMENT, HEADS):
        seen = np.flatnonzero(mask[b, i])
        distance = CACHED + i - seen
        score = x["keys"][b, seen, h] @ x["queries"][b, i, h]
        bias = x["relative_bias"][h, positions.bucket(distance)]
        logits = (score + bias) * abs(float(x["attention_scale"][h]))
        weights = np.exp(logits - logits.max())
        expected = weights / weights.sum() @ x["values"][b, seen, h].astype(float)
        # Logits up to 30 in float32: their rounding, 2e-6, is that of the weights.
        np.testing.assert_allclose(found[b, i, h], expected, atol=2e-5)


@pytest.mark.rule("LOC-6")
def test_a_query_that_sees_nothing_reads_zeros_and_harms_nobody():
    x = draw()
    mask = local_mask(SEGMENT, WINDOW, CACHED, np.array([2, 0], np.int32))
    total = jax.jit(jax.value_and_grad(lambda x: local_attention(x, mask).sum()))
    assert (local_attention(x, mask)[1, 0] == 0).all()
    _, gradient = total(x)
    assert (gradient["queries"][1, 0] == 0).all()
    assert all(np.isfinite(g).all() for g in gradient.values())


@pytest.mark.rule("LOC-3")
def test_what_an_earlier_document_left_in_the_cache_changes_nothing():
    """Not even a NaN, which a weight of zero would keep alive."""
    x = draw()
    mask = local_mask(SEGMENT, WINDOW, CACHED, np.array([2, 1], np.int32))

    def total(x):
        output = local_attention(x, mask)
        return (output * jnp.cos(output)).sum(), output

    total = jax.jit(jax.value_and_grad(total, has_aux=True))
    (_, output), gradients = total(x)
    spoiled = {name: x[name].copy() for name in x}
    for name in ("keys", "values"):
        spoiled[name][1, 0] = np.nan
    (_, spoiled_output), spoiled_gradients = total(spoiled)
    np.testing.assert_array_equal(spoiled_output, output)
    for name, gradient in gradients.items():
        np.testing.assert_array_equal(spoiled_gradients[name], gradient)


@pytest.mark.rule("GATE-3")
def test_the_gate_divides_between_memory_and_cache():
    rng = np.random.default_rng(0)
    shape = (BATCH, SEGMENT, HEADS, DIM)
    memory, local = grid(rng, *shape), grid(rng, *shape)
    combine = jax.jit(attention.combine)
    gate_bias = np.array([-200, 0, 200], np.float32)
    found = np.asarray(combine(memory, local, gate_bias))
    np.testing.assert_array_equal(found[:, :, 0], local[:, :, 0])
    np.testing.assert_array_equal(found[:, :, 1], (memory + local)[:, :, 1] / 2)
    np.testing.assert_array_equal(found[:, :, 2], memory[:, :, 2])
    total = jax.grad(lambda bias: combine(memory, local, bias).sum())
    slope = total(np.zeros(HEADS, np.float32))
    # The slope of the sigmoid at 0 is 1/4; sums of multiples of 1/32 are exact.
    np.testing.assert_array_equal(slope, (memory - local).sum(axis=(0, 1, 3)) / 4)


@pytest.mark.rule("QKN-2")
def test_normalized_vectors_have_length_one():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((BATCH, SEGMENT, HEADS, DIM)).astype(np.float32)
    x[0, 0, 0] = 0
    normalize = jax.jit(attention.normalize)
    found = np.asarray(normalize(x))
    length = np.sqrt((x.astype(float) ** 2).sum(axis=-1, keepdims=True) + 1e-6)
    # Three roundings of float32.
    np.testing.assert_allclose(found, x / length, rtol=3e-7)
    assert (found[0, 0, 0] == 0).all()
    # Of a vector of length 1e-3 the epsilon takes a factor of sqrt(2).
    short = np.array([[0.6e-3, 0.8e-3]], np.float32)
    np.testing.assert_allclose(normalize(short), short * 1e3 / 2**0.5, rtol=3e-7)


def test_bfloat16_attends_nearly_as_float32_does():
    x = draw()
    mask = local_mask(SEGMENT, WINDOW, CACHED, np.array([2, 1], np.int32))
    narrow = {
        name: jnp.asarray(a, jnp.bfloat16) if a.ndim == 4 else a
        for name, a in x.items()
    }
    wide, found = local_attention(x, mask), local_attention(narrow, mask)
    assert found.dtype == jnp.bfloat16
    # Scores of the grid are exact. What rounds are weights and the sum of values up
    # to 2, each by at most 2^-8 of it.
    np.testing.assert_allclose(found.astype(jnp.float32), wide, atol=2 * 2**-7)
