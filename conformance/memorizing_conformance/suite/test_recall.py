"""How many of the true neighbors a search finds, measured.

Random keys are the hard case (no neighbor stands out), clustered keys the common
one. The memory is full and was written over.
"""

import numpy as np
import pytest

from memorizing_conformance.comparison import recall
from memorizing_conformance.reference_adapter import Oracle
from memorizing_conformance.strategies import Sizes
from memorizing_reference import bucketed_search, search

pytestmark = pytest.mark.level("search")

SIZES = Sizes(
    batch=1, memory_size=2000, num_heads=2, head_dim=16, top_k=32, segment_length=128
)


def draw_keys(kind, rng, shape):
    keys = rng.standard_normal(shape)
    if kind == "clustered":
        centers = rng.standard_normal((50, shape[-1]))
        keys = centers[rng.integers(0, 50, shape[:-1])] + 0.3 * keys
    return (keys / np.linalg.norm(keys, axis=-1, keepdims=True)).astype(np.float32)


def measure(implementation, kind, seed):
    """Returns the share of true neighbors found, by query, position and head."""
    rng = np.random.default_rng(seed)
    states = [one.init(**SIZES.memory) for one in (implementation, Oracle())]
    for _ in range(17):
        keys = draw_keys(kind, rng, SIZES.segment)
        for i, one in enumerate((implementation, Oracle())):
            states[i] = one.insert(states[i], keys, keys, np.array([128]))
    queries = draw_keys(kind, rng, SIZES.segment)
    slots = np.asarray(implementation.search(states[0], queries))
    scores = search.scores(queries.astype(np.float64), states[1].memory)
    true = Oracle().search(states[1], queries)
    return np.array(
        [
            recall(slots[place], true[place], scores[place])
            for place in np.ndindex(*slots.shape[:-1])
        ]
    )


@pytest.mark.rule("ANN-2")
@pytest.mark.needs("bucketed_search or approximate_search")
@pytest.mark.parametrize("kind", ["random", "clustered"])
@pytest.mark.parametrize("seed", [0, 1])
def test_recall_reaches_its_target(implementation, kind, seed):
    found = measure(implementation, kind, seed)
    # Four standard errors of the mean over 256 queries: chance, not a fault.
    margin = 4 * found.std() / np.sqrt(found.size)
    assert found.mean() >= implementation.recall_target - margin, (
        f"recall {found.mean():.3f} on {kind} keys, "
        f"recall_target {implementation.recall_target}"
    )


@pytest.mark.rule("BKT-2")
@pytest.mark.needs("bucketed_search")
@pytest.mark.parametrize("memory_size", [64, 1000, 4096])
@pytest.mark.parametrize("top_k", [4, 32])
def test_the_buckets_are_expected_to_reach_the_target(
    implementation, memory_size, top_k
):
    num_buckets, winners = implementation.bucketing(memory_size, top_k)
    expected = bucketed_search.expected_recall(num_buckets, winners, memory_size, top_k)
    assert expected >= implementation.recall_target, (num_buckets, winners, expected)
    # More survivors than slots would be no approximation but a waste.
    assert num_buckets <= 2 * memory_size, num_buckets


@pytest.mark.rule("BKT-2")
@pytest.mark.needs("bucketed_search")
@pytest.mark.parametrize("seed", [0, 1])
def test_recall_is_what_the_formula_says(implementation, seed):
    """Random keys lie in random slots, which is what the expectation is over."""
    bucketing = implementation.bucketing(SIZES.memory_size, SIZES.top_k)
    expected = bucketed_search.expected_recall(
        *bucketing, SIZES.memory_size, SIZES.top_k
    )
    found = measure(implementation, "random", seed)
    margin = 4 * found.std() / np.sqrt(found.size)
    assert abs(found.mean() - expected) <= margin, f"{found.mean():.4f}, {expected:.4f}"
