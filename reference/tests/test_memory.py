"""The ring buffer, against a list that forgets, and by hand."""

import fractions

import numpy as np
import pytest
from helpers import grid
from hypothesis import given
from hypothesis import strategies as st

from memorizing_reference import memory, search

HEADS, DIM = 3, 5


def numbered(first, count, batch=1):
    """Pairs whose every component is their number."""
    number = np.arange(first, first + count, dtype=np.float32)
    return np.broadcast_to(number[None, :, None, None], (batch, count, HEADS, DIM))


def contents(state, row):
    return state.keys[row, : state.num_valid[row], 0, 0].tolist()


@given(
    memory_size=st.integers(1, 9),
    steps=st.lists(st.tuples(st.integers(0, 13), st.booleans()), max_size=7),
)
def test_a_ring_is_a_list_that_forgets(memory_size, steps):
    """MEM-1, MEM-2, MEM-6 against plain Python; row 1 sees none of it."""
    state = memory.empty(2, memory_size, HEADS, DIM)
    state = memory.insert(state, numbered(-2, 2, 2), numbered(-2, 2, 2), np.full(2, 2))
    untouched = contents(state, row=1)
    state = memory.reset(state, np.array([True, False]))
    written = []
    for count, start in steps:
        if start:
            written = []
        state = memory.reset(state, np.array([start, False]))
        pairs = numbered(len(written), 13, batch=2)
        state = memory.insert(state, pairs, -pairs, np.array([count, 0]))
        written += range(len(written), len(written) + count)
        newest = written[-memory_size:]
        assert sorted(contents(state, row=0)) == newest
        for t in newest:
            assert (state.keys[0, t % memory_size] == t).all()
            assert (state.values[0, t % memory_size] == -t).all()
    assert contents(state, row=1) == untouched


def test_a_segment_longer_than_memory():
    """MEM-2: pairs 0 to 6 into four slots: 3 to 6 stay, 4 in slot 0."""
    state = memory.insert(
        memory.empty(1, 4, HEADS, DIM), numbered(0, 7), numbered(0, 7), np.array([7])
    )
    assert contents(state, 0) == [4, 5, 6, 3]
    assert state.num_written.tolist() == [7]
    # The phase survives: pair 7 goes where 3 was.
    state = memory.insert(state, numbered(7, 1), numbered(7, 1), np.array([1]))
    assert contents(state, 0) == [4, 5, 6, 7]


@given(seed=st.integers(0, 99), cut=st.integers(0, 11))
def test_two_insertions_are_one(seed, cut):
    rng = np.random.default_rng(seed)
    keys, values = grid(rng, 2, 11, HEADS, DIM), grid(rng, 2, 11, HEADS, DIM)
    nothing = memory.empty(2, 7, HEADS, DIM)
    full = np.full(2, 11)
    once = memory.insert(nothing, keys, values, full)
    first = memory.insert(nothing, keys[:, :cut], values[:, :cut], np.full(2, cut))
    twice = memory.insert(first, keys[:, cut:], values[:, cut:], full - cut)
    np.testing.assert_array_equal(once.keys, twice.keys)
    np.testing.assert_array_equal(once.values, twice.values)
    np.testing.assert_array_equal(once.num_written, twice.num_written)


def test_nothing_is_modified():
    state = memory.empty(1, 4, HEADS, DIM)
    memory.insert(state, numbered(1, 3), numbered(1, 3), np.array([3]))
    memory.reset(state, np.array([True]))
    assert not state.keys.any()
    assert state.num_written.tolist() == [0]


def test_a_zero_key_is_a_key():
    """MEM-3: validity is counted, never read off a value."""
    zero = np.zeros((1, 2, HEADS, DIM), np.float32)
    state = memory.empty(1, 4, HEADS, DIM)
    state = memory.insert(state, zero, zero, np.array([2]))
    found = search.top_k_slots(np.ones((1, 1, HEADS, DIM), np.float32), state, 3)
    assert (found == [0, 1, -1]).all()


def test_memory_of_size_zero_holds_nothing():
    state = memory.empty(1, 0, HEADS, DIM)
    state = memory.insert(state, numbered(0, 3), numbered(0, 3), np.array([3]))
    assert state.num_valid.tolist() == [0]
    found = search.top_k_slots(np.ones((1, 1, HEADS, DIM), np.float32), state, 2)
    assert (found == -1).all()


def test_a_nan_is_gone_after_reset():
    """MEM-11, KNN-3: stored without complaint, refused in search, harmless later."""
    bad = numbered(0, 3).copy()
    bad[0, 1, 2, 4] = np.nan
    state = memory.insert(memory.empty(1, 4, HEADS, DIM), bad, bad, np.array([3]))
    queries = np.ones((1, 1, HEADS, DIM), np.float32)
    with pytest.raises(ValueError, match=r"keys\[\(0, 1, 2, 4\)\] is nan"):
        search.top_k_slots(queries, state, 2)
    state = memory.reset(state, np.array([True]))
    assert (search.top_k_slots(queries, state, 2) == -1).all()
    state = memory.insert(state, numbered(5, 1), numbered(5, 1), np.array([1]))
    assert (search.top_k_slots(queries, state, 2) == [0, -1]).all()


@pytest.mark.parametrize("num_tokens", [-1, 4])
def test_refuses_a_wrong_number_of_tokens(num_tokens):
    state = memory.empty(1, 4, HEADS, DIM)
    with pytest.raises(ValueError, match=rf"num_tokens is \[{num_tokens}\].*0 to 3"):
        memory.insert(state, numbered(0, 3), numbered(0, 3), np.array([num_tokens]))


def test_float64_is_kept():
    """MEM-10: "float32" means as computed, so that float64 checks stay float64."""
    third = np.full((1, 1, HEADS, DIM), 1 / 3)
    state = memory.empty(1, 2, HEADS, DIM, computed_in=np.float64)
    state = memory.insert(state, third, third, np.array([1]))
    assert (state.keys[0, 0] == 1 / 3).all()


def test_bfloat16_is_rounded_at_insertion():
    """MEM-10: 1 + 3/256 lies half way between 1 + 2/256 and 1 + 4/256: to even."""
    pairs = np.full((1, 1, HEADS, DIM), 1 + 3 / 256, np.float32)
    state = memory.empty(1, 2, HEADS, DIM, dtype="bfloat16")
    state = memory.insert(state, pairs, -pairs, np.array([1]))
    assert (state.keys[0, 0] == 1 + 4 / 256).all()
    assert (state.values[0, 0] == -1 - 4 / 256).all()


@given(x=st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_bfloat16_is_the_nearest(x):
    """Against exact fractions: among the two neighbors, the nearer or the even one."""
    x = np.float32(x)
    found = memory.round_to_bfloat16(x.reshape(1))[0]
    below = (x.reshape(1).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    bits = int(below.view(np.uint32)[0])
    # The next one away from zero; beyond the largest lies the power of two.
    after = np.array([bits + 0x10000], np.uint32).view(np.float32)[0]
    exact = fractions.Fraction(float(x))
    towards = fractions.Fraction(float(below[0]))
    away = fractions.Fraction(float(after)) if np.isfinite(after) else 2**128
    away = away if x >= 0 else -abs(away)
    nearer_away = abs(away - exact) < abs(exact - towards)
    tie = abs(away - exact) == abs(exact - towards)
    rounds_away = nearer_away or (tie and bits & 0x10000)
    assert found == (after if rounds_away else below[0])


def test_bfloat16_keeps_nan_and_infinity():
    special = np.array([0x7F800001, 0xFFFFFFFF, 0x7F800000], np.uint32)
    found = memory.round_to_bfloat16(special.view(np.float32))
    assert np.isnan(found).tolist() == [True, True, False]
    assert found[2] == np.inf
