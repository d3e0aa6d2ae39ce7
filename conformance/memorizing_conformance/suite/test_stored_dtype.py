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
def test_bfloat16_keys_are_rounded(implementation):
    # Stored: four ones, whose score is 4, and numbers that bfloat16 holds, with
    # 4 + 2**-8. As they came, the first would have had 4 + 2**-7.
    keys = np.ones((1, 2, 1, 4), np.float32)
    keys[0, 0, 0] = 1 + 2**-9
    keys[0, 1, 0, :2] = 1 + 2**-7, 1 - 2**-8
    state = implementation.init(
        batch=1,
        memory_size=5,
        num_heads=1,
        head_dim=4,
        top_k=2,
        memory_dtype="bfloat16",
    )
    state = implementation.insert(state, keys, keys, np.array([2]))
    slots = np.asarray(implementation.search(state, np.ones_like(keys)))
    assert slots[0, 0, 0].tolist() == [1, 0]


@pytest.mark.rule("MEM-10")
@pytest.mark.needs("exact_search", "bfloat16_memory")
def test_queries_and_scores_of_a_bfloat16_memory_are_not_rounded(implementation):
    # Stored exactly: (1, 0) and (0, 1). The query's components differ by 2**-10.
    keys = np.eye(2, dtype=np.float32).reshape(1, 2, 1, 2)
    state = implementation.init(
        batch=1,
        memory_size=5,
        num_heads=1,
        head_dim=2,
        top_k=2,
        memory_dtype="bfloat16",
    )
    state = implementation.insert(state, keys, keys, np.array([2]))
    queries = np.ones_like(keys)
    queries[..., 1] += 2**-10
    slots = np.asarray(implementation.search(state, queries))
    assert slots[0, 0, 0].tolist() == [1, 0]


@pytest.mark.rule("MEM-10")
@pytest.mark.needs("exact_search", "bfloat16_memory")
@given(stream=strategies.streams(WRAPPING))
def test_bfloat16_memory_scores_in_float32(implementation, stream):
    sizes = WRAPPING.memory | {"memory_dtype": "bfloat16"}
    found = worlds.search_stream(implementation, stream, sizes)
    expected = worlds.search_stream(ReferenceImplementation(), stream, sizes)
    for step, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert_equal(one, other, f"segment {step}: slots")
