"""What the memory holds, where, and since when.

The memory has no window to look through but search and attention. The key of pair
number `t` is therefore often `t + 1`: against the query 1 the newest pair scores
highest, and the slots come back newest first.
"""

import numpy as np
import pytest
from hypothesis import given

from memorizing_conformance import strategies, worlds
from memorizing_conformance.comparison import assert_equal
from memorizing_conformance.reference_adapter import ReferenceImplementation
from memorizing_conformance.strategies import OVERFLOWING, WRAPPING

pytestmark = pytest.mark.level("memory")
# The best single slot is the same in both: it wins its bucket, whichever that is.
BEST = "exact_search or bucketed_search"
ONE = WRAPPING.memory | {"top_k": 1}


@pytest.mark.rule("MEM-1")
@pytest.mark.needs("exact_search")
def test_keeps_the_newest_pairs(implementation):
    # Pairs 0 to 6 in a memory of 5: 2 to 6 stay, newest first.
    #                   pair: 6  5  4  3  2    and its slot: pair mod 5
    state = worlds.counting(implementation, memory_size=5, lengths=[3, 3, 1])
    assert worlds.newest_first(implementation, state) == [1, 0, 4, 3, 2]


@pytest.mark.rule("MEM-1")
@pytest.mark.needs("exact_search")
@pytest.mark.parametrize("count", [4, 5, 6])
def test_overflow_loses_only_the_oldest(implementation, count):
    state = worlds.counting(implementation, memory_size=5, lengths=[1] * count)
    found = worlds.newest_first(implementation, state)
    newest = range(count - 1, max(-1, count - 6), -1)
    assert [slot for slot in found if slot >= 0] == [pair % 5 for pair in newest]


@pytest.mark.rule("MEM-1")
@pytest.mark.needs(BEST, "attention")
@given(stream=strategies.streams(WRAPPING))
def test_values_stay_with_their_keys(implementation, stream):
    """One neighbor has weight 1, so what is read is its value, exactly."""
    found = worlds.attend_stream(implementation, stream, ONE)
    expected = worlds.attend_stream(ReferenceImplementation(), stream, ONE)
    for step, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert_equal(one, other, f"segment {step}: memory_output")


@pytest.mark.rule("MEM-1")
@pytest.mark.needs("exact_search")
def test_heads_have_pairs_of_their_own(implementation):
    # The newest key of head 0 is the largest, that of head 1 the smallest.
    keys = np.array([[1, 3], [2, 2], [3, 1]], np.float32).reshape(1, 3, 2, 1)
    state = implementation.init(
        batch=1, memory_size=5, num_heads=2, head_dim=1, top_k=3
    )
    state = implementation.insert(state, keys, keys, np.array([3]))
    queries = np.ones((1, 3, 2, 1), np.float32)
    slots = np.asarray(implementation.search(state, queries))
    assert slots[0, 0].tolist() == [[2, 1, 0], [0, 1, 2]]


@pytest.mark.rule("MEM-1")
@pytest.mark.rule("SEG-2")
@pytest.mark.needs("exact_search")
def test_rows_have_pairs_of_their_own(implementation):
    keys = np.array([[1, 2, 3], [3, 2, 1]], np.float32).reshape(2, 3, 1, 1)
    state = implementation.init(
        batch=2, memory_size=5, num_heads=1, head_dim=1, top_k=3
    )
    state = implementation.insert(state, keys, keys, np.array([3, 2]))
    queries = np.ones((2, 3, 1, 1), np.float32)
    slots = np.asarray(implementation.search(state, queries))
    assert slots[:, 0, 0].tolist() == [[2, 1, 0], [0, 1, -1]]


@pytest.mark.rule("MEM-2")
@pytest.mark.needs("exact_search")
@pytest.mark.parametrize("offset", range(6))
def test_wraps_at_every_offset(implementation, offset):
    # `offset` pairs, then six more: they start anywhere in the ring of 5.
    lengths = [1] * offset + [3, 3]
    state = worlds.counting(implementation, memory_size=5, lengths=lengths)
    newest = range(offset + 5, offset, -1)
    found = worlds.newest_first(implementation, state)
    assert found == [pair % 5 for pair in newest]


@pytest.mark.rule("MEM-2")
@pytest.mark.needs(BEST)
def test_the_newest_pair_is_where_it_is_counted(implementation):
    state = implementation.init(
        batch=1, memory_size=5, num_heads=1, head_dim=1, top_k=1
    )
    for pair in range(13):
        state = worlds.count_on(implementation, state, lengths=[1], first_key=pair + 1)
        assert worlds.newest_first(implementation, state) == [pair % 5]


@pytest.mark.rule("MEM-2")
@pytest.mark.needs("exact_search", "long_segments")
def test_a_segment_may_exceed_the_memory(implementation):
    # Pairs 0 to 10 at once: 6 to 10 stay, in slots 1 2 3 4 0.
    state = worlds.counting(
        implementation, memory_size=5, lengths=[11], segment_length=11
    )
    assert worlds.newest_first(implementation, state) == [0, 4, 3, 2, 1]


@pytest.mark.rule("MEM-2")
@pytest.mark.needs("exact_search", "long_segments")
def test_a_long_segment_keeps_the_count(implementation):
    # Pairs 0 to 10, then 11 to 13, which belong in slots 1 2 3.
    state = worlds.counting(
        implementation, memory_size=5, lengths=[11, 3], segment_length=11
    )
    assert worlds.newest_first(implementation, state) == [3, 2, 1, 0, 4]


@pytest.mark.rule("MEM-2")
@pytest.mark.needs("exact_search", "long_segments")
@given(stream=strategies.streams(OVERFLOWING, kinds=("grid",)))
def test_long_segments_land_where_the_reference_puts_them(implementation, stream):
    found = worlds.search_stream(implementation, stream)
    expected = worlds.search_stream(ReferenceImplementation(), stream)
    for step, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert_equal(one, other, f"segment {step}: slots")


@pytest.mark.rule("MEM-3")
@pytest.mark.needs("exact_search")
def test_zero_is_a_legal_key(implementation):
    # Scores: 0, -1 and 1. All three are there.
    keys = np.array([0, -1, 1], np.float32).reshape(1, 3, 1, 1)
    state = implementation.init(
        batch=1, memory_size=5, num_heads=1, head_dim=1, top_k=5
    )
    state = implementation.insert(state, keys, keys, np.array([3]))
    assert worlds.newest_first(implementation, state) == [2, 0, 1, -1, -1]


@pytest.mark.rule("MEM-3")
@pytest.mark.needs("exact_search")
def test_a_key_may_sum_to_zero(implementation):
    keys = np.array([[1, -1], [-2, 2], [3, 1]], np.float32).reshape(1, 3, 1, 2)
    state = implementation.init(
        batch=1, memory_size=5, num_heads=1, head_dim=2, top_k=5
    )
    state = implementation.insert(state, keys, keys, np.array([3]))
    queries = np.tile(np.array([1, 0], np.float32), (1, 3, 1, 1))
    # Scores: 1, -2, 3.
    slots = np.asarray(implementation.search(state, queries))
    assert slots[0, 0, 0].tolist() == [2, 0, 1, -1, -1]


@pytest.mark.rule("MEM-3")
@pytest.mark.needs("exact_search", "attention")
def test_a_zero_key_takes_its_softmax_weight(implementation):
    # Two zero keys with the values 1 and 3: half of each.
    keys = np.zeros((1, 3, 1, 1), np.float32)
    values = np.array([1, 3, 100], np.float32).reshape(1, 3, 1, 1)
    state = implementation.init(
        batch=1, memory_size=5, num_heads=1, head_dim=1, top_k=5
    )
    state = implementation.insert(state, keys, values, np.array([2]))
    queries = np.ones((1, 3, 1, 1), np.float32)
    output = implementation.attend_memory(state, queries, np.ones(1, np.float32))
    assert_equal(output, np.full((1, 3, 1, 1), 2.0), "memory_output")


@pytest.mark.rule("MEM-3")
def test_slots_never_written_are_not_found(implementation):
    # The one pair scores -4, less than an empty slot would.
    state = implementation.init(
        batch=1, memory_size=5, num_heads=1, head_dim=1, top_k=5
    )
    keys = np.full((1, 3, 1, 1), -4, np.float32)
    state = implementation.insert(state, keys, keys, np.array([1]))
    assert worlds.newest_first(implementation, state) == [0, -1, -1, -1, -1]


@pytest.mark.rule("MEM-4")
def test_an_empty_memory_finds_nothing(implementation):
    state = implementation.init(
        batch=1, memory_size=5, num_heads=1, head_dim=1, top_k=5
    )
    assert worlds.newest_first(implementation, state) == [-1] * 5


@pytest.mark.rule("MEM-4")
@pytest.mark.needs("exact_search")
@given(stream=strategies.streams(WRAPPING, kinds=("grid",)))
def test_searching_changes_nothing(implementation, stream):
    """The same query, asked twice, has the same answer, and was not remembered."""
    state = implementation.init(**WRAPPING.memory)
    oracle = ReferenceImplementation()
    expected_state = oracle.init(**WRAPPING.memory)
    for segment in stream.segments():
        state = implementation.reset(state, segment.start_of_document)
        expected_state = oracle.reset(expected_state, segment.start_of_document)
        # What is asked is what comes next: a segment that was remembered too early,
        # or by being searched for, would find itself.
        expected = oracle.search(expected_state, segment.keys)
        for attempt in ("first", "second"):
            found = implementation.search(state, segment.keys)
            assert_equal(found, expected, f"{attempt} answer: slots")
        pairs = segment.keys, segment.values, segment.num_tokens
        state = implementation.insert(state, *pairs)
        expected_state = oracle.insert(expected_state, *pairs)
