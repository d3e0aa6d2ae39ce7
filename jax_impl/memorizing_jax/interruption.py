"""Stopping at the end of a step, when the system or a person asks for it."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import jax
from jax.experimental import multihost_utils


class Interruption:
    """Notes SIGINT and SIGTERM while it is entered; a second one acts at once.

    Where a run has several processes, a signal to any of them reaches all: JAX
    catches SIGTERM, and has them agree on a step that none of them has passed.

    Attributes:
      received: the signal that came, or None.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interruption":
        # Python delivers signals to the main thread, and only there can they be set.
        if threading.current_thread() is threading.main_thread():
            caught = (signal.SIGINT,) if _several() else (signal.SIGINT, signal.SIGTERM)
            for number in caught:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def stops_at(self, step: int) -> bool:
        """Whether to stop before `step`; the same in every process.

        Each process asks before each of its steps. It costs no communication.
        """
        if not _several():
            return self.received is not None
        if not multihost_utils.reached_preemption_sync_point(step):
            return False
        self.received = self.received or signal.SIGTERM
        return True

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        if _several():  # For JAX to tell the others.
            signal.raise_signal(signal.SIGTERM)


def _several() -> bool:
    return jax.process_count() > 1
