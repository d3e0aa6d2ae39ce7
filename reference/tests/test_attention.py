"""Both attentions and their gated sum, by hand and by their limits."""

import numpy as np
import pytest
from helpers import filled, grid
from hypothesis import given
from hypothesis import strategies as st

from memorizing_reference import attention, memory, search

BATCH, SEGMENT, CACHE, HEADS, DIM = 2, 6, 4, 3, 5


def local_inputs(rng, **changes):
    local_length = CACHE + SEGMENT
    inputs = {
        "queries": grid(rng, BATCH, SEGMENT, HEADS, DIM),
        "local_keys": grid(rng, BATCH, local_length, HEADS, DIM),
        "local_values": grid(rng, BATCH, local_length, HEADS, DIM),
        "num_cached": np.array([4, 1]),
        "local_window": 3,
        "relative_bias": grid(rng, HEADS, 32),
        "attention_scale": np.array([1.0, -0.5, 2.0], np.float32),
    }
    return inputs | changes


class TestMaskedSoftmax:
    def test_masked_entries_weigh_nothing(self):
        logits = np.array([[0.0, np.log(3.0), 1e9]])
        found = attention.masked_softmax(logits, np.array([[True, True, False]]))
        np.testing.assert_allclose(found, [[0.25, 0.75, 0.0]], rtol=1e-15)
        assert found[0, 2] == 0.0

    def test_nothing_to_see_gives_zeros(self):
        found = attention.masked_softmax(
            np.full((2, 3), np.nan), np.zeros((2, 3), bool)
        )
        assert (found == 0).all()

    def test_large_logits_do_not_overflow(self):
        logits = np.array([[1e4, 1e4, -1e4]], np.float32)
        found = attention.masked_softmax(logits, np.ones((1, 3), bool))
        assert found.tolist() == [[0.5, 0.5, 0.0]]
        assert found.dtype == np.float32


def test_sigmoid():
    x = np.array([-1e4, 0.0, np.log(3.0), 1e4])
    np.testing.assert_allclose(attention.sigmoid(x), [0, 0.5, 0.75, 1], rtol=1e-15)


def test_normalize():
    """QKN-2: 3-4-5, with 1e-6 under the root; a zero vector stays zero."""
    found = attention.normalize(np.array([[3.0, 4.0], [0.0, 0.0]]))
    expected = np.array([3.0, 4.0]) / np.sqrt(25 + 1e-6)
    np.testing.assert_allclose(found, [expected, [0, 0]], rtol=1e-15)
    # Where 1e-6 matters: a vector of length 1/1000 comes out at sqrt(1/2).
    found = attention.normalize(np.array([1e-3, 0.0]))
    np.testing.assert_allclose(found, [np.sqrt(0.5), 0], rtol=1e-15)


def test_local_mask_as_drawn_in_its_docstring():
    found = attention.local_mask(4, 3, 2, np.array([2, 1])).astype(int)
    assert found[0].tolist() == [
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 0, 0],
        [0, 0, 1, 1, 1, 0],
    ]
    assert found[1].tolist() == [
        [0, 1, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 0, 0],
        [0, 0, 1, 1, 1, 0],
    ]


@given(
    segment_length=st.integers(1, 7),
    local_window=st.integers(1, 12),
    cache_length=st.integers(0, 8),
    num_cached=st.integers(0, 8),
)
def test_local_mask_in_the_words_of_the_rules(
    segment_length, local_window, cache_length, num_cached
):
    num_cached = min(num_cached, cache_length)
    found = attention.local_mask(
        segment_length, local_window, cache_length, np.array([num_cached])
    )
    for query in range(segment_length):
        for column in range(cache_length + segment_length):
            i, j = query, column - cache_length  # Cached positions are negative.
            seen = i - local_window <= j < i and j >= -num_cached
            assert found[0, query, column] == seen


def test_local_attention_by_hand():
    """LOC-4: logits (q.k + bias) |scale|; two keys weigh 1 to 3."""
    # Query 2 sees columns 0 and 1 at distances 2 and 1.
    queries = np.ones((1, 3, 1, 1))
    relative_bias = np.zeros((1, 32))
    relative_bias[0, 1], relative_bias[0, 2] = 0.5, 0.25
    keys = np.array([0.5, 0.25 + np.log(3.0) / 2, 9.0]).reshape(1, 3, 1, 1)
    # (0.25 + ln3/2 + 0.5 - 0.5 - 0.25) * |-2| = ln 3
    found = attention.local_attention(
        queries,
        keys,
        np.array([4.0, 8.0, 100.0]).reshape(1, 3, 1, 1),
        np.array([0]),
        local_window=5,
        relative_bias=relative_bias,
        attention_scale=np.array([-2.0]),
    )
    # Query 0 sees nothing (LOC-6), query 1 one value, query 2: 4/4 + 8*3/4.
    np.testing.assert_allclose(found.ravel(), [0, 4, 7], rtol=1e-15)


@given(seed=st.integers(0, 99))
def test_hidden_columns_do_not_matter(seed):
    """LOC-1, LOC-3: what is not there, is too old or comes later changes nothing."""
    rng = np.random.default_rng(seed)
    inputs = local_inputs(rng)
    expected = attention.local_attention(**inputs)
    changed = {name: inputs[name].copy() for name in ("local_keys", "local_values")}
    for name, array in changed.items():
        array[1, :3] = np.nan  # Row 1 has one cached position of four.
        array[0, :1] = np.nan  # Out of the window of every query of row 0.
        array[:, -1] = np.nan if name == "local_keys" else 7.0  # Seen by no query.
        inputs[name] = array
    np.testing.assert_array_equal(attention.local_attention(**inputs), expected)
    for name, array in changed.items():
        changed[name] = array.copy()
        changed[name][:, CACHE + 2 :] += 1
    found = attention.local_attention(**(inputs | changed))
    # Not ==: matrix products may pair their terms by position.
    np.testing.assert_allclose(found[:, :3], expected[:, :3], rtol=0, atol=1e-5)
    assert (found[:, 3] != expected[:, 3]).any()


def test_sign_of_the_scale_does_not_matter():
    """QKN-3."""
    rng = np.random.default_rng(0)
    inputs = local_inputs(rng)
    flipped = inputs | {"attention_scale": -inputs["attention_scale"]}
    np.testing.assert_array_equal(
        attention.local_attention(**inputs), attention.local_attention(**flipped)
    )


def test_one_neighbor_is_read_exactly():
    """GATE-1: the softmax of one logit is 1, whatever the logit."""
    rng = np.random.default_rng(0)
    state = filled(rng, BATCH, [13, 5], 8, HEADS, DIM)
    queries = grid(rng, BATCH, SEGMENT, HEADS, DIM)
    slots = search.top_k_slots(queries, state, 1)
    found = attention.memory_attention(queries, state, slots, np.full(HEADS, 0.3))
    for b, q, h in np.ndindex(BATCH, SEGMENT, HEADS):
        expected = state.values[b, slots[b, q, h, 0], h]
        np.testing.assert_array_equal(found[b, q, h], expected)


def test_memory_attention_by_hand():
    """Two neighbors and an absent one: weights 1 to 3, nothing for what is absent."""
    state = memory.empty(1, 4, 1, 1, computed_in=np.float64)
    keys = np.array([1.0, 1.0 + np.log(3.0) / 2]).reshape(1, 2, 1, 1)
    values = np.array([4.0, 8.0]).reshape(1, 2, 1, 1)
    state = memory.insert(state, keys, values, np.array([2]))
    slots = np.array([1, 0, -1]).reshape(1, 1, 1, 3)
    one = np.ones((1, 1, 1, 1))
    found = attention.memory_attention(one, state, slots, np.array([-2.0]))
    np.testing.assert_allclose(found.ravel(), [7.0], rtol=1e-15)


def test_empty_memory_reads_zero():
    """GATE-2, also for a memory of size 0, and behind a stale NaN."""
    queries = np.ones((BATCH, SEGMENT, HEADS, DIM), np.float32)
    slots = np.full((BATCH, SEGMENT, HEADS, 4), -1)
    scale = np.ones(HEADS, np.float32)
    for memory_size in (0, 7):
        state = memory.empty(BATCH, memory_size, HEADS, DIM)
        state.keys[...] = state.values[...] = np.nan
        found = attention.memory_attention(queries, state, slots, scale)
        assert (found == 0).all()


def test_combine():
    """GATE-3: shares by head; the gate also applies where memory read zero."""
    far, near = np.full((1, 2, 3, 5), 8.0), np.full((1, 2, 3, 5), 4.0)
    gate_bias = np.array([0.0, np.log(3.0), -1e4])
    found = attention.combine(far, near, gate_bias)
    np.testing.assert_allclose(found[0, 0, :, 0], [6.0, 7.0, 4.0], rtol=1e-15)
    found = attention.combine(0 * far, near, gate_bias)
    np.testing.assert_allclose(found[0, 1, :, 4], [2.0, 1.0, 4.0], rtol=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nothing_changes_the_dtype(dtype):
    inputs = local_inputs(np.random.default_rng(0))
    inputs = {
        name: x.astype(dtype) if getattr(x, "dtype", None) == np.float32 else x
        for name, x in inputs.items()
    }
    near = attention.local_attention(**inputs)
    state = memory.empty(BATCH, 7, HEADS, DIM, computed_in=dtype)
    slots = np.zeros((BATCH, SEGMENT, HEADS, 2), int)
    scale = inputs["attention_scale"]
    far = attention.memory_attention(inputs["queries"], state, slots, scale)
    assert near.dtype == far.dtype == dtype
    assert attention.combine(far, near, scale).dtype == dtype


def test_a_planted_pair_is_retrieved():
    """Asked with its own key, a stored pair comes first, and sharp heads read it."""
    rng = np.random.default_rng(0)
    keys = attention.normalize(rng.normal(size=(1, 7, HEADS, DIM)))
    state = memory.empty(1, 10, HEADS, DIM, computed_in=np.float64)
    state = memory.insert(state, keys, 3 * keys, np.array([7]))
    slots = search.top_k_slots(keys, state, 4)
    assert slots[0, :, :, 0].tolist() == [[i] * HEADS for i in range(7)]
    found = attention.memory_attention(keys, state, slots, np.full(HEADS, 1e6))
    np.testing.assert_allclose(found, 3 * keys, rtol=0, atol=1e-12)
