"""Every engine against its definition, on inputs whose arithmetic is exact."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import grid, holding

from memorizing_jax import blocks, bucketed_search, search
from memorizing_jax.errors import InputError

HEADS, DIM, QUERIES = 2, 7, 9
# Rows of a memory that is empty, holds a little, is full, and has wrapped.
NUM_WRITTEN = (0, 6, 37, 1000)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Makes memories of this size stream in three blocks, the last a part."""
    monkeypatch.setattr(blocks, "BLOCK_SIZE", 16)


def draw(memory_size, seed, levels=None):
    """Draws queries and keys; with `levels` 2 or 3 nearly all scores tie."""
    rng = np.random.default_rng(seed)
    keys = grid(rng, len(NUM_WRITTEN), HEADS, memory_size, DIM)
    queries = grid(rng, len(NUM_WRITTEN), QUERIES, HEADS, DIM)
    if levels is not None:
        keys, queries = (np.sign(x) * (np.abs(x) > 3 - levels) for x in (keys, queries))
    return queries, keys


def scores_of(queries, keys, num_written):
    """Returns exact scores [batch, num_heads, query, slot]; -inf if not valid."""
    score = np.einsum("bqhd,bhsd->bhqs", queries, keys)
    num_valid = np.minimum(num_written, keys.shape[2])
    valid = np.arange(keys.shape[2])[None, :] < num_valid[:, None]
    return np.where(valid[:, None, None, :], score, -np.inf)


def by_sorting(score, top_k, slots=None):
    """KNN-1 and KNN-2 in the words of Python: the definition."""
    candidates = range(len(score)) if slots is None else slots
    order = sorted(candidates, key=lambda slot: (-score[slot], slot))
    order = [slot for slot in order if score[slot] > -np.inf][:top_k]
    return order + [-1] * (top_k - len(order))


def by_buckets(score, top_k, num_buckets, winners_per_bucket):
    """BKT-1 in the words of Python."""
    survivors = []
    for bucket in range(num_buckets):
        in_bucket = range(bucket, len(score), num_buckets)
        best = by_sorting(score, winners_per_bucket, in_bucket)
        survivors += [slot for slot in best if slot >= 0]
    return by_sorting(score, top_k, survivors)


def assert_found(found, score, definition):
    """Compares slots and scores with the definition, query by query."""
    slots, found_score = np.asarray(found[0]), np.asarray(found[1])
    for at in np.ndindex(score.shape[:3]):
        expected = definition(score[at])
        assert slots[at].tolist() == expected, f"row, head, query {at}"
        true = [score[at][slot] if slot >= 0 else -np.inf for slot in expected]
        assert found_score[at].tolist() == true, f"row, head, query {at}"


@pytest.mark.rule("KNN-1")
@pytest.mark.rule("KNN-2")
@pytest.mark.parametrize("engine", ["exact", "approx_max_k"])
@pytest.mark.parametrize(
    ("memory_size", "top_k", "dtype"),
    [
        (37, 5, "float32"),  # Two blocks and a part.
        (37, 40, "float32"),  # More neighbors than slots, and than a block holds.
        (32, 16, "bfloat16"),  # Whole blocks; a block for each query.
        (11, 3, "float32"),  # Less than a block.
    ],
)
def test_finds_the_best(engine, memory_size, top_k, dtype):
    """On a CPU XLA's own approximation is exact as well."""
    find = jax.jit(
        functools.partial(search.find, top_k=top_k, engine=engine, recall_target=0.9)
    )
    for seed, levels in enumerate((None, 2, 3)):
        queries, keys = draw(memory_size, seed, levels)
        found = find(queries, holding(keys, NUM_WRITTEN, dtype))
        assert found.slots.shape == (len(NUM_WRITTEN), HEADS, QUERIES, top_k)
        assert found.slots.dtype == jnp.int32
        score = scores_of(queries, keys, NUM_WRITTEN)
        assert_found(found, score, functools.partial(by_sorting, top_k=top_k))


@pytest.mark.rule("KNN-1")
@pytest.mark.parametrize("engine", ["exact", "bucketed", "approx_max_k"])
def test_by_hand(engine):
    """Minus zero equals zero, a negative score is a score, what is hidden is not."""
    find = jax.jit(functools.partial(search.find, top_k=4, engine=engine))
    keys = np.zeros((4, 1, 5, 1), np.float32)
    keys[:, 0, :, 0] = [[-0.0, 0, 1, 0, -0.0], [1, 3, 2, 3, 9], [9] * 5, [0] * 5]
    queries = np.array([1, 1, -1, -0.0], np.float32).reshape(4, 1, 1, 1)
    found = find(queries, holding(keys, (5, 4, 2, 5)))
    assert found.slots[:, 0, 0].tolist() == [
        [2, 0, 1, 3],
        [1, 3, 2, 0],
        [0, 1, -1, -1],
        [0, 1, 2, 3],
    ]
    assert found.scores[2, 0, 0].tolist() == [-9, -9, -np.inf, -np.inf]


@pytest.mark.rule("MEM-10")
def test_scores_come_from_what_is_stored():
    """1 + 1/256 is stored as 1 in bfloat16, so it does not beat 1; the query stays."""
    keys = np.array([1, 1 + 1 / 256], np.float32).reshape(1, 1, 2, 1)
    queries = np.full((1, 1, 1, 1), 1 + 1 / 256, np.float32)
    for dtype, expected in (("bfloat16", [0, 1]), ("float32", [1, 0])):
        for engine in ("exact", "bucketed", "approx_max_k"):
            found = search.find(
                queries, holding(keys, (2,), dtype), top_k=2, engine=engine
            )
            assert found.slots.ravel().tolist() == expected
        stored = np.asarray(holding(keys, (2,), dtype).keys.astype(jnp.float32))
        best = stored.max() * queries.max()
        assert found.scores.ravel()[0] == best


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
    for seed, levels in enumerate((None, 2, 3)):
        queries, keys = draw(memory_size, seed, levels)
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
    queries, keys = draw(37, 5, levels=2)
    find = jax.jit(
        functools.partial(search.find, top_k=5, engine="bucketed", recall_target=1.0)
    )
    found = find(queries, holding(keys, NUM_WRITTEN))
    score = scores_of(queries, keys, NUM_WRITTEN)
    assert_found(found, score, functools.partial(by_sorting, top_k=5))
    assert num_buckets * winners >= 37


@pytest.mark.rule("ANN-1")
def test_no_slot_is_found_twice():
    queries, keys = draw(37, 6)
    find = jax.jit(functools.partial(search.find, top_k=9, recall_target=0.5))
    slots, scores = find(queries, holding(keys, NUM_WRITTEN))
    slots = np.asarray(slots)
    for a, b in itertools.combinations(range(9), 2):
        assert ((slots[..., a] != slots[..., b]) | (slots[..., b] == -1)).all()
    assert (np.diff(np.where(slots >= 0, scores, -1e9)) <= 0).all()
    assert (np.diff((slots >= 0).astype(int)) <= 0).all()


def test_an_unknown_engine_is_refused():
    queries, keys = draw(11, 0)
    with pytest.raises(InputError, match="search is 'fast', must be one of bucketed"):
        search.find(queries, holding(keys, NUM_WRITTEN), top_k=1, engine="fast")


first_not_finite = jax.jit(search.first_not_finite)


@pytest.mark.rule("KNN-3")
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_checked_search_names_what_is_not_finite(bad):
    queries, keys = draw(11, 0)
    search.raise_if_not_finite(first_not_finite(queries, holding(keys, NUM_WRITTEN)))
    search.raise_if_not_finite(None)
    # Row 1 holds 6 pairs. The first in the order row, slot, head, dimension counts.
    for row, head, slot, dim in ((2, 0, 0, 0), (1, 0, 5, 6), (1, 1, 4, 3)):
        keys[row, head, slot, dim] = bad
    stored = holding(keys, NUM_WRITTEN, "bfloat16")
    with pytest.raises(InputError) as raised:
        search.raise_if_not_finite(first_not_finite(queries, stored), layer=8)
    assert str(raised.value) == (
        f"keys[(1, 4, 1, 3)] of memory layer 8 is {bad}, must be finite; the index is "
        "row, slot, head, dimension"
    )
    queries[3, 8, 1, 6] = bad
    with pytest.raises(InputError, match=r"queries\[\(3, 8, 1, 6\)\] is .*position"):
        search.raise_if_not_finite(first_not_finite(queries, stored))
