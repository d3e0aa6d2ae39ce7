"""Every engine against its definition, on inputs whose arithmetic is exact."""

import functools
import importlib.util
import itertools
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import grid, holding
from search_cases import (
    DIM,
    HEADS,
    NUM_WRITTEN,
    QUERIES,
    assert_found,
    by_sorting,
    draw,
    scores_of,
)

from memorizing_jax import blocks, memory, search
from memorizing_jax.config import SearchEngine
from memorizing_jax.errors import InputError


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Makes memories of this size stream in three blocks, the last a part."""
    monkeypatch.setattr(blocks, "BLOCK_SIZE", 16)


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
    for seed, above in enumerate((None, 1, 0)):
        queries, keys = draw(memory_size, seed, above)
        found = find(queries, holding(keys, NUM_WRITTEN, dtype))
        assert found.slots.shape == (len(NUM_WRITTEN), HEADS, QUERIES, top_k)
        assert found.slots.dtype == jnp.int32
        score = scores_of(queries, keys, NUM_WRITTEN)
        assert_found(found, score, functools.partial(by_sorting, top_k=top_k))


@pytest.mark.rule("KNN-1")
@pytest.mark.parametrize("engine", ["exact", "bucketed", "pallas", "approx_max_k"])
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
        for engine in ("exact", "bucketed", "pallas", "approx_max_k"):
            found = search.find(
                queries, holding(keys, (2,), dtype), top_k=2, engine=engine
            )
            assert found.slots.ravel().tolist() == expected
        stored = np.asarray(holding(keys, (2,), dtype).keys.astype(jnp.float32))
        best = stored.max() * queries.max()
        assert found.scores.ravel()[0] == best


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


@pytest.mark.rule("ANN-1")
@pytest.mark.rule("MEM-10")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("engine", get_args(SearchEngine))
def test_every_engine_finds_what_is_stored_in_either_type(engine, dtype):
    """At a recall of 1, in a memory that has wrapped in one row, reset in another."""
    if engine == "scann" and importlib.util.find_spec("scann") is None:
        pytest.skip("ScaNN has wheels for Linux on x86-64 only")
    rng = np.random.default_rng(0)
    stored = memory.empty(2, 37, HEADS, DIM, dtype, engine)
    for number in range(3):
        keys = grid(rng, 2, 20, HEADS, DIM)
        stored = memory.reset(stored, np.array([False, number == 2]))
        stored = insert(stored, keys, -keys, np.array([20, 17], np.int32))
    queries = grid(rng, 2, QUERIES, HEADS, DIM)
    find = jax.jit(
        functools.partial(search.find, top_k=5, engine=engine, recall_target=1.0)
    )
    score = scores_of(queries, np.asarray(stored.keys, np.float32), (60, 17))
    assert_found(find(queries, stored), score, functools.partial(by_sorting, top_k=5))


insert = jax.jit(memory.insert)


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
