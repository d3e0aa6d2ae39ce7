"""Search finds the right pairs, and only pairs that are there."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memorizing_conformance import strategies, worlds
from memorizing_conformance.comparison import assert_equal
from memorizing_conformance.reference_adapter import ReferenceImplementation
from memorizing_conformance.strategies import WRAPPING

pytestmark = pytest.mark.level("search")


def search_keys(implementation, keys, query, top_k, memory_size=5):
    """Stores keys (one head, one row) and returns the slots that one query finds."""
    keys = np.array(keys, np.float32).reshape(1, -1, 1, np.size(query))
    queries = np.array(query, np.float32).reshape(1, 1, 1, -1)
    state = implementation.init(
        batch=1,
        memory_size=memory_size,
        num_heads=1,
        head_dim=queries.shape[-1],
        top_k=top_k,
    )
    state = implementation.insert(state, keys, keys, np.array([keys.shape[1]]))
    queries = np.repeat(queries, keys.shape[1], axis=1)
    return np.asarray(implementation.search(state, queries))[0, 0, 0].tolist()


@pytest.mark.rule("KNN-1")
@pytest.mark.needs("exact_search")
@given(stream=strategies.streams(WRAPPING))
def test_finds_what_the_reference_finds(implementation, stream):
    found = worlds.search_stream(implementation, stream)
    expected = worlds.search_stream(ReferenceImplementation(), stream)
    for step, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert_equal(one, other, f"segment {step}: slots")


@pytest.mark.rule("KNN-1")
@pytest.mark.needs("exact_search")
@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ([1, 2, 3, 4, 5], [4, 3, 2]),
        ([5, 4, 3, 2, 1], [0, 1, 2]),
        ([1, 5, 2, 4, 3], [1, 3, 4]),
        ([-5, -1, -4, -2, -3], [1, 3, 4]),
    ],
)
def test_best_first_in_any_order(implementation, keys, expected):
    assert search_keys(implementation, keys, [1], top_k=3) == expected


@pytest.mark.rule("KNN-1")
@pytest.mark.needs("exact_search")
@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ([1, 2, 2, 1, 2], [1, 2, 4]),
        ([2, 2, 2, 2, 2], [0, 1, 2]),
        ([1, 1, 1, 1, 2], [4, 0, 1]),
        ([0, 0, 0, 0, 0], [0, 1, 2]),
    ],
)
def test_ties_go_to_the_lower_slot(implementation, keys, expected):
    assert search_keys(implementation, keys, [1], top_k=3) == expected


@pytest.mark.rule("KNN-1")
@pytest.mark.needs("exact_search", "attention")
def test_tied_pairs_are_not_averaged(implementation):
    # Both keys score the same; the one neighbor asked for is slot 0, whose value is 1.
    keys = np.ones((1, 3, 1, 1), np.float32)
    values = np.array([1, 3, 5], np.float32).reshape(1, 3, 1, 1)
    state = implementation.init(
        batch=1, memory_size=5, num_heads=1, head_dim=1, top_k=1
    )
    state = implementation.insert(state, keys, values, np.array([3]))
    output = implementation.attend_memory(state, keys, np.ones(1, np.float32))
    assert_equal(output, np.ones((1, 3, 1, 1)), "memory_output")


@pytest.mark.rule("KNN-1")
@pytest.mark.needs("exact_search")
def test_inner_product_not_distance_or_angle(implementation):
    # Scores 3, 4, 8. Nearest in distance is the first, in angle the second.
    keys = [[1, 1], [2, 0], [4, 4]]
    assert search_keys(implementation, keys, [2, 0], top_k=3) == [2, 1, 0]
    # A query that is not of length one ranks as one that is.
    assert search_keys(implementation, keys, [0.125, 0], top_k=3) == [2, 1, 0]


@pytest.mark.rule("KNN-1")
@pytest.mark.needs("exact_search")
def test_scores_are_not_rounded(implementation):
    # 1 + 2**-10 and 1 + 2**-9 are both 1 in bfloat16, and so would their scores be.
    keys = [1, 1 + 2**-10, 1 + 2**-9]
    assert search_keys(implementation, keys, [1], top_k=3) == [2, 1, 0]
    # Sums of 255 + 1/8: nine bits before the point and three after it.
    keys = [[15, 2], [15, 2.125], [15, 2.25]]
    assert search_keys(implementation, keys, [15, 2], top_k=3) == [2, 1, 0]


@pytest.mark.rule("KNN-1")
@pytest.mark.needs("exact_search")
def test_queries_are_not_rounded(implementation):
    # In bfloat16 both components of the query would be 1.
    found = search_keys(implementation, [[0, 1], [1, 0]], [1 + 2**-10, 1], top_k=2)
    assert found == [1, 0]


@pytest.mark.rule("KNN-1")
@pytest.mark.needs("exact_search")
@given(seed=st.integers(0, 9999))
def test_heads_do_not_mix(implementation, seed):
    """Queries and keys of the heads in another order give the slots in that order."""
    rng = np.random.default_rng(seed)
    queries, keys = (strategies.grid_array(rng, WRAPPING.segment) for _ in range(2))
    full, order = np.array([7, 7]), [2, 0, 1]
    found = []
    for heads in ([0, 1, 2], order):
        state = implementation.init(**WRAPPING.memory)
        pairs = keys[:, :, heads]
        state = implementation.insert(state, pairs, pairs, full)
        found.append(np.array(implementation.search(state, queries[:, :, heads])))
    assert_equal(found[1], found[0][:, :, order], "slots with the heads reordered")


@pytest.mark.rule("KNN-1")
@pytest.mark.needs("exact_search")
@given(stream=strategies.streams(WRAPPING, kinds=("ties", "grid")))
def test_fewer_neighbors_are_the_first_of_more(implementation, stream):
    four = worlds.search_stream(implementation, stream)
    one = worlds.search_stream(implementation, stream, WRAPPING.memory | {"top_k": 1})
    for few, many in zip(one, four, strict=True):
        assert_equal(few, many[..., :1], "slots with top_k 1")


@pytest.mark.rule("KNN-2")
@pytest.mark.needs("exact_search")
@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_tail_is_marked(implementation, count):
    found = search_keys(implementation, [-1, -2, -3][:count], [1], top_k=5)
    assert found == [*range(count)] + [-1] * (5 - count)


@pytest.mark.rule("KNN-2")
@pytest.mark.needs("attention")
def test_missing_neighbors_take_no_weight(implementation):
    # Logits -3 and -3: two values share the weight, three empty slots have none.
    keys = np.full((1, 3, 1, 1), -3, np.float32)
    values = np.array([4, 8, 100], np.float32).reshape(1, 3, 1, 1)
    state = implementation.init(
        batch=1, memory_size=5, num_heads=1, head_dim=1, top_k=5
    )
    state = implementation.insert(state, keys, values, np.array([2]))
    queries = np.ones((1, 3, 1, 1), np.float32)
    output = implementation.attend_memory(state, queries, np.ones(1, np.float32))
    found = set(np.asarray(implementation.search(state, queries)).ravel().tolist())
    expected = {frozenset({0, -1}): 4, frozenset({1, -1}): 8}.get(frozenset(found), 6)
    assert_equal(output, np.full((1, 3, 1, 1), expected), "memory_output")


@pytest.mark.rule("KNN-3")
@pytest.mark.needs("checked_inputs")
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_query_that_is_not_finite_is_refused(implementation, bad):
    state = implementation.init(**WRAPPING.memory)
    pairs = np.ones(WRAPPING.segment, np.float32)
    state = implementation.insert(state, pairs, pairs, np.array([7, 7]))
    queries = np.ones(WRAPPING.segment, np.float32)
    queries[1, 4, 2, 3:] = bad
    with pytest.raises(ValueError, match=named("queries", 1, 4, 2, 3)):
        implementation.search(state, queries)


@pytest.mark.rule("KNN-3")
@pytest.mark.needs("checked_inputs")
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_key_that_is_not_finite_is_refused(implementation, bad):
    # It is refused when it could be found, so at the latest by the search.
    pairs = np.ones(WRAPPING.segment, np.float32)
    keys = pairs.copy()
    keys[1, 4, 2, 3:] = bad
    with pytest.raises(ValueError, match=named("keys", 1, 4, 2, 3)):
        implementation.search(
            implementation.insert(
                implementation.init(**WRAPPING.memory), keys, pairs, np.array([7, 7])
            ),
            pairs,
        )


@pytest.mark.rule("KNN-3")
@pytest.mark.needs("checked_inputs")
def test_padding_need_not_be_finite(implementation):
    pairs = np.ones(WRAPPING.segment, np.float32)
    keys = pairs.copy()
    keys[1, 4:] = np.nan
    state = implementation.init(**WRAPPING.memory)
    state = implementation.insert(state, keys, pairs, np.array([7, 4]))
    slots = np.asarray(implementation.search(state, pairs))
    assert (slots[1] < 4).all(), "padding was found"


def named(array, *index):
    """A message that says which array, and where."""
    return re.escape(array) + r"\D+" + r"\D+".join(str(i) for i in index)
