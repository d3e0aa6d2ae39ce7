"""Searches that may miss neighbors: sound, as defined, and measured.

Random keys are the hard case (no neighbor stands out), clustered keys the common
one, and a trained model's keys what it is all for. The memory is full and was
written over.
"""

import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import memorizing_conformance
from memorizing_conformance import oracle, strategies, worlds
from memorizing_conformance.comparison import (
    assert_close,
    assert_equal,
    assert_sound,
    recall,
)
from memorizing_conformance.reference_adapter import Oracle
from memorizing_conformance.strategies import OVERFLOWING, WRAPPING, Sizes
from memorizing_reference import bucketed_search, search

pytestmark = pytest.mark.level("search")

# An exact search has nothing to excuse: KNN-1 says all.
INEXACT = "bucketed_search or approximate_search"
TRAINED = pathlib.Path(memorizing_conformance.__file__).parent / "trained_keys.npz"


@pytest.mark.rule("ANN-1")
@pytest.mark.needs(INEXACT)
@pytest.mark.parametrize("sizes", [WRAPPING, OVERFLOWING], ids=["wrapping", "long"])
@given(data=st.data())
def test_every_search_is_sound(implementation, sizes, data):
    if sizes is OVERFLOWING and "long_segments" not in implementation.features:
        pytest.skip("lacks long_segments")
    stream = data.draw(strategies.streams(sizes, resets=True, uneven=True))
    found = worlds.search_stream(implementation, stream)
    for slots, scores in zip(found, oracle.scores(stream), strict=True):
        assert_sound(slots, scores, sizes.top_k)


@pytest.mark.rule("ANN-1")
@pytest.mark.needs(INEXACT, "attention")
@given(stream=strategies.streams(WRAPPING))
def test_attends_to_what_it_found(implementation, stream):
    """Memory attention is that of true scores over the slots found, whichever."""
    scale = np.array([1.5, -0.5, 1.0], np.float32)
    state = implementation.init(**WRAPPING.memory)
    for segment, (_, stored) in zip(
        stream.segments(), oracle.memories(stream), strict=True
    ):
        slots = np.asarray(implementation.search(state, segment.queries))
        output = implementation.attend_memory(state, segment.queries, scale)
        expected = oracle.attend(stored, segment.queries, slots, scale)
        assert_close(output, expected, "memory_output")
        state = implementation.insert(
            state, segment.keys, segment.values, segment.num_tokens
        )


@pytest.mark.rule("BKT-1")
@pytest.mark.needs("bucketed_search")
@pytest.mark.parametrize("sizes", [WRAPPING, OVERFLOWING], ids=["wrapping", "long"])
@given(data=st.data())
def test_buckets_keep_their_winners(implementation, sizes, data):
    if sizes is OVERFLOWING and "long_segments" not in implementation.features:
        pytest.skip("lacks long_segments")
    stream = data.draw(strategies.streams(sizes))
    bucketing = implementation.bucketing(sizes.memory_size, sizes.top_k)
    found = worlds.search_stream(implementation, stream)
    expected = oracle.bucketed_search_slots(stream, *bucketing)
    for step, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert_equal(one, other, f"segment {step}: slots")


SIZES = Sizes(
    batch=1, memory_size=2000, num_heads=2, head_dim=16, top_k=32, segment_length=128
)
# The file holds 4096 keys, in the order in which a model stored them.
TRAINED_SIZES = Sizes(
    batch=1, memory_size=3000, num_heads=2, head_dim=48, top_k=32, segment_length=128
)


def draw_keys(kind, rng, shape):
    keys = rng.standard_normal(shape)
    if kind == "clustered":
        centers = rng.standard_normal((50, shape[-1]))
        keys = centers[rng.integers(0, 50, shape[:-1])] + 0.3 * keys
    return (keys / np.linalg.norm(keys, axis=-1, keepdims=True)).astype(np.float32)


def drawn(kind, seed):
    """Yields the keys of each segment, and at last the queries."""
    rng = np.random.default_rng(seed)
    for _ in range(18):
        yield draw_keys(kind, rng, SIZES.segment)


def trained():
    """Yields what a trained memory layer stored, and what it asked for next."""
    with np.load(TRAINED) as file:
        unit = np.float32(file["unit"])
        for keys in np.split(file["keys"] / unit, 32):
            yield keys[None]
        yield file["queries"][None, :128] / unit


def measure(implementation, sizes, stream):
    """Returns the share of true neighbors that each query found."""
    *segments, queries = stream
    states = [one.init(**sizes.memory) for one in (implementation, Oracle())]
    for keys in segments:
        for i, one in enumerate((implementation, Oracle())):
            states[i] = one.insert(states[i], keys, keys, np.array([128]))
    slots = np.asarray(implementation.search(states[0], queries))
    scores = search.scores(queries.astype(np.float64), states[1].memory)
    true = Oracle().search(states[1], queries)
    return np.array(
        [
            recall(slots[place], true[place], scores[place])
            for place in np.ndindex(*slots.shape[:-1])
        ]
    )


def assert_reaches(found, recall_target):
    # Four standard errors of the mean over 256 queries: chance, not a fault.
    margin = 4 * found.std() / np.sqrt(found.size)
    assert found.mean() >= recall_target - margin, (
        f"recall {found.mean():.3f}, recall_target {recall_target}"
    )


@pytest.mark.rule("ANN-2")
@pytest.mark.needs(INEXACT)
@pytest.mark.parametrize("kind", ["random", "clustered"])
@pytest.mark.parametrize("seed", [0, 1])
def test_recall_reaches_its_target(implementation, kind, seed):
    found = measure(implementation, SIZES, drawn(kind, seed))
    assert_reaches(found, implementation.recall_target)


@pytest.mark.rule("ANN-2")
@pytest.mark.needs(INEXACT)
def test_recall_reaches_its_target_on_trained_keys(implementation):
    found = measure(implementation, TRAINED_SIZES, trained())
    assert_reaches(found, implementation.recall_target)


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
    found = measure(implementation, SIZES, drawn("random", seed))
    margin = 4 * found.std() / np.sqrt(found.size)
    assert abs(found.mean() - expected) <= margin, f"{found.mean():.4f}, {expected:.4f}"
