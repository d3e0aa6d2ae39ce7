"""Lines of metrics: their means, and which of them a resumed run keeps."""

import json
from pathlib import Path

import jax.numpy as jnp
import pytest

from memorizing_jax import metrics
from memorizing_jax.errors import InputError, NotFiniteError
from memorizing_jax.metrics import Log
from memorizing_jax.train_step import Metrics


def measured(nats, num_predicted=2):
    return Metrics(
        nats=jnp.float32(nats),
        num_predicted=jnp.int32(num_predicted),
        finite_rows=jnp.isfinite(jnp.array([1.0, nats, 2.0])),
        gradient_norm=jnp.float32(nats / 2),
        learning_rate=jnp.float32(0.5),
        gates={1: jnp.array([0.25, 0.5])},
        not_finite={},
    )


def lines_of(path):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        for timing in ("tokens_per_second", "input_wait"):
            line.pop(timing, None)
    return lines


def log_of(path, config, step=0, pending=()):
    return Log(path, config, step, list(pending), quiet=True)


def test_mean_is_over_tokens_not_over_steps():
    steps = [
        metrics._to_json(1, measured(4.0, num_predicted=1)),
        metrics._to_json(2, measured(2.0, num_predicted=3)),
    ]
    assert metrics.mean_line(steps) == {
        "step": 2,
        "loss": 1.5,
        "num_predicted": 4,
        "gradient_norm": 1.5,
        "learning_rate": 0.5,
        "gates": {"1": [0.25, 0.5]},
    }


def test_stopping_between_lines_changes_none(tmp_path, small):
    """Every way to cut seven steps in two gives the lines of the whole."""
    assert small.log_interval == 2
    with log_of(tmp_path / "whole", small) as log:
        for step in range(1, 8):
            log.add(step, measured(step), num_tokens=5)
        log.settle()
    expected = lines_of(tmp_path / "whole")
    assert [line["step"] for line in expected] == [2, 4, 6]
    for cut in range(8):
        path = tmp_path / f"cut-{cut}"
        with log_of(path, small) as log:
            for step in range(1, cut + 1):
                log.add(step, measured(step), num_tokens=5)
            pending = json.loads(json.dumps(log.settle()))
            for step in range(cut + 1, 8):  # Steps that a kill will undo.
                log.add(step, measured(-1.0), num_tokens=5)
        with path.open("a") as file:
            file.write('{"step": 9, "lo')  # And a line that it cuts short.
        with log_of(path, small, cut, pending) as log:
            for step in range(cut + 1, 8):
                log.add(step, measured(step), num_tokens=5)
            log.settle()
        assert lines_of(path) == expected


def test_refuses_a_file_that_is_something_else(tmp_path, small):
    path = tmp_path / "metrics.jsonl"
    path.write_text("dear diary\n")
    with pytest.raises(InputError, match="line that is not a JSON object with a step"):
        log_of(path, small)
    assert path.read_text() == "dear diary\n"


def test_a_full_disk_is_named(tmp_path, small):
    full = Path("/dev/full").open("ab", buffering=0)  # noqa: SIM115
    with log_of(tmp_path / "lines", small) as log:
        log._file.close()
        log._file = full
        with pytest.raises(OSError, match=r"No space left on device: '.*lines'"):
            log.write({"step": 1})


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, small):
    with log_of(tmp_path / "lines", small) as log:
        log.add(1, measured(1.0), num_tokens=5)
        log.add(2, measured(float("nan")), num_tokens=5)
        with pytest.raises(NotFiniteError) as raised:
            log.settle()
    assert (raised.value.step, raised.value.rows) == (2, [1])


def test_the_share_of_the_time_that_steps_waited_for_input(tmp_path, small):
    path = tmp_path / "lines"
    with log_of(path, small) as log:
        log._since -= 10.0  # Seconds that the two steps seem to have taken.
        for step in (1, 2):
            log.add_wait(1.0)
            log.add(step, measured(1.0), num_tokens=5)
        log.settle()
    (line,) = [json.loads(line) for line in path.read_text().splitlines()]
    assert 0.15 < line["input_wait"] <= 0.2


def test_without_a_file_nothing_is_written(tmp_path, small):
    with log_of(None, small) as log:
        log.add(1, measured(1.0), num_tokens=5)
        log.add(2, measured(1.0), num_tokens=5)
        assert log.settle() == []
    assert list(tmp_path.iterdir()) == []
