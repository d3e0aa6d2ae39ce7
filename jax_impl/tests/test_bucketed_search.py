"""Bucketed search against its definition, and the recall it expects of itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import holding
from search_cases import NUM_WRITTEN, QUERIES, assert_found, by_sorting, draw, scores_of

from memorizing_jax import blocks, bucketed_search, search


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Makes memories of this size stream in three blocks, the last a part."""
    monkeypatch.setattr(blocks, "BLOCK_SIZE", 16)


PLANS = {
    "cpu": bucketed_search._ON_CPU,
    "elsewhere": bucketed_search._ELSEWHERE,
    # Head by head, several blocks, and more neighbors than are taken one by one.
    "mixed": bucketed_search._Plan(
        queries_at_once=QUERIES, max_stripes=2, skip_unused=True, most_one_by_one=4
    ),
}


@pytest.fixture(params=PLANS)
def plan(request, monkeypatch):
    """Searches as on one kind of device or another."""
    monkeypatch.setattr(bucketed_search, "_ON_CPU", PLANS[request.param])


def by_buckets(score, top_k, num_buckets, winners_per_bucket):
    """BKT-1 in the words of Python."""
    survivors = []
    for bucket in range(num_buckets):
        in_bucket = range(bucket, len(score), num_buckets)
        best = by_sorting(score, winners_per_bucket, in_bucket)
        survivors += [slot for slot in best if slot >= 0]
    return by_sorting(score, top_k, survivors)


@pytest.mark.usefixtures("plan")
@pytest.mark.rule("BKT-1")
@pytest.mark.parametrize(
    ("num_buckets", "winners_per_bucket", "top_k"),
    [
        (4, 1, 3),
        (8, 2, 5),
        (5, 2, 4),  # Buckets need not divide the blocks.
        (2, 3, 5),
        (1, 4, 6),  # Fewer survivors than neighbors.
        (64, 1, 7),  # More buckets than slots: exact.
    ],
)
def test_bucketed_search_equals_its_definition(num_buckets, winners_per_bucket, top_k):
    find = jax.jit(
        functools.partial(
            bucketed_search.top_k,
            top_k=top_k,
            num_buckets=num_buckets,
            winners_per_bucket=winners_per_bucket,
        )
    )
    memory_size = 37
    for seed, above in enumerate((None, 1, 0)):
        queries, keys = draw(memory_size, seed, above)
        stored = holding(keys, NUM_WRITTEN)
        score, slots = find(queries.swapaxes(1, 2), stored.keys, stored.num_valid)
        slots = np.where(np.isneginf(score), -1, slots)
        definition = functools.partial(
            by_buckets,
            top_k=slots.shape[-1],
            num_buckets=num_buckets,
            winners_per_bucket=winners_per_bucket,
        )
        true = scores_of(queries, keys, NUM_WRITTEN)
        assert_found((slots, score), true, definition)
        assert slots.shape[-1] == min(top_k, num_buckets * winners_per_bucket)


@pytest.mark.usefixtures("plan")
@pytest.mark.rule("BKT-1")
@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        # Survivors in the order of their places: slots 4 and 3, then 0 and 1. With
        # distinct scores the short sort is enough;
        ((5, 2, 1, 6, 7), [4, 3]),
        # where slots 3 and 0 tie for the last neighbor, only all survivors tell;
        ((5, 2, 1, 5, 7), [4, 0]),
        # where the tied ones are all chosen, the short sort orders them.
        ((7, 2, 1, 5, 7), [0, 4]),
        ((5, 5, 5, 5, 5), [0, 1]),
    ],
)
def test_ties_among_survivors_go_to_the_lower_slot(numbers, expected):
    keys = np.array(numbers, np.float32).reshape(1, 1, 5, 1)
    _, slots = bucketed_search.top_k(
        jnp.ones((1, 1, 1, 1)),
        jnp.asarray(keys),
        jnp.array([5]),
        top_k=2,
        num_buckets=2,
        winners_per_bucket=2,
    )
    assert slots.ravel().tolist() == expected


@pytest.mark.rule("BKT-2")
def test_expected_recall_by_hand():
    # Two neighbors among four slots, two buckets: 4 of 6 placements lose none.
    assert bucketed_search.expected_recall(2, 1, 4, 2) == 1 - (2 / 6) / 2
    # More neighbors than valid slots: all of them are neighbors.
    assert bucketed_search.expected_recall(2, 1, 4, 9) == 2 / 4
    assert bucketed_search.expected_recall(2, 1, 0, 9) == 1
    for num_buckets, recall in ((128, 0.89), (256, 0.94), (1024, 0.985)):
        found = bucketed_search.expected_recall(num_buckets, 1, 2**20, 32)
        # The figures of BKT-2, which have two or three digits.
        assert found == pytest.approx(recall, abs=0.005)


@pytest.mark.rule("BKT-2")
@pytest.mark.parametrize(
    ("num_buckets", "winners", "num_valid", "top_k"),
    [
        (8, 1, 100, 5),
        (8, 2, 100, 20),
        (16, 1, 37, 9),
        (4, 3, 37, 14),
        (128, 2, 2000, 32),
    ],
)
def test_expected_recall_is_what_random_placements_give(
    num_buckets, winners, num_valid, top_k
):
    rng = np.random.default_rng(0)
    trials = 4000
    kept = np.empty(trials)
    for trial in range(trials):
        true = rng.choice(num_valid, top_k, replace=False)
        in_bucket = np.bincount(true % num_buckets, minlength=num_buckets)
        kept[trial] = np.minimum(in_bucket, winners).sum() / top_k
    found = bucketed_search.expected_recall(num_buckets, winners, num_valid, top_k)
    # Five standard errors of the mean.
    assert abs(kept.mean() - found) < 5 * kept.std() / trials**0.5


@pytest.mark.rule("BKT-2")
@pytest.mark.parametrize("memory_size", [37, 8192, 1_048_576])
def test_chosen_buckets_reach_the_target_at_the_least_cost(memory_size):
    targets = (0.1, 0.5, 0.9, 0.95, 0.98, 0.999, 1.0)
    survivors = []
    for target in targets[:-1] if memory_size > 10_000 else targets:
        num_buckets, winners = bucketed_search.choose_buckets(target, memory_size, 32)
        recall = bucketed_search.expected_recall(num_buckets, winners, memory_size, 32)
        assert recall >= target
        assert num_buckets * winners >= 32  # Or neighbors would be missing.
        survivors.append(num_buckets * winners)
        fewer = bucketed_search.expected_recall(
            num_buckets // 2, winners, memory_size, 32
        )
        assert fewer < target or num_buckets * winners < 64
    assert survivors == sorted(survivors)


def test_more_recall_costs_more_buckets_until_search_is_exact():
    num_buckets, winners = bucketed_search.choose_buckets(1.0, 37, 5)
    queries, keys = draw(37, 5, above=1)
    find = jax.jit(
        functools.partial(search.find, top_k=5, engine="bucketed", recall_target=1.0)
    )
    found = find(queries, holding(keys, NUM_WRITTEN))
    score = scores_of(queries, keys, NUM_WRITTEN)
    assert_found(found, score, functools.partial(by_sorting, top_k=5))
    assert num_buckets * winners >= 37
