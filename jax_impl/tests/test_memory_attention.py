"""Attention over retrieved pairs: its formula, what is not there, and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import grid, holding

from memorizing_jax import attention

BATCH, SEGMENT, HEADS, DIM = 2, 4, 3, 5
MEMORY_SIZE, TOP_K = 6, 3
# Three neighbors, two, one; and none.
SLOTS = np.array([[5, 0, 3], [2, 4, -1], [1, -1, -1], [-1, -1, -1]], np.int32)
SLOTS = np.broadcast_to(SLOTS, (BATCH, HEADS, SEGMENT, TOP_K))


@jax.jit
def memory_attention(x, memory, slots, scores=None):
    return attention.memory_attention(
        x["queries"], memory, slots, x["attention_scale"], scores
    )


def scores_of(x, memory, slots):
    """Returns what a search says beside the slots; the grid makes it exact."""
    every = np.einsum("bqhd,bhsd->bhqs", x["queries"], memory.keys)
    found = np.take_along_axis(every, np.maximum(slots, 0), axis=-1)
    return jnp.asarray(np.where(slots >= 0, found, -np.inf))


def draw():
    rng = np.random.default_rng(0)
    return {
        "queries": grid(rng, BATCH, SEGMENT, HEADS, DIM),
        "attention_scale": np.array([0.5, -1.5, 1.0], np.float32),
    }


def remembered():
    keys = grid(np.random.default_rng(1), BATCH, HEADS, MEMORY_SIZE, DIM)
    return holding(keys, (6, 9))


@pytest.mark.rule("GATE-1")
@pytest.mark.rule("KNN-2")
def test_memory_attention_equals_its_formula():
    x, memory = draw(), remembered()
    output, weights = memory_attention(x, memory, SLOTS)
    keys, values = np.asarray(memory.keys, float), np.asarray(memory.values, float)
    for b, i, h in np.ndindex(BATCH, SEGMENT, HEADS):
        slots = SLOTS[b, h, i][SLOTS[b, h, i] >= 0]
        logits = keys[b, h, slots] @ x["queries"][b, i, h]
        expected = np.exp(logits * abs(float(x["attention_scale"][h])))
        expected /= expected.sum() or 1
        # Logits up to 30 in float32: their rounding, 2e-6, is that of the weights.
        np.testing.assert_allclose(weights[b, h, i, : len(slots)], expected, atol=1e-5)
        assert (weights[b, h, i, len(slots) :] == 0).all()
        read = expected @ values[b, h, slots]
        np.testing.assert_allclose(output[b, i, h], read, atol=2e-5)


@pytest.mark.rule("GATE-2")
@pytest.mark.rule("MEM-11")
def test_no_neighbor_reads_zero_whatever_is_stored():
    x, memory = draw(), remembered()
    everything_nan = jax.tree.map(lambda a: a * jnp.nan, (memory.keys, memory.values))
    stale = type(memory)(*everything_nan, memory.num_written)
    nowhere = np.full_like(SLOTS, -1)

    def total(x, scores):
        output, _ = memory_attention(x, stale, nowhere, scores)
        return output.sum(), output

    total = jax.jit(jax.grad(total, has_aux=True))
    for scores in (None, jnp.full(nowhere.shape, -jnp.inf)):
        gradient, output = total(x, scores)
        assert (output == 0).all()
        assert all((g == 0).all() for g in gradient.values())


@pytest.mark.rule("MEM-8")
def test_gradient_reaches_queries_and_scale_and_nothing_stored():
    x, memory = draw(), remembered()

    def total(x, stored):
        output, _ = memory_attention(x, stored, SLOTS)
        return (output * jnp.arange(DIM, dtype=jnp.float32)[None, None, None, :]).sum()

    of_x, of_memory = jax.jit(jax.grad(total, argnums=(0, 1), allow_int=True))(
        x, memory
    )
    assert (of_memory.keys == 0).all()
    assert (of_memory.values == 0).all()
    assert (of_x["attention_scale"] != 0).all()
    # One neighbor has weight 1 whatever the query, so nothing can flow through it.
    flows = np.abs(of_x["queries"]).sum(axis=-1) > 0
    assert (flows == np.array([1, 1, 0, 0], bool)[None, :, None]).all()


@pytest.mark.rule("MEM-8")
def test_known_scores_change_neither_output_nor_gradient():
    """The scores of the search stand for those of the gathered keys, exactly."""
    x, memory = draw(), remembered()
    x["attention_scale"][1] = 0.0  # Times minus infinity it would be NaN.

    def total(x, scores):
        output, weights = memory_attention(x, memory, SLOTS, scores)
        return (output * jnp.cos(output)).sum() + (weights**2).sum(), output

    both = jax.jit(jax.value_and_grad(total, has_aux=True))
    again, known = both(x, None), both(x, scores_of(x, memory, SLOTS))
    jax.tree.map(np.testing.assert_array_equal, known, again)


def test_without_a_gradient_known_scores_leave_keys_alone():
    x, memory = draw(), remembered()
    scores = scores_of(x, memory, SLOTS)
    keyless = type(memory)(memory.keys * jnp.nan, memory.values, memory.num_written)
    for found, true in zip(
        memory_attention(x, keyless, SLOTS, scores),
        memory_attention(x, memory, SLOTS),
        strict=True,
    ):
        np.testing.assert_array_equal(found, true)


def test_bfloat16_attends_nearly_as_float32_does():
    x, memory = draw(), remembered()
    narrow = x | {"queries": jnp.asarray(x["queries"], jnp.bfloat16)}
    wide, _ = memory_attention(x, memory, SLOTS)
    found, _ = memory_attention(narrow, memory, SLOTS)
    assert found.dtype == jnp.bfloat16
    # Scores of the grid are exact. What rounds are weights and the sum of values up
    # to 2, each by at most 2^-8 of it.
    np.testing.assert_allclose(found.astype(jnp.float32), wide, atol=2 * 2**-7)
