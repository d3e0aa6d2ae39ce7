"""A reset empties its row, before the queries, and nothing else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memorizing_conformance import strategies, worlds
from memorizing_conformance.comparison import assert_equal
from memorizing_conformance.reference_adapter import ReferenceImplementation
from memorizing_conformance.strategies import WRAPPING

pytestmark = pytest.mark.level("memory")

# The best single slot is the same in both: it wins its bucket, whichever that is.
BEST = "exact_search or bucketed_search"
ONE = WRAPPING.memory | {"top_k": 1}


@pytest.mark.rule("MEM-2")
@pytest.mark.rule("MEM-5")
@pytest.mark.needs("exact_search")
def test_counting_starts_anew_at_a_reset(implementation):
    state = worlds.counting(implementation, memory_size=5, lengths=[3, 1])
    state = implementation.reset(state, np.array([True]))
    state = worlds.count_on(implementation, state, lengths=[2])
    assert worlds.newest_first(implementation, state) == [1, 0, -1, -1, -1]


@pytest.mark.rule("MEM-5")
def test_a_reset_row_finds_nothing(implementation):
    state = worlds.counting(implementation, memory_size=5, lengths=[3, 3])
    state = implementation.reset(state, np.array([True]))
    assert worlds.newest_first(implementation, state) == [-1] * 5


@pytest.mark.rule("MEM-5")
def test_no_reset_forgets_nothing(implementation):
    state = worlds.counting(implementation, memory_size=5, lengths=[3])
    state = implementation.reset(state, np.array([False]))
    found = worlds.newest_first(implementation, state)
    assert sorted(found) == [-1, -1, 0, 1, 2]


@pytest.mark.rule("MEM-5")
@pytest.mark.needs("exact_search")
@given(pattern=st.integers(0, 3), seed=st.integers(0, 99))
def test_a_reset_touches_its_row_alone(implementation, pattern, seed):
    """Rows reset in every pattern; the others answer as if nothing had happened."""
    rng = np.random.default_rng(seed)
    queries, keys, values = (
        strategies.grid_array(rng, WRAPPING.segment) for _ in range(3)
    )
    full = np.array([7, 7])
    start = np.array([bool(pattern & 1), bool(pattern & 2)])
    state = implementation.init(**WRAPPING.memory)
    state = implementation.insert(state, keys, values, full)
    before = np.array(implementation.search(state, queries))
    state = implementation.reset(state, start)
    after = np.array(implementation.search(state, queries))
    assert_equal(after[~start], before[~start], "slots of rows that were not reset")
    assert (after[start] == -1).all(), "a row that was reset still finds pairs"


@pytest.mark.rule("MEM-5")
@pytest.mark.needs(BEST, "attention")
@given(stream=strategies.streams(WRAPPING, kinds=("grid",), resets=True))
def test_resets_leave_what_the_reference_leaves(implementation, stream):
    found = worlds.attend_stream(implementation, stream, ONE)
    expected = worlds.attend_stream(ReferenceImplementation(), stream, ONE)
    for step, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert_equal(one, other, f"segment {step}: memory_output")


@pytest.mark.rule("MEM-5")
@pytest.mark.needs(BEST, "attention")
@given(stream=strategies.streams(WRAPPING, kinds=("grid",)))
def test_rows_do_not_disturb_each_other(implementation, stream):
    """Emptying row 1 before every segment leaves what row 0 reads alone."""
    calm = worlds.attend_stream(implementation, with_resets(stream, False), ONE)
    busy = worlds.attend_stream(implementation, with_resets(stream, True), ONE)
    for one, other in zip(calm, busy, strict=True):
        assert_equal(one[0], other[0], "memory_output of row 0")


def with_resets(stream, row_1):
    starts = tuple((start[0], row_1) for start in stream.starts)
    return strategies.Stream(
        stream.sizes, stream.kind, stream.seed, starts, stream.lengths
    )


@pytest.mark.rule("MEM-11")
@pytest.mark.needs("attention")
@pytest.mark.parametrize("poisoned", ["keys", "values", "keys and values"])
def test_a_nan_does_not_survive_a_reset(implementation, poisoned):
    keys = np.array([1, 2, 3], np.float32).reshape(1, 3, 1, 1)
    bad = np.full_like(keys, np.nan)
    state = implementation.init(
        batch=1, memory_size=5, num_heads=1, head_dim=1, top_k=5
    )
    state = implementation.insert(
        state,
        bad if "keys" in poisoned else keys,
        bad if "values" in poisoned else keys,
        np.array([3]),
    )
    state = implementation.reset(state, np.array([True]))
    assert worlds.newest_first(implementation, state) == [-1] * 5
    queries, scale = np.ones((1, 3, 1, 1), np.float32), np.ones(1, np.float32)
    output = implementation.attend_memory(state, queries, scale)
    assert_equal(output, np.zeros((1, 3, 1, 1)), "memory_output")

    # One pair of value 1 now lies among the remains.
    state = implementation.insert(state, keys, keys, np.array([1]))
    found = worlds.newest_first(implementation, state)
    assert found == [0, -1, -1, -1, -1]
    output = implementation.attend_memory(state, queries, scale)
    assert_equal(output, np.ones((1, 3, 1, 1)), "memory_output")
