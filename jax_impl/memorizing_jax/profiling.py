"""A trace of a few steps, for TensorBoard's profiler, XProf or Perfetto."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TypeVar

import jax

Result = TypeVar("Result")

# The first compiles, and the next ones may still wait for their first input.
WARM_UP: Final = 3


class Profile:
    """Traces steps of a run once the first few are over; ends with its context.

    Args:
      folder: where the trace goes, below `plugins/profile/`.
      num_steps: how many to trace; 0 for none.
      quiet: do not say what was traced.
    """

    def __init__(self, folder: Path, num_steps: int, quiet: bool):
        self._folder, self._num_steps, self._quiet = folder, num_steps, quiet
        self._taken = 0
        self._traced: list[int] = []
        self._is_tracing = False

    def __enter__(self) -> "Profile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._is_tracing:
            self._stop()
        if error is None and self._num_steps and not self._traced:
            self._say(
                f"no step was traced, as the run ended {self._taken} steps from here "
                f"and the first {WARM_UP} are for warming up"
            )

    def call(self, step: int, function: Callable[..., Result], *args: Any) -> Result:
        """Returns `function(*args)`, traced if it is among those steps.

        Waits for the device before the first and after the last of them alone.

        Args:
          step: its number.
          function: takes the step.
          args: what it is given.
        """
        if self._num_steps and self._taken == WARM_UP:
            jax.block_until_ready(args)
            jax.profiler.start_trace(self._folder)
            self._is_tracing = True
        if self._is_tracing:
            self._traced.append(step)
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            result = function(*args)
        self._taken += 1
        if self._is_tracing and len(self._traced) == self._num_steps:
            jax.block_until_ready(result)
            self._stop()
        return result

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        self._is_tracing = False
        first, last = self._traced[0], self._traced[-1]
        self._say(f"the trace of steps {first} to {last} is in {self._folder}")

    def _say(self, sentence: str) -> None:
        if not self._quiet:
            print(f"memorizing_jax: {sentence}", file=sys.stderr)
