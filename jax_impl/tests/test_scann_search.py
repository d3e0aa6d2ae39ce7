"""ScaNN on the host: never another memory's answer, whatever became of the state."""

import dataclasses
import functools
import importlib.util
import json

import jax
import numpy as np
import pytest
from helpers import grid

from memorizing_jax import memory, scann_host, scann_index, search, train
from memorizing_jax.__main__ import main
from memorizing_jax.errors import InputError

BATCH, HEADS, DIM, LENGTH, SIZE, TOP_K = 3, 2, 6, 40, 150, 5

with_package = pytest.mark.skipif(
    importlib.util.find_spec("scann") is None,
    reason="ScaNN has wheels for Linux on x86-64 only",
)

empty = functools.partial(memory.empty, engine="scann")
reset = jax.jit(memory.reset)
insert = jax.jit(memory.insert)
find = jax.jit(search.find, static_argnames=("top_k", "engine", "recall_target"))


@pytest.fixture
def few_suffice(monkeypatch):
    """Makes ScaNN itself search all but the smallest memories."""
    monkeypatch.setattr(scann_host, "_FEWEST", 64)


def stream(seed, num_segments):
    """Yields a memory after each of some segments, with resets wherever they fall."""
    rng = np.random.default_rng(seed)
    stored = empty(BATCH, SIZE, HEADS, DIM)
    for _ in range(num_segments):
        count = rng.choice([LENGTH, LENGTH, rng.integers(0, LENGTH)], BATCH)
        keys = grid(rng, BATCH, LENGTH, HEADS, DIM)
        stored = reset(stored, rng.random(BATCH) < 0.1)
        stored = insert(stored, keys, -keys, count.astype(np.int32))
        yield stored


def true_scores(queries, stored):
    """Returns exact scores [batch, num_heads, query, slot]; -inf if not valid."""
    score = np.einsum("bqhd,bhsd->bhqs", queries, stored.keys)
    valid = np.arange(SIZE)[None, :] < np.asarray(stored.num_valid)[:, None]
    return np.where(valid[:, None, None, :], score, -np.inf)


def assert_sound(found, score):
    slots, scores = np.asarray(found.slots), np.asarray(found.scores)
    for at in np.ndindex(slots.shape[:3]):
        kept = slots[at][slots[at] >= 0]
        assert (slots[at][len(kept) :] == -1).all()
        assert len(set(kept.tolist())) == len(kept)
        assert np.isfinite(score[at][kept]).all(), "a slot that is not valid"
        np.testing.assert_array_equal(scores[at][: len(kept)], score[at][kept])
        ranked = list(zip(-scores[at][: len(kept)], kept, strict=True))
        assert ranked == sorted(ranked)


@with_package
@pytest.mark.rule("ANN-1")
@pytest.mark.usefixtures("few_suffice")
def test_what_scann_finds_is_sound():
    rng = np.random.default_rng(0)
    by_scann = hits = total = 0
    for stored in stream(1, 25):
        queries = grid(rng, BATCH, 4, HEADS, DIM)
        found = find(queries, stored, top_k=TOP_K, engine="scann", recall_target=1.0)
        score = true_scores(queries, stored)
        assert_sound(found, score)
        by_scann += (np.asarray(stored.num_valid) >= 64).sum()
        best = np.sort(score, axis=-1)[..., : -TOP_K - 1 : -1]
        hits += (np.isfinite(best) & (np.asarray(found.scores) >= best[..., -1:])).sum()
        total += np.isfinite(best).sum()
    assert by_scann > 30, "the memories were small: nothing was tested"
    # All leaves are read, so what is missed was lost on the way.
    assert hits >= 0.99 * total


@with_package
def test_fewer_keys_are_searched_by_brute_force():
    rng = np.random.default_rng(2)
    for stored in stream(3, 12):
        queries = grid(rng, BATCH, 4, HEADS, DIM)
        found = find(queries, stored, top_k=TOP_K, engine="scann")
        exact = find(queries, stored, top_k=TOP_K, engine="exact")
        # Of keys that tie for the last place any may be named.
        np.testing.assert_array_equal(found.scores, exact.scores)


@with_package
@pytest.mark.rule("CKP-1")
@pytest.mark.parametrize("grown", [False, True])
def test_an_older_state_is_answered_from_its_own_keys(grown):
    """Also after a restart, when the host has forgotten everything."""
    *_, older, newer = stream(4, 9)
    queries = grid(np.random.default_rng(5), BATCH, 4, HEADS, DIM)
    keys = grid(np.random.default_rng(6), BATCH, LENGTH, HEADS, DIM)
    full = np.full(BATCH, LENGTH, np.int32)
    for stored in (older, newer, older):
        if stored is newer:
            scann_index._KNOWN.clear()
        if grown:
            # Nobody on the host knows the state that the segment is added to.
            stored = insert(stored, keys, keys, full)
        found = find(queries, stored, top_k=TOP_K, engine="scann")
        exact = find(queries, stored, top_k=TOP_K, engine="exact")
        np.testing.assert_array_equal(found.scores, exact.scores)


@with_package
def test_the_host_follows_without_being_sent_the_memory(monkeypatch):
    """The stored keys go there once, for the state that it did not know."""
    sent = []
    built = scann_index.Searchers.of
    monkeypatch.setattr(
        scann_index.Searchers, "of", lambda *args: sent.append(1) or built(*args)
    )
    queries = grid(np.random.default_rng(7), BATCH, 4, HEADS, DIM)
    for stored in stream(8, 9):
        find(queries, stored, top_k=TOP_K, engine="scann").slots.block_until_ready()
    assert not sent
    scann_index._KNOWN.clear()
    for _ in range(3):
        find(queries, stored, top_k=TOP_K, engine="scann").slots.block_until_ready()
    assert len(sent) == 1


@with_package
def test_what_is_not_used_is_dropped(monkeypatch):
    monkeypatch.setattr(scann_index, "_KEPT", 3)
    scann_index._KNOWN.clear()
    for _ in stream(9, 2):
        pass
    for seed in range(5):
        *_, stored = stream(seed, 2)
        jax.block_until_ready(stored)
    assert len(scann_index._KNOWN) == 3


@with_package
@pytest.mark.rule("ANN-2")
def test_recall_reaches_its_target():
    size, length, dim = 8192, 1024, 32
    rng = np.random.default_rng(10)
    topics = rng.standard_normal((40, dim))
    keys = topics[rng.integers(0, 40, 12 * length)]
    keys = keys + 0.5 * rng.standard_normal(keys.shape)
    keys /= np.linalg.norm(keys, axis=-1, keepdims=True)
    keys = keys.astype(np.float32).reshape(1, -1, 1, dim)
    stored = empty(1, size, 1, dim)
    for first in range(0, keys.shape[1], length):
        segment = keys[:, first : first + length]
        stored = insert(stored, segment, segment, np.full(1, length, np.int32))
    queries = keys[:, ::97] + 0.05 * rng.standard_normal((1, 1, 1, dim), np.float32)
    true = np.asarray(find(queries, stored, top_k=32, engine="exact").slots)
    found = find(queries, stored, top_k=32, engine="scann", recall_target=0.95)
    hits = (true[..., :, None] == np.asarray(found.slots)[..., None, :]).any(-1)
    assert hits.mean() >= 0.95
    leaves = scann_host.num_leaves(size)
    assert scann_host.leaves_to_search(0.95, leaves) < 0.5 * leaves


@with_package
def test_more_recall_reads_more_leaves():
    leaves = [scann_host.leaves_to_search(r, 256) for r in (0.5, 0.9, 0.95, 0.98, 1.0)]
    assert leaves == sorted(set(leaves))
    assert leaves[-1] == 256


@with_package
def test_training_with_scann_is_training_with_exact_search(
    no_validation, dataset, tmp_path
):
    """Small memories are searched by brute force, in a step that is differentiated."""
    losses = {}
    for engine in ("exact", "scann"):
        searched = no_validation.model.replace(search=engine)
        settings = dataclasses.replace(no_validation, model=searched)
        train.train(settings, dataset, tmp_path / engine, quiet=True)
        lines = (tmp_path / engine / "metrics.jsonl").read_text().splitlines()
        losses[engine] = [json.loads(line)["loss"] for line in lines]
    # The programs differ, and so may the last bits of a float32.
    np.testing.assert_allclose(losses["scann"], losses["exact"], rtol=1e-5)


def test_without_the_package(monkeypatch, dataset, tmp_path, capfd):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name == "scann" else find_spec(name),
    )
    with pytest.raises(
        InputError, match=r"pip install 'memorizing-transformers\[scann"
    ):
        memory.empty(1, 9, HEADS, DIM, engine="scann")
    output = tmp_path / "run"
    arguments = ["train", "--preset=tiny", f"--data={dataset}", f"--output={output}"]
    assert main([*arguments, "--search=scann"]) == 2
    assert "scann is not installed" in capfd.readouterr().err
