"""Exact search: the Numba twin against the definition, and the definition by hand."""

import dataclasses

import numpy as np
import pytest
from helpers import filled, grid
from hypothesis import given
from hypothesis import strategies as st

from memorizing_reference import memory, search

DTYPES = st.sampled_from([np.float32, np.float64])
DEFINITION_AND_TWIN = [search.top_k_slots_numpy, search.top_k_slots]


def line(*numbers, dtype=np.float32):
    """One row, one head, one dimension: a score is a product of two numbers."""
    return np.array(numbers, dtype).reshape(1, -1, 1, 1)


def holding(*numbers, memory_size):
    state = memory.empty(1, memory_size, 1, 1)
    keys = line(*numbers)
    return memory.insert(state, keys, keys, np.array([len(numbers)]))


@given(
    num_written=st.lists(st.integers(0, 40), min_size=2, max_size=2),
    memory_size=st.integers(0, 16),
    top_k=st.integers(1, 18),
    coarse=st.booleans(),
    dtype=DTYPES,
    seed=st.integers(0, 2**32 - 1),
)
def test_twin_equals_definition(num_written, memory_size, top_k, coarse, dtype, seed):
    rng = np.random.default_rng(seed)
    state = filled(rng, 2, num_written, memory_size, 3, 7, dtype)
    if coarse:  # Three distinct values only: nearly all scores tie.
        state = dataclasses.replace(state, keys=np.sign(state.keys))
    queries = np.sign(grid(rng, 2, 5, 3, 7, dtype=dtype))
    # What the last document left behind is never looked at.
    stale = np.arange(memory_size)[None, :] >= state.num_valid[:, None]
    state.keys[stale] = np.nan
    found = search.top_k_slots(queries, state, top_k)
    expected = search.top_k_slots_numpy(queries, state, top_k)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == expected.dtype == np.int64
    assert found.shape == (2, 5, 3, top_k)


@given(dtype=DTYPES, seed=st.integers(0, 2**32 - 1))
def test_twin_equals_definition_on_near_duplicates(dtype, seed):
    """Keys that differ in the last bits only, as repeated tokens give them."""
    rng = np.random.default_rng(seed)
    state = filled(rng, 2, 13, 11, 3, 7, dtype)
    nearly = state.keys[:, :1] * (1 + 1e-7 * rng.normal(size=state.keys.shape))
    state = dataclasses.replace(state, keys=nearly.astype(dtype))
    queries = rng.normal(size=(2, 5, 3, 7)).astype(dtype)
    np.testing.assert_array_equal(
        search.top_k_slots(queries, state, 4),
        search.top_k_slots_numpy(queries, state, 4),
    )


@given(seed=st.integers(0, 2**32 - 1))
def test_definition_equals_plain_sorting(seed):
    """KNN-1 in the words of Python: largest score first, then lower slot."""
    rng = np.random.default_rng(seed)
    state = filled(rng, 2, [9, 4], 6, 3, 5)
    queries = grid(rng, 2, 7, 3, 5)
    found = search.top_k_slots_numpy(queries, state, 8)
    for b, q, h in np.ndindex(2, 7, 3):
        scores = [
            sum(x * y for x, y in zip(queries[b, q, h], key, strict=True))
            for key in state.keys[b, : state.num_valid[b], h]
        ]
        expected = sorted(range(len(scores)), key=lambda s: (-scores[s], s))
        expected += [-1] * (8 - len(expected))
        assert found[b, q, h].tolist() == expected


@pytest.mark.parametrize("top_k_slots", DEFINITION_AND_TWIN)
class TestByHand:
    def test_best_first_and_ties_to_the_lower_slot(self, top_k_slots):
        # scores: 1, 3, 2, 3 -> slots 1 and 3 tie, then 2
        state = holding(1, 3, 2, 3, memory_size=5)
        assert top_k_slots(line(1), state, 3).ravel().tolist() == [1, 3, 2]

    def test_a_tie_is_broken_by_slot_and_not_by_age(self, top_k_slots):
        # Pair 3 overwrote slot 0 and is the newest; it still goes first.
        state = holding(9, 7, 7, 7, memory_size=3)
        assert top_k_slots(line(1), state, 2).ravel().tolist() == [0, 1]

    def test_negative_scores_are_scores(self, top_k_slots):
        state = holding(1, 2, memory_size=4)
        assert top_k_slots(line(-1), state, 3).ravel().tolist() == [0, 1, -1]

    def test_more_neighbors_than_slots(self, top_k_slots):
        state = holding(1, 2, memory_size=2)
        assert top_k_slots(line(1), state, 4).ravel().tolist() == [1, 0, -1, -1]

    def test_a_zero_query_ties_with_everything(self, top_k_slots):
        state = holding(3, -1, 2, memory_size=5)
        assert top_k_slots(line(0), state, 2).ravel().tolist() == [0, 1]

    def test_minus_zero_ties_with_zero(self, top_k_slots):
        state = holding(-0.0, 0.0, memory_size=2)
        assert top_k_slots(line(1), state, 2).ravel().tolist() == [0, 1]

    def test_refuses_a_query_that_is_not_finite(self, top_k_slots):
        state = holding(1, memory_size=2)
        with pytest.raises(ValueError, match=r"queries\[\(0, 1, 0, 0\)\] is inf"):
            top_k_slots(line(1, np.inf), state, 1)

    def test_refuses_a_valid_key_that_is_not_finite(self, top_k_slots):
        state = holding(1, np.nan, memory_size=3)
        with pytest.raises(ValueError, match=r"keys\[\(0, 1, 0, 0\)\] is nan"):
            top_k_slots(line(1), state, 1)

    def test_refuses_scores_that_overflow(self, top_k_slots):
        state = holding(-3e38, memory_size=3)
        with pytest.raises(ValueError, match=r"scores\[\(0, 0, 0, 0\)\] is -inf"):
            top_k_slots(line(10), state, 1)


@given(top_k=st.integers(1, 9), seed=st.integers(0, 99))
def test_fewer_neighbors_are_a_prefix(top_k, seed):
    rng = np.random.default_rng(seed)
    state = filled(rng, 2, [13, 5], 8, 3, 7)
    queries = grid(rng, 2, 4, 3, 7)
    more = search.top_k_slots(queries, state, top_k + 1)
    np.testing.assert_array_equal(
        search.top_k_slots(queries, state, top_k), more[..., :top_k]
    )


def test_scores_keep_the_dtype():
    """Scores have the dtype of keys and queries; nothing is narrowed."""
    rng = np.random.default_rng(0)
    for dtype in (np.float32, np.float64):
        state = filled(rng, 2, 5, 4, 3, 7, dtype)
        assert search.scores(grid(rng, 2, 6, 3, 7, dtype=dtype), state).dtype == dtype
