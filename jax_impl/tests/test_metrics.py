"""Lines of metrics: their means, and which of them a resumed run keeps."""

import json
import math
import struct
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from memorizing_jax import flops, metric_lines
from memorizing_jax.errors import InputError, NotFiniteError
from memorizing_jax.memory_metrics import MemoryMetrics
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


def looked_at(recall):
    """Returns what was measured of a memory, where nothing was retrieved."""
    return {
        1: MemoryMetrics(
            recall=jnp.float32(recall),
            full_queries=jnp.float32(0.5),
            age_median=jnp.float32(jnp.nan),
            age_p95=jnp.float32(jnp.nan),
            memory_share=jnp.array([0.125, jnp.nan]),
        )
    }


def whole_lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def lines_of(path):
    """Returns the lines but for their timings."""
    lines = whole_lines_of(path)
    for line in lines:
        for timing in ("tokens_per_second", "input_wait"):
            line.pop(timing, None)
    return lines


def log_of(path, config, step=0, pending=(), **more):
    return Log(path, config, step, list(pending), quiet=True, **more)


def test_mean_is_over_tokens_not_over_steps():
    steps = [
        metric_lines.to_json(1, measured(4.0, num_predicted=1)),
        metric_lines.to_json(2, measured(2.0, num_predicted=3)),
    ]
    assert metric_lines.mean_line(steps) == {
        "step": 2,
        "loss": 1.5,
        "perplexity": math.exp(1.5),
        "num_predicted": 4,
        "gradient_norm": 1.5,
        "learning_rate": 0.5,
        "gates": {"1": [0.25, 0.5]},
    }


def test_a_line_has_the_last_look_at_the_memory_among_its_steps(tmp_path, small):
    with log_of(tmp_path / "lines", small) as log:
        for step in range(1, 7):
            looked = looked_at(step / 8) if step < 5 else None
            log.add(step, measured(1.0), 5, looked)
        log.settle()
    first, second, third = lines_of(tmp_path / "lines")
    assert first["memory"]["recall"] == {"1": 0.25}
    assert second["memory"] == {
        "recall": {"1": 0.5},
        "full_queries": {"1": 0.5},
        "age_median": {"1": None},
        "age_p95": {"1": None},
        "memory_share": {"1": [0.125, None]},
    }
    assert "memory" not in third


def test_utilization_is_absent_where_nobody_knows_the_peak(tmp_path, small):
    """A CPU's is unknown unless given; then it is the rate times the formula."""
    for peak, name in ((None, "unknown"), (1e-3, "given")):
        with log_of(tmp_path / name, small, peak_tflops=peak) as log:
            for step in (1, 2):
                log.add(step, measured(1.0), 500_000)
            log.settle()
    (line,) = whole_lines_of(tmp_path / "unknown")
    assert "utilization" not in line
    (line,) = whole_lines_of(tmp_path / "given")
    rate = line["tokens_per_second"]
    # The line has the rate as a whole number, above 10^4.
    for name, count in (
        ("utilization", flops.per_token(small.model)),
        (
            "utilization_with_search",
            flops.per_token(small.model) + flops.of_search(small.model),
        ),
    ):
        assert line[name] == pytest.approx(rate * count / 1e9, rel=1e-4)


def test_tensorboard_has_the_numbers_of_the_lines(tmp_path, small):
    """Also of a run that was resumed: later ones of the first part are void."""
    events = tmp_path / "events"
    with log_of(tmp_path / "lines", small, events=events) as log:
        for step in range(1, 7):
            log.add(step, measured(step), 5, looked_at(step / 8))
        log.settle()
    with log_of(tmp_path / "lines", small, step=4, events=events) as log:
        for step in range(5, 9):
            log.add(step, measured(step / 4), 5, looked_at(step / 16))
        log.write({"step": 8, "validation_loss": 1.5})
        log.settle()
    lines = whole_lines_of(tmp_path / "lines")
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 8]
    found = scalars(events)
    expected = {}
    for line in lines:
        step = line.pop("step")
        expected |= {(tag, step): number for tag, number in flat(line)}
    assert found.keys() == expected.keys()
    assert ("memory/recall/1", 6) in found
    assert ("gates/1/0", 2) in found
    for at, number in expected.items():
        assert found[at] == np.float32(number)


def flat(value, tag=()):
    """Yields the numbers of a line, with the path that leads to each."""
    if isinstance(value, dict | list):
        for key, inner in (
            value.items() if isinstance(value, dict) else enumerate(value)
        ):
            yield from flat(inner, (*tag, str(key)))
    elif value is not None:
        yield "/".join(tag), value


def scalars(folder):
    """Returns what TensorBoard would show of a folder of event files."""
    shown = {}
    for path in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns):
        content = path.read_bytes()
        while content:  # Records: length, its checksum, content, its checksum.
            (length,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            if event.session_log.status == SessionLog.START:
                shown = {at: x for at, x in shown.items() if at[1] < event.step}
            for value in event.summary.value:
                shown[value.tag, event.step] = value.simple_value
    return shown


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
