"""Metrics: a progress bar for people, and JSON lines that a resumed run continues."""

import errno
import io
import json
import math
import os
import sys
import time
from collections.abc import Collection
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from memorizing_jax import metric_lines
from memorizing_jax.errors import NotFiniteError
from memorizing_jax.event_file import EventFile
from memorizing_jax.flops import Utilization
from memorizing_jax.memory_metrics import MemoryMetrics
from memorizing_jax.train_config import TrainConfig
from memorizing_jax.train_step import Metrics

# A step, what it measured, and what the memory gave if that was looked at.
_OnDevice = tuple[int, Metrics, dict[int, MemoryMetrics] | None]


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
      events: folder for TensorBoard's file of the same numbers, if there is to be one.
      peak_tflops: what a device can do, for utilization; if None, as `flops` knows.

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
        *,
        events: Path | None = None,
        peak_tflops: float | None = None,
    ):
        self._path, self._file = path, None if path is None else _opened(path, step)
        self._interval = config.log_interval
        self._events = None if events is None else EventFile(events, step)
        self._utilization = Utilization(config.model, peak_tflops)
        self._devices: Collection[jax.Device] = ()
        self._pending: list[dict[str, Any] | _OnDevice] = [*pending]
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
        if self._events is not None:
            self._events.close()

    def add(
        self,
        step: int,
        measured: Metrics,
        num_tokens: int,
        memory: dict[int, MemoryMetrics] | None = None,
    ) -> None:
        """Takes note of a step, whose numbers the device may not know yet.

        Args:
          step: its number.
          measured: by the step.
          num_tokens: real tokens that it read.
          memory: what `memory_metrics` measured, where it did.

        Raises:
          NotFiniteError: the loss of an earlier step is not finite.
        """
        self._devices = measured.nats.devices()
        self._pending.append((step, measured, memory))
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
        if self._events is not None:
            self._events.write(line)

    def _fetch(self, count: int) -> None:
        for i, entry in enumerate(jax.device_get(self._pending[:count])):
            if isinstance(entry, dict):
                continue
            fetched = metric_lines.to_json(*entry)
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
            line = metric_lines.mean_line(steps)
            line |= {"tokens_per_second": round(rate), "input_wait": round(wait, 5)}
            line |= self._utilization.at(rate, self._devices)
            self.write(line)
            self._bar.set_postfix(metric_lines.shown(line), refresh=False)


def _opened(path: Path, step: int) -> io.FileIO:
    """Returns a file of lines, cut after those of `step`, for writing more."""
    kept = metric_lines.lines_up_to(path, step) if path.exists() else []
    # Under another name first: a kill between the lines would lose the rest.
    new = path.with_name(path.name + ".new")
    new.write_bytes(b"".join(kept))
    os.replace(new, path)
    return path.open("ab", buffering=0)
