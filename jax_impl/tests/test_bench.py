"""Benchmarks measure what they say, on sizes too small for the numbers to matter."""

import argparse
import json
from typing import Literal

import jax
import numpy as np
import pytest
from helpers import SMALL, draw_parameters

from memorizing_jax import (
    bench,
    bench_keys,
    bench_memory,
    bench_peers,
    bench_plots,
    bench_search,
    bench_step,
    layers,
    parameters,
    search,
)
from memorizing_jax.bench_report import round_robin, rows_of, table


def test_all_run_in_turn_and_the_first_round_does_not_count():
    calls = []
    runs = {name: lambda name=name: calls.append(name) for name in ("a", "b")}
    seconds = round_robin(runs, rounds=3, quiet=True)
    assert calls == ["a", "b"] * 4
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}
    assert all(second >= 0 for times in seconds.values() for second in times)


def test_rows_by_hand():
    seconds = {"base": [0.2, 0.1, 0.3], "other": [0.3, 0.5, 0.1]}
    rows = rows_of(seconds, "base", keys="random")
    assert rows[1] == {
        "keys": "random",
        "name": "other",
        "median_ms": 300.0,
        "least_ms": 100.0,
        "most_ms": 500.0,
        "ratio": 0.3 / 0.2,
    }
    assert [row["ratio"] for row in rows_of(seconds, "other")][1] == 1
    lines = table([*rows, rows[0] | {"keys": None}]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[3].split("|")[1:3] == [" random ", " other "]
    assert lines[4].split()[1] == "-"


def test_training_step_reads_a_full_memory_and_learns_from_it(monkeypatch):
    monkeypatch.setattr(parameters, "init", lambda config, _: draw_parameters(config))
    config = SMALL.replace(num_layers=1, memory_layers=(0,))
    run = bench_step.training_step(config)
    (first, gradients), (second, _) = run(), run()
    assert np.isfinite([first, second]).all()
    # The second segment finds other pairs: those that the first has left.
    assert first != second
    assert (np.asarray(gradients["layers.0.gate_bias"]) != 0).all()


def test_search_is_measured_against_the_product_and_the_truth(monkeypatch):
    monkeypatch.setattr(bench_search, "SearchEngine", Literal["exact"])
    peers = bench_peers.available(bench_search.TOP_K)
    only = {"NumPy": peers["NumPy"]}
    monkeypatch.setattr(bench_peers, "available", lambda _: only)
    monkeypatch.setattr(bench_search, "MOST_SCORES", 1)
    rows = bench_search.measure(bench_keys.clustered, "clustered", 96, 8, 1, True)
    assert [row["name"] for row in rows] == ["product", "exact", "NumPy"]
    assert [row["recall"] for row in rows] == [None, 1.0, 1.0]
    assert rows[0]["ratio"] == 1
    assert {row["queries"] for row in rows} == {32 * bench_search.HEADS}


def test_growth_compares_sizes_of_memory(monkeypatch):
    monkeypatch.setattr(bench_search, "GROWING", ("bucketed",))
    monkeypatch.setattr(bench_search, "MOST_SCORES", 9 * 96)

    def draw(num_keys, num_queries, num_heads, head_dim):
        return bench_keys.random(num_keys, num_queries, num_heads, head_dim + 8)

    args = argparse.Namespace(rounds=1, quiet=True)
    rows = bench_search.growth(draw, (48, 96), args)
    names = [row["name"] for row in rows]
    assert names == ["bucketed, 48 pairs", "bucketed, 96 pairs"]
    assert rows[0]["ratio"] == 1
    assert all(row["recall"] > 0.9 for row in rows)


def test_recorded_vectors_take_the_place_of_the_models_own(monkeypatch):
    """The memory is asked with those queries and never holds but those keys."""
    config = SMALL.replace(
        num_layers=1,
        memory_layers=(0,),
        memory_size=4 * SMALL.segment_length,
        search="bucketed",
    )
    monkeypatch.setattr(bench_step, "STEP", config)
    asked, find = [], search.find

    def watched(queries, memory, **settings):
        jax.debug.callback(lambda q, m: asked.append((q, m)), queries, memory.keys)
        return find(queries, memory, **settings)

    monkeypatch.setattr(search, "find", watched)

    def draw(num_keys, num_queries, num_heads, head_dim):
        return bench_keys.random(num_keys, num_queries, num_heads, head_dim - 1)

    recorded = bench_step.recorded(draw, config.memory_size)
    run = bench_step.training_step(config, recorded)
    own = layers.project
    for _ in range(3):
        (_, gradients) = run()
    jax.effects_barrier()
    assert layers.project is own
    assert len(asked) == 3
    for queries, keys in asked:
        np.testing.assert_array_equal(queries, recorded.queries)
        np.testing.assert_array_equal(keys, recorded.keys.swapaxes(1, 2))
    assert (np.asarray(recorded.keys)[..., -1] == 0).all()
    assert np.isfinite(gradients["layers.0.query_kernel"]).all()
    assert 0.5 < bench_step.recall(config, recorded) <= 1


@pytest.mark.parametrize("draw", [bench_keys.random, bench_keys.clustered])
def test_keys_are_unit_vectors_and_the_same_every_time(draw):
    keys, queries = draw(70, 9, 2, 5)
    assert keys.shape == (70, 2, 5)
    assert queries.shape == (9, 2, 5)
    for x in (keys, queries):
        # Two roundings of float32.
        np.testing.assert_allclose(np.linalg.norm(x, axis=-1), 1, rtol=3e-7)
    np.testing.assert_array_equal(draw(70, 9, 2, 5)[0], keys)


def test_bytes_of_a_search(monkeypatch):
    monkeypatch.setattr(bench_memory, "STEP", SMALL)
    row = bench_memory.peak_bytes("exact", 10_000)
    queries = SMALL.segment_length * SMALL.num_heads
    assert row["queries"] == queries
    assert row["bytes_per_query"] == int(row["temporary_MB"] * 1e6) // queries
    # More than the scores of a block, in float32; less than those of the memory.
    assert 4 * 2048 <= row["bytes_per_query"] < 4 * 10_000


def test_plots_are_small_files(tmp_path):
    timed = rows_of({"base": [0.2, 0.1], "other": [0.3, 0.5]}, "base", memory_size=8)
    searched = [
        row | {"keys": "random", "head_dim": 4, "recall": recall}
        for row, recall in zip(timed, (None, 0.5), strict=True)
    ]
    bench_plots.bars(tmp_path / "bars.png", timed)
    bench_plots.recall_and_time(tmp_path / "search.png", searched)
    for path in tmp_path.iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size < 200_000


def test_command_writes_what_it_prints(monkeypatch, tmp_path, capsys):
    def answer(args):
        """What is asked."""
        assert args.rounds == 2
        yield [{"name": "x", "ratio": 1.5}]
        yield [{"name": "y", "ratio": 2.5}]

    monkeypatch.setattr(bench, "QUESTIONS", {"small": answer})
    output = tmp_path / "new" / "folder"
    arguments = ["bench", "small", "--rounds=2", f"--output={output}", "--quiet"]
    monkeypatch.setattr("sys.argv", arguments)
    bench.main()
    printed = capsys.readouterr().out
    assert "What is asked." in printed
    assert "|    x |  1.50 |" in printed
    assert f"JAX {jax.__version__}" in printed
    names = sorted(path.name for path in output.iterdir())
    assert names == ["small.json", "small.png"]
    written = json.loads((output / "small.json").read_text())
    assert [row["name"] for row in written["rows"]] == ["x", "y"]
    assert written["machine"] in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["speed"], "no question 'speed'; there are step, product, insertion, peak"),
        (["step", "--rounds=0"], "--rounds is 0, must be 1 or more"),
        (["search", "--tokens=x"], "--parameters and --tokens go together"),
    ],
)
def test_command_refuses(monkeypatch, capsys, arguments, message):
    monkeypatch.setattr("sys.argv", ["bench", *arguments])
    with pytest.raises(SystemExit) as stopped:
        bench.main()
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
