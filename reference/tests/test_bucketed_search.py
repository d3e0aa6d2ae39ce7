"""Bucketed search: its twin, its recall counted, simulated and computed."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from helpers import filled, grid
from hypothesis import given
from hypothesis import strategies as st

from memorizing_reference import bucketed_search, memory, search

BOTH = [bucketed_search.top_k_slots_numpy, bucketed_search.top_k_slots]


def holding(*numbers, memory_size):
    state = memory.empty(1, memory_size, 1, 1)
    keys = np.array(numbers, np.float32).reshape(1, -1, 1, 1)
    return memory.insert(state, keys, keys, np.array([len(numbers)]))


@given(
    num_written=st.lists(st.integers(0, 40), min_size=2, max_size=2),
    memory_size=st.integers(0, 17),
    top_k=st.integers(1, 12),
    num_buckets=st.integers(1, 20),
    winners=st.integers(1, 4),
    dtype=st.sampled_from([np.float32, np.float64]),
    seed=st.integers(0, 2**32 - 1),
)
def test_twin_equals_definition(
    num_written, memory_size, top_k, num_buckets, winners, dtype, seed
):
    rng = np.random.default_rng(seed)
    state = filled(rng, 2, num_written, memory_size, 3, 7, dtype)
    state = dataclasses.replace(state, keys=np.sign(state.keys))
    stale = np.arange(memory_size)[None, :] >= state.num_valid[:, None]
    state.keys[stale] = np.nan
    queries = np.sign(grid(rng, 2, 5, 3, 7, dtype=dtype))
    settings = dict(num_buckets=num_buckets, winners_per_bucket=winners)
    found = bucketed_search.top_k_slots(queries, state, top_k, **settings)
    expected = bucketed_search.top_k_slots_numpy(queries, state, top_k, **settings)
    np.testing.assert_array_equal(found, expected)
    assert found.shape == (2, 5, 3, top_k)


@given(seed=st.integers(0, 2**32 - 1), num_buckets=st.integers(1, 9))
def test_definition_equals_plain_sorting(seed, num_buckets):
    """BKT-1 in plain Python: sort each bucket, keep the first two, sort again."""
    rng = np.random.default_rng(seed)
    state = filled(rng, 2, [13, 4], 8, 3, 5)
    queries = grid(rng, 2, 6, 3, 5)
    found = bucketed_search.top_k_slots_numpy(
        queries, state, 7, num_buckets=num_buckets, winners_per_bucket=2
    )
    score = search.scores(queries, state)
    for b, q, h in np.ndindex(2, 6, 3):

        def order(slot, at=(b, q, h)):
            return -score[at][slot], slot

        survivors = []
        for bucket in range(num_buckets):
            slots = range(bucket, state.num_valid[b], num_buckets)
            survivors += sorted(slots, key=order)[:2]
        expected = sorted(survivors, key=order)[:7]
        assert found[b, q, h].tolist() == expected + [-1] * (7 - len(expected))


@pytest.mark.parametrize("top_k_slots", BOTH)
class TestByHand:
    one = np.ones((1, 1, 1, 1), np.float32)

    def found(self, top_k_slots, state, top_k, num_buckets, winners=1):
        settings = dict(num_buckets=num_buckets, winners_per_bucket=winners)
        return top_k_slots(self.one, state, top_k, **settings).ravel().tolist()

    def test_a_neighbor_is_lost_to_its_bucket(self, top_k_slots):
        # bucket 0: slots 0, 2, 4 score 9, 8, 1; bucket 1: slots 1, 3 score 3, 5
        state = holding(9, 3, 8, 5, 1, memory_size=6)
        assert self.found(top_k_slots, state, 2, num_buckets=2) == [0, 3]
        assert self.found(top_k_slots, state, 2, num_buckets=2, winners=2) == [0, 2]

    def test_a_tie_in_a_bucket_goes_to_the_lower_slot(self, top_k_slots):
        state = holding(1, 7, 1, 7, memory_size=4)
        assert self.found(top_k_slots, state, 2, num_buckets=2) == [1, 0]

    def test_fewer_survivors_than_neighbors(self, top_k_slots):
        state = holding(1, 2, 3, 4, memory_size=4)
        assert self.found(top_k_slots, state, 3, num_buckets=2) == [3, 2, -1]

    def test_as_many_buckets_as_slots_is_exact(self, top_k_slots):
        state = holding(4, 2, 5, memory_size=3)
        assert self.found(top_k_slots, state, 3, num_buckets=3) == [2, 0, 1]
        assert self.found(top_k_slots, state, 3, num_buckets=64) == [2, 0, 1]


@pytest.mark.parametrize("num_valid", [1, 5, 8, 9])
@pytest.mark.parametrize("num_buckets", [1, 2, 3, 4])
@pytest.mark.parametrize("winners", [1, 2])
def test_expected_recall_counted(num_valid, num_buckets, winners):
    """Every placement of the true neighbors among the slots, one by one."""
    top_k = min(3, num_valid)
    found, placements = 0, list(itertools.combinations(range(num_valid), top_k))
    for placement in placements:
        held = np.bincount(np.array(placement) % num_buckets, minlength=num_buckets)
        found += int(np.minimum(held, winners).sum())
    counted = found / (top_k * len(placements))
    computed = bucketed_search.expected_recall(num_buckets, winners, num_valid, 3)
    assert computed == pytest.approx(counted, abs=1e-12)


def test_expected_recall_simulated():
    """The search itself, on keys in random order, finds the share that is expected."""
    rng = np.random.default_rng(0)
    rows, queries, heads, memory_size, top_k = 3, 4, 50, 97, 8
    state = memory.empty(rows, memory_size, heads, 1)
    order = rng.permuted(np.ones((rows, heads, 1)) * np.arange(memory_size), axis=-1)
    keys = order.astype(np.float32).transpose(0, 2, 1)[..., None]
    state = memory.insert(state, keys, keys, np.full(rows, memory_size))
    asking = np.ones((rows, queries, heads, 1), np.float32)
    for num_buckets, winners in ((16, 1), (10, 2), (32, 1)):
        found = bucketed_search.top_k_slots(
            asking[:, :1],
            state,
            top_k,
            num_buckets=num_buckets,
            winners_per_bucket=winners,
        )
        true = search.top_k_slots(asking[:, :1], state, top_k)
        hits = (found[..., :, None] == true[..., None, :]).any(axis=-1)
        measured = hits.sum() / true.size
        expected = bucketed_search.expected_recall(
            num_buckets, winners, memory_size, top_k
        )
        # 1200 neighbors, at most half a chance each: 0.015 is one deviation.
        assert abs(measured - expected) < 0.045


@pytest.mark.parametrize(("num_buckets", "recall"), [(128, 0.89), (256, 0.94)])
def test_expected_recall_of_large_memories(num_buckets, recall):
    """The figures of BKT-2, and its closed form for one winner."""
    found = bucketed_search.expected_recall(num_buckets, 1, 2**20, 32)
    closed = num_buckets / 32 * (1 - (1 - 1 / num_buckets) ** 32)
    assert found == pytest.approx(closed, abs=1e-4)
    assert found == pytest.approx(recall, abs=5e-3)


def test_expected_recall_of_1024_buckets():
    found = bucketed_search.expected_recall(1024, 1, 2**20, 32)
    assert found == pytest.approx(0.985, abs=5e-4)


def test_expected_recall_is_the_formula_of_equal_buckets():
    """`1 - B/k * sum (r - w) C(k,r) C(m-k,m/B-r) / C(m,m/B)`, in whole numbers."""
    m, k, num_buckets, winners = 96, 8, 6, 2
    size = m // num_buckets
    lost = sum(
        (r - winners) * math.comb(k, r) * math.comb(m - k, size - r)
        for r in range(winners + 1, k + 1)
    )
    expected = 1 - num_buckets / k * lost / math.comb(m, size)
    found = bucketed_search.expected_recall(num_buckets, winners, m, k)
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("winners", [1, 3])
@pytest.mark.parametrize("num_buckets", [4, 32])
def test_recall_falls_as_memory_fills(num_buckets, winners):
    """BKT-2: buckets chosen for a full memory do for one that is filling."""
    recalls = [
        bucketed_search.expected_recall(num_buckets, winners, num_valid, 8)
        for num_valid in range(200)
    ]
    assert (np.diff(recalls) <= 1e-9).all()


def test_expected_recall_at_the_edges():
    assert bucketed_search.expected_recall(7, 1, 0, 5) == 1.0  # Nothing to find.
    assert bucketed_search.expected_recall(7, 1, 7, 5) == 1.0  # A bucket a slot.
    assert bucketed_search.expected_recall(1, 1, 100, 4) == pytest.approx(0.25)
    assert bucketed_search.expected_recall(1, 4, 100, 4) == 1.0


@given(
    recall_target=st.floats(0.01, 1.0),
    num_valid=st.integers(0, 3000),
    top_k=st.integers(1, 64),
)
def test_chosen_buckets_reach_the_target(recall_target, num_valid, top_k):
    num_buckets, winners = bucketed_search.choose_buckets(
        recall_target, num_valid, top_k
    )
    expected = bucketed_search.expected_recall(num_buckets, winners, num_valid, top_k)
    # lgamma of a few thousand is good to 1e-12.
    assert expected >= recall_target - 1e-9
    assert num_buckets * winners >= min(top_k, num_valid)
    # Half the buckets would not have done, unless they cannot be halved.
    if num_buckets > 1:
        half = num_buckets // 2
        assert half * winners < top_k or (
            bucketed_search.expected_recall(half, winners, num_valid, top_k)
            < recall_target
        )


def test_more_winners_are_chosen_where_they_are_cheaper():
    """BKT-2: 32 of 8192 at 98 %: 1024 buckets of one, or fewer survivors of more."""
    num_buckets, winners = bucketed_search.choose_buckets(0.98, 8192, 32)
    assert num_buckets * winners < 1024
    assert winners > 1
    assert bucketed_search.choose_buckets(0.98, 8192, 32, max_winners=1) == (1024, 1)


@pytest.mark.parametrize("recall_target", [0.0, -0.5, 1.5, float("nan")])
def test_refuses_an_impossible_target(recall_target):
    with pytest.raises(ValueError, match=r"recall_target is .*, must be in \(0, 1\]"):
        bucketed_search.choose_buckets(recall_target, 100, 4)
