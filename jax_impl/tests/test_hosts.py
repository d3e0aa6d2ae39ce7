"""Runs of several real processes: the same numbers, checkpoints for any, one end."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors.numpy
from helpers import latest

from memorizing_jax import hosts
from memorizing_jax.__main__ import main
from memorizing_jax.errors import InputError
from memorizing_jax.hosts import HostsConfig

SETTINGS = (
    "--preset=tiny",
    "--batch=4",
    "--steps=24",
    "--segment-length=8",
    "--memory-size=20",
    "--search=exact",
    "--log-interval=4",
    "--evaluation-interval=12",
    "--evaluation-tokens=60",
    "--checkpoint-interval=4",
    "--quiet",
)
# Sums over rows are taken in another order: float32 rounding, grown over 24 steps.
TOLERANCE = 1e-4
# Seconds until a test gives up: for machines that have much else to do.
LONGEST = 300


def train(dataset, output, *more):
    return main(["train", f"--data={dataset}", f"--output={output}", *SETTINGS, *more])


@contextlib.contextmanager
def processes(number, dataset, output, *more, devices=1, differing=None):
    """Starts the processes of one run, and leaves none behind."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "memorizing_jax", "train", f"--data={dataset}"]
    command += [f"--output={output}", *SETTINGS, f"--coordinator={coordinator}"]
    flags = f"--xla_force_host_platform_device_count={devices}"
    started = [
        subprocess.Popen(
            [*command, f"--num-processes={number}", f"--process-id={i}", *more]
            + ([differing[i]] if differing else []),
            env=os.environ | {"XLA_FLAGS": flags},
            stdout=subprocess.DEVNULL,  # Where Gloo says that it is connected.
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(number)
    ]
    try:
        yield started
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
                process.communicate()


def ended(started):
    """Waits for all; returns the status of each and what it said."""
    said = [process.communicate(timeout=LONGEST)[1] for process in started]
    return [process.returncode for process in started], said


def wait_for_checkpoint(started, output, step):
    while latest(output) < step:
        if any(process.poll() is not None for process in started):
            pytest.fail(f"it ended before step {step}: {ended(started)}")
        time.sleep(0.005)


def outcome(output):
    """Returns losses by step, of training and of validation, and the parameters."""
    lines = [json.loads(s) for s in (output / "metrics.jsonl").read_text().splitlines()]
    losses = {
        (line["step"], name): line[name]
        for line in lines
        for name in ("loss", "validation_loss")
        if name in line
    }
    assert len(losses) == len(lines), "a line for every step, and none twice"
    return losses, safetensors.numpy.load_file(output / "parameters.safetensors")


@pytest.fixture(scope="module")
def never_stopped(dataset, tmp_path_factory):
    """Returns the outcome of a run of a single process."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    assert train(dataset, output) == 0
    return outcome(output)


def assert_close(found, expected):
    assert found[0].keys() == expected[0].keys()
    for step, loss in expected[0].items():
        assert found[0][step] == pytest.approx(loss, abs=TOLERANCE), step
    assert found[1].keys() == expected[1].keys()
    for name, parameter in expected[1].items():
        np.testing.assert_allclose(found[1][name], parameter, atol=TOLERANCE)


@pytest.mark.rule("CKP-1")
def test_killed_and_continued_by_others(dataset, tmp_path, never_stopped):
    """One process, then four, one of them killed, then two on another mesh."""
    output = tmp_path / "run"
    assert train(dataset, output, "--steps=4") == 0
    more = ["--resume", "--checkpoint-interval=2"]
    with processes(4, dataset, output, *more) as four:
        wait_for_checkpoint(four, output, 8)
        four[2].kill()
        statuses, said = ended(four)
    assert statuses[2] == -signal.SIGKILL
    for i in (0, 1, 3):
        assert statuses[i] != 0
        assert f"memorizing_jax: process {i} of 4 " in said[i]
        assert f"go on with train --resume --data {dataset} --output" in said[i]
        assert "Traceback" not in said[i]
    assert 8 <= latest(output) < 24
    with processes(2, dataset, output, *more, "--mesh.memory=2", devices=2) as two:
        statuses, said = ended(two)
    assert statuses == [0, 0], said
    assert_close(outcome(output), never_stopped)


@pytest.mark.rule("CKP-1")
def test_asked_to_stop(dataset, tmp_path, never_stopped):
    """SIGTERM to the second of two on a mesh: both stop at one step; one goes on."""
    output = tmp_path / "run"
    with processes(2, dataset, output, "--mesh.memory=2") as two:
        wait_for_checkpoint(two, output, 4)
        two[1].terminate()
        statuses, said = ended(two)
    assert statuses == [0, 0], said
    assert "stopped by SIGTERM after a checkpoint; go on with" in said[0]
    assert 4 <= latest(output) < 24
    assert train(dataset, output, "--resume", "--mesh.memory=1") == 0
    assert_close(outcome(output), never_stopped)


def test_a_process_that_no_longer_answers(dataset, tmp_path):
    """It is there, but frozen: the heartbeats that it misses end the others."""
    output = tmp_path / "run"
    more = ["--steps=10000", "--heartbeat-timeout=3"]
    with processes(2, dataset, output, *more) as two:
        wait_for_checkpoint(two, output, 4)
        two[0].send_signal(signal.SIGSTOP)
        statuses, said = ended(two[1:])
    assert statuses[0] != 0
    assert "memorizing_jax: process 1 of 2 " in said[0].splitlines()[-1]
    assert "go on with train --resume" in said[0]


def test_processes_that_disagree_or_may_not_write(dataset, tmp_path):
    """All end with a sentence, and none waits for another."""
    output = tmp_path / "run"
    with processes(2, dataset, output, differing=("--seed=1", "--seed=2")) as two:
        statuses, said = ended(two)
    assert statuses == [2, 2]
    assert "process 1 has seed 2, and process 0 has 1; start all" in said[1]
    assert not output.exists()
    output.mkdir()
    (output / "letter").write_text("dear diary")
    with processes(2, dataset, output) as two:
        statuses, said = ended(two)
    assert statuses == [2, 2]
    for sentence in said:
        assert f"{output} holds files, but no run to continue" in sentence


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"coordinator": "host:1"}, "num_processes and process_id go together"),
        (
            {"coordinator": "host:1", "num_processes": 2, "process_id": 2},
            "process_id is 2 of num_processes 2, must be from 0 to one less",
        ),
        ({"heartbeat_timeout": 0}, "heartbeat_timeout is 0, must be 1 or more"),
    ],
)
def test_settings_that_lead_nowhere(settings, sentence):
    with pytest.raises(InputError, match=sentence):
        HostsConfig(**settings)


def test_alone_there_is_nothing_to_agree_on():
    assert hosts.is_first()
    assert hosts.from_first(lambda: [1, "two"]) == [1, "two"]
    assert hosts.from_all(3.0) == [3.0]
    hosts.check_same({"steps": 3})
    with hosts.joined(HostsConfig(), "go on"):
        assert hosts.leave(7) == 7
