"""A run that was stopped, or killed at any moment, ends as one that never was."""

import gc
import json
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors.numpy
from helpers import latest

from memorizing_jax import parameter_files
from memorizing_jax.__main__ import main

# Checkpoints so frequent that kills fall into them, lines and validations between.
SETTINGS = (
    "--preset=tiny",
    "--batch=3",
    "--steps=40",
    "--segment-length=8",
    "--memory-size=19",
    "--search=exact",
    "--log-interval=4",
    "--evaluation-interval=6",
    "--evaluation-tokens=60",
    "--sample-interval=7",
    "--checkpoint-interval=5",
    "--quiet",
)


def train(dataset, output, *more):
    return main(["train", f"--data={dataset}", f"--output={output}", *SETTINGS, *more])


def started(dataset, output):
    command = [sys.executable, "-m", "memorizing_jax", "train", f"--data={dataset}"]
    arguments = [*command, f"--output={output}", *SETTINGS, "--resume"]
    return subprocess.Popen(arguments, stderr=subprocess.PIPE)


def outcome(output):
    """Returns the lines of metrics but for their timings, and the parameters."""
    text = (output / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    for line in lines:
        for timing in ("tokens_per_second", "input_wait"):
            line.pop(timing, None)
    return lines, safetensors.numpy.load_file(output / "parameters.safetensors")


@pytest.fixture(scope="module")
def never_stopped(dataset, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "whole"
    assert train(dataset, output) == 0
    lines, parameters = outcome(output)
    assert [line["step"] for line in lines if "loss" in line] == [*range(4, 41, 4)]
    assert len([line for line in lines if "validation_loss" in line]) == 6
    return lines, parameters


def assert_equal(found, expected):
    assert found[0] == expected[0]
    assert found[1].keys() == expected[1].keys()
    for name, parameter in expected[1].items():
        np.testing.assert_array_equal(found[1][name], parameter)


@pytest.mark.rule("CKP-1")
def test_killed_at_random_moments(dataset, tmp_path, never_stopped):
    """SIGKILL, wherever it falls: in a step, a checkpoint or a line of metrics."""
    output, moments = tmp_path / "run", random.Random(1)
    reached = []
    for checkpoint in (5, 20):
        process = started(dataset, output)
        while process.poll() is None and latest(output) < checkpoint:
            time.sleep(0.002)
        time.sleep(moments.uniform(0.0, 0.15))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "it ended before the kill"
        reached.append(latest(output))
    assert reached[0] < reached[1] < 40
    assert train(dataset, output, "--resume") == 0
    assert_equal(outcome(output), never_stopped)


@pytest.mark.rule("CKP-1")
def test_asked_to_stop(dataset, tmp_path, never_stopped):
    """SIGTERM ends it after a checkpoint, with a word on how to go on."""
    output = tmp_path / "run"
    process = started(dataset, output)
    while process.poll() is None and latest(output) < 10:
        time.sleep(0.002)
    process.terminate()
    _, said = process.communicate()
    assert process.returncode == 0, said
    assert b"stopped by SIGTERM after a checkpoint; go on with" in said
    assert 10 <= latest(output) < 40
    assert train(dataset, output, "--resume") == 0
    assert_equal(outcome(output), never_stopped)


# What tensorstore's threads were doing when the reading failed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.rule("CKP-1")
def test_continued_from_an_earlier_checkpoint(dataset, tmp_path, never_stopped):
    """The newest is damaged: the sentence names the one before, and that works."""
    output = tmp_path / "run"
    assert train(dataset, output, "--steps=25") == 0
    for path in (output / "checkpoints" / "25" / "state").rglob("d/*"):
        path.write_bytes(b"")
    assert train(dataset, output, "--resume") == 2
    # Now, and not inside the parser: Python 3.11 cannot report what threads left
    # behind (as pytest does) while it builds a syntax tree (as tyro does).
    gc.collect()
    assert train(dataset, output, "--resume", "--step=20") == 0
    assert_equal(outcome(output), never_stopped)


def test_checkpoints_in_another_place(dataset, tmp_path, never_stopped):
    """The run remembers where, and all that reads its checkpoints looks there."""
    output, elsewhere = tmp_path / "run", tmp_path / "bucket" / "run"
    assert train(dataset, output, "--steps=20", f"--checkpoints={elsewhere}") == 0
    assert {path.name for path in elsewhere.iterdir()} == {"15", "20"}
    assert not (output / "checkpoints").exists()
    assert parameter_files.load_run(output).step == 20
    assert train(dataset, output, "--resume") == 0
    assert_equal(outcome(output), never_stopped)
    assert {path.name for path in elsewhere.iterdir()} == {"35", "40"}


@pytest.mark.rule("CKP-2")
def test_validation_does_not_disturb_training(dataset, tmp_path, never_stopped):
    output = tmp_path / "run"
    assert train(dataset, output, "--evaluation-interval=0") == 0
    lines, parameters = outcome(output)
    expected = [line for line in never_stopped[0] if "loss" in line]
    assert_equal((lines, parameters), (expected, never_stopped[1]))
