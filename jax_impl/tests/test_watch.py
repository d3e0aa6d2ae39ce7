"""Watching a run: nothing of it changes, traces appear, bad requests are refused."""

import json

import numpy as np
import pytest
import safetensors.numpy

from memorizing_jax import memory_metrics
from memorizing_jax.__main__ import main

SETTINGS = (
    "--preset=tiny",
    "--batch=2",
    "--steps=6",
    "--segment-length=8",
    "--memory-size=19",
    "--recall-target=0.5",
    "--evaluation-interval=0",
    "--log-interval=2",
)


def train(dataset, output, *more):
    return main(["train", f"--data={dataset}", f"--output={output}", *SETTINGS, *more])


def outcome(output):
    """Returns the lines of metrics but for their timings, and the parameters."""
    text = (output / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    by_token = ("utilization", "utilization_with_search")
    for line in lines:
        for name in ("tokens_per_second", "input_wait", *by_token):
            line.pop(name, None)
    return lines, safetensors.numpy.load_file(output / "parameters.safetensors")


def test_watching_changes_nothing(dataset, tmp_path, capsys):
    """Every way at once, against none: the same losses and parameters, bit for bit."""
    assert train(dataset, tmp_path / "plain", "--sample-interval=0", "--quiet") == 0
    everything = ("--tensorboard", "--profile=2", "--peak-tflops=1")
    watched, compiled = tmp_path / "watched", memory_metrics.measure._cache_size()
    assert train(dataset, watched, "--sample-interval=3", *everything) == 0
    assert memory_metrics.measure._cache_size() == compiled + 1
    said = capsys.readouterr().err
    assert f"the trace of steps 4 to 5 is in {watched / 'profile'}" in said
    assert "utilization=" in said

    expected, found = outcome(tmp_path / "plain"), outcome(watched)
    looked = [line.pop("memory", None) for line in found[0]]
    assert [line is not None for line in looked] == [False, True, True]
    assert 0.0 < looked[1]["recall"]["1"] <= 1.0
    assert looked[1]["age_p95"]["1"] >= looked[1]["age_median"]["1"] >= 1.0
    assert all(0.0 < share < 1.0 for share in looked[1]["memory_share"]["1"])
    assert found[0] == expected[0]
    for name, parameter in expected[1].items():
        np.testing.assert_array_equal(found[1][name], parameter)

    assert list((watched / "tensorboard").glob("events.out.tfevents.*"))
    (trace,) = (watched / "profile" / "plugins" / "profile").iterdir()
    for kind in ("*.trace.json.gz", "*.xplane.pb"):
        assert [path.stat().st_size > 0 for path in trace.glob(kind)] == [True]


def test_a_run_too_short_to_trace_says_so(dataset, tmp_path, capsys):
    assert train(dataset, tmp_path / "run", "--steps=2", "--profile=1") == 0
    assert "no step was traced, as the run ended 2 steps" in capsys.readouterr().err
    assert not (tmp_path / "run" / "profile").exists()


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--profile=-1", "profile is -1, must be 0 or more steps"),
        ("--peak-tflops=0", "peak_tflops is 0.0, must be above 0"),
        ("--sample-interval=-1", "sample_interval is -1, must be 0 or more"),
    ],
)
def test_refuses(dataset, tmp_path, capsys, flag, message):
    assert train(dataset, tmp_path / "run", flag) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_names_the_extra_that_tensorboard_needs(dataset, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert train(dataset, tmp_path / "run", "--tensorboard") == 2
    sentence = capsys.readouterr().err
    assert "pip install 'memorizing-transformers[tensorboard]'" in sentence
    assert not (tmp_path / "run").exists()
