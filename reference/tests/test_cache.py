"""The local cache against plain lists."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from memorizing_reference import cache

HEADS, DIM = 3, 5


def numbered(first, count, padding):
    """One row: pairs that are their number, then padding of -1."""
    number = np.r_[np.arange(first, first + count), np.full(padding, -1)]
    shape = (1, count + padding, HEADS, DIM)
    return np.broadcast_to(number[None, :, None, None], shape).astype(np.float32)


@given(
    cache_length=st.integers(0, 9),
    steps=st.lists(st.tuples(st.integers(0, 7), st.booleans()), max_size=8),
)
def test_holds_the_newest_positions(cache_length, steps):
    """LOC-2, LOC-3, SEG-4: newest last, none from before a reset, no padding."""
    state = cache.empty(1, cache_length, HEADS, DIM)
    document = []
    for count, start in steps:
        document = [] if start else document
        state = cache.reset(state, np.array([start]))
        pairs = numbered(len(document), count, padding=7 - count)
        document += range(len(document), len(document) + count)
        state = cache.append(state, pairs, 100 + pairs, np.array([count]))
        held = document[max(0, len(document) - cache_length) :]
        assert state.num_cached.tolist() == [len(held)]
        assert state.keys.shape == (1, cache_length, HEADS, DIM)
        if held:
            assert state.keys[0, -len(held) :, 0, 0].tolist() == held
            expected = [100 + t for t in held]
            assert state.values[0, -len(held) :, 2, 4].tolist() == expected


def test_rows_are_independent():
    state = cache.empty(2, 4, HEADS, DIM)
    pairs = np.concatenate([numbered(0, 3, padding=0), numbered(10, 3, padding=0)])
    state = cache.append(state, pairs, pairs, np.array([3, 2]))
    state = cache.reset(state, np.array([True, False]))
    state = cache.append(state, pairs + 3, pairs + 3, np.array([0, 1]))
    assert state.num_cached.tolist() == [0, 3]
    assert state.keys[1, -3:, 0, 0].tolist() == [10, 11, 13]


def test_an_idle_row_stays_as_it_was():
    """MEM-6 for the cache: no real token, nothing moves."""
    state = cache.empty(1, 4, HEADS, DIM)
    state = cache.append(state, *2 * [numbered(0, 3, padding=0)], np.array([3]))
    after = cache.append(state, *2 * [numbered(9, 0, padding=3)], np.array([0]))
    np.testing.assert_array_equal(after.keys, state.keys)
    assert after.num_cached.tolist() == [3]
