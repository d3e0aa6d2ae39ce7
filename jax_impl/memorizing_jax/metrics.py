"""Metrics: a progress bar for people, and JSON lines that a resumed run continues."""

import errno
import io
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from memorizing_jax.errors import InputError, NotFiniteError
from memorizing_jax.train_config import TrainConfig
from memorizing_jax.train_step import Metrics


class Log:
    """Gathers what the steps measured, and writes a line for every few of them.

    A line is written when the step after its last is queued, so that the device is
    never idle while the host waits for numbers.

    Args:
      path: file of the lines; None to write none. Those after `step` are dropped.
      config: settings of the run.
      step: the step from which the run begins or continues.
      pending: what `settle` returned at that step.
      quiet: show no progress.

    Raises:
      InputError: the file holds something else.
      OSError: the file cannot be written.
    """

    def __init__(
        self,
        path: Path | None,
        config: TrainConfig,
        step: int,
        pending: list[dict[str, Any]],
        quiet: bool,
    ):
        self._path, self._file = path, None if path is None else _opened(path, step)
        self._interval = config.log_interval
        self._pending: list[dict[str, Any] | tuple[int, Metrics]] = [*pending]
        self._num_tokens, self._since, self._waited = 0, time.monotonic(), 0.0
        self._bar = tqdm(
            total=config.steps,
            initial=step,
            unit="step",
            disable=quiet,
            # A line at a time in a file is enough every half minute.
            mininterval=0.5 if sys.stderr.isatty() else 30.0,
        )

    def __enter__(self) -> "Log":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.close()
        if self._file is not None:
            self._file.close()

    def add(self, step: int, measured: Metrics, num_tokens: int) -> None:
        """Takes note of a step, whose numbers the device may not know yet.

        Raises:
          NotFiniteError: the loss of an earlier step is not finite.
        """
        self._pending.append((step, measured))
        self._num_tokens += num_tokens
        self._bar.update()
        if len(self._pending) > self._interval:
            self._fetch(self._interval)
            self._write_full_lines()

    def add_wait(self, seconds: float) -> None:
        """Takes note of how long a step waited for its input."""
        self._waited += seconds

    def settle(self) -> list[dict[str, Any]]:
        """Waits for all steps, writes the lines that are full, returns the rest.

        Raises:
          NotFiniteError: the loss of a step is not finite.
        """
        self._fetch(len(self._pending))
        self._write_full_lines()
        return [step for step in self._pending if isinstance(step, dict)]

    def write(self, line: dict[str, Any]) -> None:
        """Writes one line, and hands it to the system at once.

        Raises:
          OSError: there is no room for it.
        """
        if self._file is None:
            return
        content = json.dumps(line).encode() + b"\n"
        try:
            complete = self._file.write(content) == len(content)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from None
        if not complete:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))

    def _fetch(self, count: int) -> None:
        for i, entry in enumerate(jax.device_get(self._pending[:count])):
            if isinstance(entry, dict):
                continue
            fetched = _to_json(*entry)
            if not math.isfinite(fetched["nats"] + fetched["gradient_norm"]):
                rows = np.flatnonzero(~entry[1].finite_rows).tolist()
                raise NotFiniteError(fetched["step"], rows)
            self._pending[i] = fetched

    def _write_full_lines(self) -> None:
        while len(self._pending) >= self._interval:
            steps = [s for s in self._pending[: self._interval] if isinstance(s, dict)]
            if len(steps) < self._interval:
                return
            del self._pending[: self._interval]
            now = time.monotonic()
            elapsed = max(now - self._since, 1e-9)
            rate, wait = self._num_tokens / elapsed, self._waited / elapsed
            self._num_tokens, self._since, self._waited = 0, now, 0.0
            line = mean_line(steps)
            timings = {"tokens_per_second": round(rate), "input_wait": round(wait, 5)}
            self.write(line | timings)
            gates = {f"gate {i}": _span(gate) for i, gate in line["gates"].items()}
            loss = f"{line['loss']:.4f}"
            shown = {"loss": loss, "tokens/s": f"{rate:,.0f}", **gates}
            self._bar.set_postfix(shown, refresh=False)


def mean_line(steps: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the line for some consecutive steps.

    Args:
      steps: each with `step`, `nats`, `num_predicted`, `gradient_norm`,
        `learning_rate` and `gates`.

    Returns:
      The last step's number, learning rate and gates, the loss in nats per
      predicted token over all steps, and the mean gradient norm.
    """
    predicted = sum(step["num_predicted"] for step in steps)
    return {
        "step": steps[-1]["step"],
        "loss": sum(step["nats"] for step in steps) / max(predicted, 1),
        "num_predicted": predicted,
        "gradient_norm": sum(step["gradient_norm"] for step in steps) / len(steps),
        "learning_rate": steps[-1]["learning_rate"],
        "gates": steps[-1]["gates"],
    }


def _to_json(step: int, fetched: Metrics) -> dict[str, Any]:
    return {
        "step": step,
        "nats": float(fetched.nats),
        "num_predicted": int(fetched.num_predicted),
        "gradient_norm": float(fetched.gradient_norm),
        "learning_rate": float(fetched.learning_rate),
        "gates": {str(layer): gate.tolist() for layer, gate in fetched.gates.items()},
    }


def _span(gate: Sequence[float]) -> str:
    return f"{min(gate):.2f}-{max(gate):.2f}"


def _opened(path: Path, step: int) -> io.FileIO:
    """Returns a file of lines, cut after those of `step`, for writing more."""
    kept = _lines_up_to(path, step) if path.exists() else []
    # Under another name first: a kill between the lines would lose the rest.
    new = path.with_name(path.name + ".new")
    new.write_bytes(b"".join(kept))
    os.replace(new, path)
    return path.open("ab", buffering=0)


def _lines_up_to(path: Path, step: int) -> list[bytes]:
    kept = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            is_kept = line.endswith(b"\n") and json.loads(line)["step"] <= step
        except (ValueError, KeyError, TypeError):
            raise InputError(
                f"{path} has a line that is not a JSON object with a step: "
                f"{line[:60]!r}; remove that line or move the file away"
            ) from None
        if not is_kept:  # Also a line that a kill cut short.
            break
        kept.append(line)
    return kept
