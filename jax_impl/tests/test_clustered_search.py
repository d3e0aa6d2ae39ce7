"""Clustered search: lists that lose nothing, and answers that are always sound."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import grid

from memorizing_jax import (
    clustered_index,
    clustered_lists,
    clustered_search,
    clustered_tiles,
    memory,
    search,
    train,
)
from memorizing_jax.errors import InputError

BATCH, HEADS, DIM, LENGTH, SIZE, TOP_K = 3, 2, 7, 23, 150, 5

empty = functools.partial(memory.empty, engine="clustered")
reset = jax.jit(memory.reset)
insert = jax.jit(memory.insert)
find = jax.jit(search.find, static_argnames=("top_k", "engine", "recall_target"))


def stream(seed, num_segments, draw=grid, size=SIZE):
    """Yields a memory after each of some segments, and what its keys should be.

    Rows begin new documents, and segments end, wherever chance has it.
    """
    rng = np.random.default_rng(seed)
    stored = empty(BATCH, size, HEADS, DIM)
    pairs = [[] for _ in range(BATCH)]
    for _ in range(num_segments):
        start = rng.random(BATCH) < 0.08
        count = rng.choice([LENGTH, LENGTH, rng.integers(0, LENGTH)], BATCH)
        keys = draw(rng, BATCH, LENGTH, HEADS, DIM)
        stored = reset(stored, start)
        stored = insert(stored, keys, -keys, count.astype(np.int32))
        for row in range(BATCH):
            kept = [] if start[row] else pairs[row]
            pairs[row] = kept + list(keys[row, : count[row]])
        yield stored, pairs


def assert_index_is_whole(stored):
    """Every valid slot is in one list, which says so, and stands there by its age."""
    index, num_written = stored.index, np.asarray(stored.num_written)
    lists, size = index.lists, stored.memory_size
    held = clustered_lists.held_places(lists.first, lists.count, lists.slots.shape[2])
    steps, scales = clustered_lists.quantize(stored.keys.astype(jnp.float32))
    arrays = (held, lists.slots, lists.keys, lists.scales, lists.first, index.list_of)
    held, slots, keys, in_scale, first, list_of = map(np.asarray, arrays)
    steps, scales = np.asarray(steps), np.asarray(scales)
    for group in range(slots.shape[0]):
        row, head = divmod(group, HEADS)
        where = np.argwhere(held[group])
        found = slots[group][held[group]]
        num_valid = min(num_written[row], size)
        assert sorted(found.tolist()) == list(range(num_valid))
        for (number, place), slot in zip(where, found, strict=True):
            assert list_of[group, slot] == number
            # What a rebuilt index would hold of that slot, bit for bit.
            np.testing.assert_array_equal(
                keys[group, number, :, place], steps[row, head, slot]
            )
            assert in_scale[group, number, place] == scales[row, head, slot]
        for number in np.unique(where[:, 0]):
            ring = np.roll(held[group, number], -first[group, number])
            in_order = np.roll(slots[group, number], -first[group, number])[ring]
            age = (in_order - num_written[row]) % size
            assert (np.diff(age) > 0).all(), "a younger pair before an older one"


def near_duplicates(rng, *shape):
    """Draws keys of which many are equal: no cut can tell them apart."""
    return grid(rng, 3, shape[-1])[rng.integers(0, 3, shape[:-1])]


def drifting(rng, *shape):
    """Draws the keys of a segment around a place of its own."""
    return grid(rng, shape[-1]) + grid(rng, *shape) / 4


@pytest.mark.rule("ANN-1")
@pytest.mark.parametrize("draw", [grid, near_duplicates])
def test_the_lists_hold_the_memory(draw):
    for stored, pairs in stream(0, 30, draw):
        assert stored.num_written.tolist() == [len(p) for p in pairs]
        assert_index_is_whole(stored)


@pytest.mark.rule("ANN-1")
def test_small_lists_are_joined_when_none_is_free():
    """Keys come elsewhere than they leave, so lists shrink while others are cut."""
    num_full = 0
    for stored, _ in stream(1, 60, drifting):
        assert_index_is_whole(stored)
        num_full += (np.asarray(stored.index.lists.count) > 0).all(1).any()
    assert num_full > 10, "there always was a free list: nothing was tested"


@pytest.mark.rule("ANN-1")
@pytest.mark.parametrize("recall_target", [0.3, 0.9])
def test_what_is_found_is_sound(recall_target):
    rng = np.random.default_rng(1)
    missed = 0
    for stored, _ in stream(2, 20):
        queries = grid(rng, BATCH, 4, HEADS, DIM)
        answer = find(
            queries,
            stored,
            top_k=TOP_K,
            engine="clustered",
            recall_target=recall_target,
        )
        slots, scores = np.asarray(answer.slots), np.asarray(answer.scores)
        true = np.einsum("bqhd,bhsd->bhqs", queries, stored.keys)
        num_valid = np.minimum(stored.num_written, SIZE)
        true[
            ~(np.arange(SIZE) < num_valid[:, None, None, None])
            .repeat(HEADS, 1)
            .repeat(4, 2)
        ] = -np.inf
        for at in np.ndindex(slots.shape[:3]):
            kept = slots[at][slots[at] >= 0]
            assert (slots[at][len(kept) :] == -1).all()
            assert len(set(kept.tolist())) == len(kept)
            assert (kept < num_valid[at[0]]).all()
            np.testing.assert_array_equal(scores[at][: len(kept)], true[at][kept])
            assert np.isneginf(scores[at][len(kept) :]).all()
            # Best first, ties to the lower slot.
            order = list(zip(-scores[at][: len(kept)], kept, strict=True))
            assert order == sorted(order)
            best = np.sort(true[at])[::-1][:TOP_K]
            missed += (scores[at] < best).any()
    assert missed > 0 or recall_target > 0.5, "all lists were read: nothing was tested"


@pytest.mark.rule("ANN-2")
def test_of_few_lists_all_are_read():
    """Then nothing is missed, whichever list a pair has come to stand in."""
    for stored, _ in stream(3, 20):
        queries = grid(np.random.default_rng(4), BATCH, 4, HEADS, DIM)
        for_all = functools.partial(find, queries, stored, top_k=TOP_K)
        exact = for_all(engine="exact")
        found = for_all(engine="clustered", recall_target=0.999)
        np.testing.assert_array_equal(found.slots, exact.slots)
        np.testing.assert_array_equal(found.scores, exact.scores)


def clustered_keys(rng, *shape):
    """Draws unit vectors around forty directions, as keys of a text have topics."""
    topics = rng.standard_normal((40, shape[-1]))
    near = topics[rng.integers(0, 40, shape[:-1])] + 0.5 * rng.standard_normal(shape)
    near /= np.linalg.norm(near, axis=-1, keepdims=True)
    return near.astype(np.float32)


@pytest.mark.rule("ANN-2")
@pytest.mark.parametrize("recall_target", [0.8, 0.95])
def test_recall_reaches_its_target(recall_target):
    size, length, dim = 8192, 512, 32
    rng = np.random.default_rng(5)
    keys = clustered_keys(rng, 1, 24 * length, HEADS, dim)
    stored = empty(1, size, HEADS, dim)
    for first in range(0, keys.shape[1], length):
        segment = keys[:, first : first + length]
        stored = insert(stored, segment, segment, np.full(1, length, np.int32))
    queries = keys[:, ::97] + 0.05 * rng.standard_normal(
        keys[:, ::97].shape, np.float32
    )
    true = np.asarray(find(queries, stored, top_k=32, engine="exact").slots)
    found = find(
        queries, stored, top_k=32, engine="clustered", recall_target=recall_target
    )
    hits = (true[..., :, None] == np.asarray(found.slots)[..., None, :]).any(-1)
    assert hits.mean() >= recall_target
    probes = clustered_search.num_probes(
        recall_target, stored.index.lists.count.shape[1]
    )
    assert probes < 0.5 * stored.index.lists.count.shape[1]


def test_more_recall_reads_more_lists():
    probes = [clustered_search.num_probes(r, 800) for r in (0.5, 0.9, 0.95, 0.98, 1.0)]
    assert probes == sorted(set(probes))
    assert probes[-1] == 800
    assert clustered_search.num_probes(0.98, 7) == 7


@pytest.mark.parametrize("memory_size", [1, 5, 16, 1000, 65_536, 1_048_576])
def test_lists_have_room_for_all(memory_size):
    num_lists, list_size = clustered_index.sizes(memory_size)
    assert list_size >= 4
    assert 1.6 * memory_size <= num_lists * list_size <= 1.7 * memory_size + 8 * 4


@pytest.mark.parametrize("at_once", [1, 8])
def test_rows_of_scores_are_those_of_the_lists(monkeypatch, at_once):
    monkeypatch.setattr(clustered_tiles, "_TILES_AT_ONCE", {"cpu": at_once})
    *_, (stored, _) = stream(6, 9)
    lists = stored.index.lists
    num_lists, list_size = lists.slots.shape[1:]
    rng = np.random.default_rng(7)
    queries = grid(rng, 40, DIM)
    # Many readers of few lists, and some probes of none.
    probed = np.stack([rng.permutation(num_lists + 1)[:6] for _ in range(40)])
    probed[:, 5] = num_lists
    group = jnp.int32(3)
    probed = probed.astype(np.int32)
    rows, row_of = jax.jit(clustered_tiles.scores)(lists, group, queries, probed)
    held = clustered_lists.held_places(lists.first, lists.count, list_size)[3]
    keys = np.asarray(lists.keys[3], np.float32) * np.asarray(lists.scales[3])[:, None]
    for query, number in np.ndindex(probed.shape):
        row = np.asarray(rows[row_of[query, number]])
        if probed[query, number] == num_lists:
            assert np.isneginf(row).all()
            continue
        here = np.asarray(held[probed[query, number]])
        expected = queries[query] @ keys[probed[query, number]]
        # Sums of seven products of size one, in float32.
        np.testing.assert_allclose(row[here], expected[here], atol=1e-5)
        assert np.isneginf(row[~here]).all()


@pytest.mark.rule("MEM-11")
def test_a_nan_before_a_reset_leaves_no_trace():
    full = np.full(BATCH, LENGTH, np.int32)
    rng = np.random.default_rng(8)
    keys = [grid(rng, BATCH, LENGTH, HEADS, DIM) for _ in range(9)]
    bad = np.full_like(keys[0], np.nan)
    found = []
    for before in ([], [bad] * 9):
        stored = empty(BATCH, SIZE, HEADS, DIM)
        for segment in before:
            stored = insert(stored, segment, segment, full)
            held = clustered_lists.held_places(
                stored.index.lists.first,
                stored.index.lists.count,
                stored.index.lists.slots.shape[2],
            )
            slots = np.asarray(stored.index.lists.slots)[0][held[0]]
            assert len(set(slots.tolist())) == len(slots) == stored.num_valid[0]
        stored = reset(stored, np.ones(BATCH, bool))
        for segment in keys:
            stored = insert(stored, segment, segment, full)
        assert_index_is_whole(stored)
        queries = keys[0][:, :4]
        found.append(
            find(queries, stored, top_k=TOP_K, engine="clustered", recall_target=0.3)
        )
    np.testing.assert_array_equal(found[0].slots, found[1].slots)


@pytest.mark.rule("MEM-10")
def test_bfloat16_is_indexed_as_it_is_stored():
    rng = np.random.default_rng(9)
    stored = empty(BATCH, 50, HEADS, DIM, "bfloat16")
    for _ in range(4):
        keys = rng.standard_normal((BATCH, LENGTH, HEADS, DIM), np.float32)
        stored = insert(stored, keys, keys, np.full(BATCH, LENGTH, np.int32))
    assert_index_is_whole(stored)


@pytest.mark.rule("MEM-2")
def test_a_segment_longer_than_the_memory():
    rng = np.random.default_rng(10)
    stored = empty(BATCH, 9, HEADS, DIM)
    for count in ([LENGTH, 10, 3], [9, LENGTH, 0], [1, 2, LENGTH]):
        keys = grid(rng, BATCH, LENGTH, HEADS, DIM)
        stored = insert(stored, keys, keys, np.array(count, np.int32))
        assert_index_is_whole(stored)


def test_a_memory_without_lists_is_refused():
    stored = memory.empty(1, 9, HEADS, DIM)
    queries = np.zeros((1, 2, HEADS, DIM), np.float32)
    with pytest.raises(
        InputError, match=r"no index for it; make it with memory\.empty"
    ):
        search.find(queries, stored, top_k=1, engine="clustered")


def test_insertion_copies_no_list():
    """In place, with a scratch space of centers and segment, not of pairs."""
    size, dim, length = 1_048_576, 8, 64
    shapes = jax.eval_shape(lambda: empty(1, size, 1, dim))
    segment = jax.ShapeDtypeStruct((1, length, 1, dim), jnp.float32)
    count = jax.ShapeDtypeStruct((1,), jnp.int32)
    donated = jax.jit(memory.insert, donate_argnums=0)
    compiled = donated.lower(shapes, segment, segment, count).compile()
    lists = shapes.index.lists
    sizes = ",".join(map(str, lists.keys.shape))
    assert re.search(rf"s8\[{sizes}\]", compiled.as_text())
    assert not re.search(rf"s8\[{sizes}\]\S* copy\(", compiled.as_text())
    used = compiled.memory_analysis()
    held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))
    assert used.alias_size_in_bytes >= 0.99 * held
    num_lists, list_size = lists.slots.shape[1:]
    room = 4 * (4 * num_lists * (dim + length) + 64 * list_size * dim + 64 * length**2)
    assert used.temp_size_in_bytes < room < 0.2 * held


def test_search_allocates_no_row_of_all_scores():
    size, dim, length = 1_048_576, 8, 64
    shapes = jax.eval_shape(lambda: empty(1, size, 2, dim))
    queries = jax.ShapeDtypeStruct((1, length, 2, dim), jnp.float32)
    compiled = find.lower(
        queries, shapes, top_k=32, engine="clustered", recall_target=0.95
    ).compile()
    found = re.findall(r"= \(?\w+\[([\d,]+)\]\S* (?!parameter)", compiled.as_text())
    num_lists, list_size = shapes.index.lists.slots.shape[1:]
    probes = clustered_search.num_probes(0.95, num_lists)
    # Of each query and list probed, a row; and those of one tile.
    rows = length * probes + clustered_tiles.tile_size(length * probes, num_lists)
    largest = max(math.prod(map(int, sizes.split(","))) for sizes in found)
    assert largest <= max(rows * list_size, shapes.index.lists.keys.size)
    assert compiled.memory_analysis().temp_size_in_bytes < 8 * rows * list_size


@pytest.mark.rule("CKP-1")
def test_an_index_is_part_of_the_state(no_validation, dataset, tmp_path):
    """A run continued from a checkpoint goes on with the lists that it had."""
    # So low that a query reads some of the lists only.
    searched = no_validation.model.replace(search="clustered", recall_target=0.3)
    settings = dataclasses.replace(no_validation, model=searched, checkpoints_kept=9)
    saved = []
    for again in ({}, {"resume": True, "step": 4}):
        train.train(settings, dataset, tmp_path / "run", quiet=True, **again)
        saved.append((tmp_path / "run" / "parameters.safetensors").read_bytes())
    assert saved[0] == saved[1]
