"""Padding is not inserted, and rows are as long as they are."""

import pytest
from hypothesis import given

from memorizing_conformance import strategies, worlds
from memorizing_conformance.comparison import assert_equal
from memorizing_conformance.reference_adapter import ReferenceImplementation
from memorizing_conformance.strategies import WRAPPING

pytestmark = pytest.mark.level("memory")

# The best single slot is the same in both: it wins its bucket, whichever that is.
BEST = "exact_search or bucketed_search"
ONE = WRAPPING.memory | {"top_k": 1}


@pytest.mark.rule("MEM-6")
@pytest.mark.rule("SEG-4")
@pytest.mark.needs("exact_search")
@pytest.mark.parametrize("length", [0, 1, 2, 3])
def test_padding_is_not_inserted(implementation, length):
    # Keys 1 2 3, of which the first `length` are real.
    state = worlds.counting(implementation, memory_size=5, lengths=[length])
    found = worlds.newest_first(implementation, state)
    assert found == [*range(length - 1, -1, -1)] + [-1] * (5 - length)


@pytest.mark.rule("MEM-6")
@pytest.mark.needs("exact_search")
def test_an_idle_row_is_unchanged(implementation):
    state = worlds.counting(implementation, memory_size=5, lengths=[3, 3])
    before = worlds.newest_first(implementation, state)
    state = worlds.count_on(implementation, state, lengths=[0])
    assert worlds.newest_first(implementation, state) == before
    # Nor was anything counted: pair 6 goes where it belongs.
    state = worlds.count_on(implementation, state, lengths=[1], first_key=100)
    assert worlds.newest_first(implementation, state)[0] == 1


@pytest.mark.rule("MEM-6")
@pytest.mark.rule("SEG-4")
@pytest.mark.needs(BEST, "attention")
@given(stream=strategies.streams(WRAPPING, kinds=("grid",), uneven=True))
def test_what_padding_holds_does_not_matter(implementation, stream):
    clean = worlds.attend_stream(implementation, stream, ONE)
    dirty = worlds.attend_stream(implementation, stream, ONE, padding=1000.0)
    for one, other in zip(clean, dirty, strict=True):
        assert_equal(other, one, "memory_output")


@pytest.mark.rule("MEM-6")
@pytest.mark.needs(BEST, "attention")
@given(stream=strategies.streams(WRAPPING, kinds=("grid",), uneven=True))
def test_rows_of_unequal_length(implementation, stream):
    found = worlds.attend_stream(implementation, stream, ONE)
    expected = worlds.attend_stream(ReferenceImplementation(), stream, ONE)
    for step, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert_equal(one, other, f"segment {step}: memory_output")
