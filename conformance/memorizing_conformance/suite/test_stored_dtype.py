"""Pairs are stored in float32, or rounded to bfloat16, and scored in float32."""

import numpy as np
import pytest
from hypothesis import given

from memorizing_conformance import strategies, worlds
from memorizing_conformance.comparison import assert_equal
from memorizing_conformance.reference_adapter import ReferenceImplementation
from memorizing_conformance.strategies import WRAPPING

pytestmark = pytest.mark.level("memory")


@pytest.mark.rule("MEM-10")
@pytest.mark.needs("attention")
def test_float32_pairs_are_kept_exactly(implementation):
    # A float16 has 11 bits and ends at 65504, a bfloat16 has 8.
    value = np.array([1 + 2**-20, 2.0**100, -(2.0**-100)], np.float32)
    found = worlds.stored_values(implementation, value, "float32")
    assert_equal(found, value, "stored values")


@pytest.mark.rule("MEM-10")
@pytest.mark.needs("exact_search")
def test_float32_keys_are_kept_exactly(implementation):
    # In bfloat16 all three would be 1, in float16 the first two.
    keys = np.array([1, 1 + 2**-12, 1 + 2**-9], np.float32).reshape(1, 3, 1, 1)
    state = implementation.init(
        batch=1, memory_size=5, num_heads=1, head_dim=1, top_k=5
    )
    state = implementation.insert(state, keys, keys, np.array([3]))
    assert worlds.newest_first(implementation, state) == [2, 1, 0, -1, -1]


# Steps of bfloat16 between 1 and 2 are 2**-7. Halfway goes to the even neighbor.
ROUNDED = {
    1 + 2**-8: 1.0,
    1 + 3 * 2**-8: 1 + 2**-6,
    1 + 2**-8 + 2**-20: 1 + 2**-7,
    1 + 2**-8 - 2**-20: 1.0,
    -(1 + 3 * 2**-8): -(1 + 2**-6),
    -(1 + 2**-8): -1.0,
    2 - 2**-9: 2.0,
    2.0**100: 2.0**100,
    70000.0: 70144.0,
}


@pytest.mark.rule("MEM-10")
@pytest.mark.needs("attention", "bfloat16_memory")
@pytest.mark.parametrize("value", ROUNDED)
def test_bfloat16_rounds_to_nearest_even(implementation, value):
    found = worlds.stored_values(
        implementation, np.full(3, value, np.float32), "bfloat16"
    )
    assert_equal(found, np.full(3, ROUNDED[value], np.float32), "stored values")


@pytest.mark.rule("MEM-10")
@pytest.mark.needs("exact_search", "bfloat16_memory")
def test_bfloat16_keys_are_rounded_queries_and_scores_are_not(implementation):
    # Stored: 1, 1 and 1 + 2**-7. With the query 1 + 2**-8 the scores of float32 tell
    # them apart; slots 0 and 1 tie, as they were rounded.
    keys = np.array([1, 1 + 2**-9, 1 + 2**-7], np.float32).reshape(1, 3, 1, 1)
    state = implementation.init(
        batch=1,
        memory_size=5,
        num_heads=1,
        head_dim=1,
        top_k=5,
        memory_dtype="bfloat16",
    )
    state = implementation.insert(state, keys, keys, np.array([3]))
    queries = np.full((1, 3, 1, 1), 1 + 2**-8, np.float32)
    slots = np.asarray(implementation.search(state, queries))
    assert slots[0, 0, 0].tolist() == [2, 0, 1, -1, -1]


@pytest.mark.rule("MEM-10")
@pytest.mark.needs("exact_search", "bfloat16_memory")
@given(stream=strategies.streams(WRAPPING))
def test_bfloat16_memory_scores_in_float32(implementation, stream):
    sizes = WRAPPING.memory | {"memory_dtype": "bfloat16"}
    found = worlds.search_stream(implementation, stream, sizes)
    expected = worlds.search_stream(ReferenceImplementation(), stream, sizes)
    for step, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert_equal(one, other, f"segment {step}: slots")
