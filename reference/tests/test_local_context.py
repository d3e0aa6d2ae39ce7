"""Sinks, cache and segment side by side: worked by hand, and against a list."""

import numpy as np
import pytest

from memorizing_reference import cache, local_context


def numbered(first, length):
    """Positions of a document, whose keys and values are their numbers."""
    return np.arange(first, first + length, dtype=float).reshape(1, length, 1, 1)


def read(num_read, num_sinks, cache_length, step=1):
    """Sinks and cache after so many tokens, `step` at a time."""
    sinks = local_context.empty(1, num_sinks, 1, 1, np.float64)
    recent = cache.empty(1, cache_length, 1, 1, np.float64)
    for first in range(0, num_read, step):
        pairs = numbered(first, step)
        num_tokens = np.array([min(step, num_read - first)])
        sinks = local_context.append(sinks, pairs, pairs, num_tokens)
        recent = cache.append(recent, pairs, pairs, num_tokens)
    return sinks, recent


def test_the_picture_of_the_module():
    """Ten read, two sinks, a cache of four (PRE-3)."""
    new = numbered(10, 3)
    context = local_context.join(*read(10, 2, 4), new, new)
    assert context.position.tolist() == [[0, 1, 6, 7, 8, 9, 10, 11, 12]]
    assert context.place.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7, 8]]
    assert context.present.all()
    assert (context.keys.ravel() == context.position.ravel()).all()


def test_the_picture_of_the_mask():
    """The cache holds positions 1 and 2, of which 1 is a sink (PRE-4, PRE-9)."""
    new = numbered(3, 3)
    context = local_context.join(*read(3, 2, 2), new, new)
    found = local_context.mask(context, 3, local_window=2, num_sinks=2)
    assert found.astype(int).tolist() == [
        [
            [1, 0, 1, 1, 1, 0, 0],
            [1, 0, 1, 1, 1, 1, 0],
            [1, 0, 1, 0, 1, 1, 1],
        ]
    ]


@pytest.mark.parametrize("num_sinks", [0, 1, 3, 6])
@pytest.mark.parametrize("cache_length", [0, 1, 4, 7])
@pytest.mark.parametrize("step", [1, 3, 5])
def test_every_position_is_somewhere_once(num_sinks, cache_length, step):
    """In the local context or given to memory, in the document's order (PRE-6)."""
    remembered = []
    for num_read in range(0, 20, step):
        sinks, recent = read(num_read, num_sinks, cache_length, step)
        new = numbered(num_read, step)
        context = local_context.join(sinks, recent, new, new)
        held = context.keys[context.present].ravel().astype(int).tolist()
        assert sorted(held + remembered) == list(range(num_read + step))
        assert held == sorted(held)
        assert context.place[context.present].tolist() == list(range(len(held)))
        assert [t for t in remembered if t < num_sinks] == []

        keys, _, count = local_context.leaving(
            sinks, recent, new, new, np.array([step])
        )
        remembered += keys[0, : count[0]].ravel().astype(int).tolist()
        dropped = local_context.num_dropped(
            np.array([num_read + step]), cache_length, num_sinks
        )
        assert remembered == list(range(num_sinks, num_sinks + dropped[0]))


def test_rows_differ():
    """Row 1 starts a document, row 2 stands idle, row 0 goes on."""
    sinks, recent = (
        type(part)(*(array.repeat(3, axis=0) for array in vars(part).values()))
        for part in read(5, 2, 2)
    )
    start = np.array([False, True, False])
    sinks, recent = local_context.reset(sinks, start), cache.reset(recent, start)
    new, num_tokens = numbered(5, 3).repeat(3, 0), np.array([3, 2, 0])
    context = local_context.join(sinks, recent, new, new)
    assert context.present.astype(int).tolist() == [
        [1, 1, 1, 1, 1, 1, 1],
        [0, 0, 0, 0, 1, 1, 1],
        [1, 1, 1, 1, 1, 1, 1],
    ]
    keys, _, count = local_context.leaving(sinks, recent, new, new, num_tokens)
    assert count.tolist() == [3, 0, 0]
    assert keys[0].ravel().tolist() == [3, 4, 5]
    after = local_context.append(sinks, new, new, num_tokens)
    assert after.num_read.tolist() == [8, 2, 5]
    assert after.keys[:, :, 0, 0].tolist() == [[0, 1], [5, 6], [0, 1]]


def test_what_is_not_there_is_zero():
    """NaN of a document before takes no part, in sinks and in the cache (MEM-11)."""
    nothing = np.full((1, 3, 1, 1), np.nan)
    sinks = local_context.append(
        local_context.empty(1, 2, 1, 1, np.float64), nothing, nothing, np.array([3])
    )
    recent = cache.append(
        cache.empty(1, 2, 1, 1, np.float64), nothing, nothing, np.array([3])
    )
    sinks = local_context.reset(sinks, np.array([True]))
    recent = cache.reset(recent, np.array([True]))
    new = numbered(0, 1)
    context = local_context.join(sinks, recent, new, new)
    assert not np.isnan(context.keys).any()
    assert not np.isnan(context.values).any()
