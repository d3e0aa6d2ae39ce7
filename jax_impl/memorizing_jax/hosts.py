"""Several processes as one run: joining, agreeing, and ending together.

JAX's own distributed runtime does the work. Every process runs the same program on
its own devices and its own rows; files are written by the first one alone, and
checkpoints by all.
"""

import contextlib
import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
import numpy.typing as npt
from jax.experimental import multihost_utils

from memorizing_jax.errors import InputError

_LOST = re.compile(
    r"gloo|nccl|coordination service|heartbeat|connection (reset|closed|refused)"
    r"|barrier|preempted|socket closed",
    re.IGNORECASE,
)
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class HostsConfig:
    """How this process finds the others of its run."""

    distributed: bool = False
    """Be one of several processes, as a TPU slice, Slurm or Open MPI tells each."""
    coordinator: str | None = None
    """HOST:PORT of process 0, where nothing tells; also give the next two."""
    num_processes: int | None = None
    """Processes of the run."""
    process_id: int | None = None
    """Number of this process, from 0."""
    heartbeat_timeout: int = 30
    """Seconds without a sign of life after which a process counts as dead."""

    def __post_init__(self) -> None:
        """Refuses settings that lead nowhere, one sentence each."""
        by_hand = (self.coordinator, self.num_processes, self.process_id)
        if any(v is not None for v in by_hand) and None in by_hand:
            raise InputError(
                "coordinator, num_processes and process_id go together; give all "
                "three, or --distributed alone where the environment tells them"
            )
        if not 0 <= (self.process_id or 0) < (self.num_processes or 1):
            raise InputError(
                f"process_id is {self.process_id} of num_processes "
                f"{self.num_processes}, must be from 0 to one less"
            )
        if self.heartbeat_timeout < 1:
            raise InputError(
                f"heartbeat_timeout is {self.heartbeat_timeout}, must be 1 or more"
            )


@contextlib.contextmanager
def joined(config: HostsConfig, how_to_resume: str) -> Iterator[None]:
    """Makes this process one of the run's, until all of them are done.

    Args:
      config: where the others are; alone if it says nothing.
      how_to_resume: end of the sentence when another process is lost.

    Raises:
      InputError: the others cannot be found, or one of them ended.
    """
    if not config.distributed and config.coordinator is None:
        yield
        return
    try:
        jax.distributed.initialize(
            config.coordinator,
            config.num_processes,
            config.process_id,
            heartbeat_timeout_seconds=config.heartbeat_timeout,
            # A process that is done waits this long for the slowest.
            shutdown_timeout_seconds=300,
        )
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"cannot join the other processes ({_first_line(error)}); on a TPU slice, "
            "Slurm or Open MPI start every one with --distributed, elsewhere with "
            "--coordinator, --num-processes and --process-id"
        ) from None
    who = f"process {jax.process_index()} of {jax.process_count()}"
    ended = "was ended, from outside or because another one no longer answers"
    with _last_words(f"memorizing_jax: {who} {ended}; {how_to_resume}"):
        try:
            yield
            jax.distributed.shutdown()
        except InputError:
            raise
        except (RuntimeError, ValueError) as error:  # What XLA raises.
            if not _LOST.search(str(error)):
                raise
            raise InputError(
                f"{who} lost another one ({_last_part(error)}), so all end; "
                f"{how_to_resume}"
            ) from error


@contextlib.contextmanager
def _last_words(sentence: str) -> Iterator[None]:
    """Has `sentence` printed if this process ends without leaving the context.

    JAX's runtime aborts a process from a thread of its own when it learns that
    another one is dead, and no handler of ours runs. So a shell waits for us.
    """
    script = 'read -r word || printf "%s\\n" "$0" >&2'
    waiting = subprocess.Popen(
        ["/bin/sh", "-c", script, sentence],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is not for the shell.
    )
    assert waiting.stdin is not None
    try:
        yield
    finally:
        waiting.stdin.write(b"left\n")
        waiting.stdin.close()
        waiting.wait()


def raise_if_lost(error: BaseException) -> None:
    """Raises `error` again if it says that another process of the run is lost."""
    if jax.process_count() > 1 and _LOST.search(str(error)):
        raise error


def leave(status: int) -> int:
    """Ends this process at once if others may wait for it, else returns `status`.

    What Python does at exit would wait for the other processes, which wait for this
    one; they notice that it is gone, and say so.
    """
    if jax.distributed.is_initialized():
        if is_first():
            time.sleep(1.0)  # Others may have words of their own, and die with this.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def is_first() -> bool:
    """Whether this process is the one that writes files and shows progress."""
    return jax.process_index() == 0


def from_first(compute: Callable[[], T]) -> T:
    """Returns, in every process, what `compute` returns in the first one.

    Args:
      compute: run in the first process alone; its result is fit for JSON.

    Raises:
      InputError: in every process, if it raised that, or OSError, in the first.
    """
    if jax.process_count() == 1:
        return compute()
    outcome: dict[str, Any] = {}
    if is_first():
        try:
            outcome = {"value": compute()}
        except (InputError, OSError) as error:
            outcome = {"error": str(error)}
    outcome = _broadcast(outcome)
    if "error" in outcome:
        raise InputError(outcome["error"])
    value: T = outcome["value"]
    return value


def check_same(settings: dict[str, Any]) -> None:
    """Refuses a run whose processes were started with different settings.

    Raises:
      InputError: names the first that differs, in the processes where it does.
    """
    first = from_first(lambda: settings)
    here = json.loads(json.dumps(settings))
    different = [name for name in first if first[name] != here.get(name)]
    # All end with a sentence of their own, and none waits for another.
    if any(from_all(bool(different))):
        name = different[0] if different else None
        raise InputError(
            f"process {jax.process_index()} has {name} {here[name]}, and process 0 has "
            f"{first[name]}; start all with the same command, and with an --output "
            "that all can read"
            if name
            else "another process was started with other settings; see what it says"
        )


def from_all(value: float) -> list[float]:
    """Returns the number that each process holds, in order."""
    if jax.process_count() == 1:
        return [value]
    return np.asarray(multihost_utils.process_allgather(np.float32(value))).tolist()


def whole(array: jax.Array) -> npt.NDArray[Any]:
    """Returns all of an array, in every process, wherever its parts lie."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def _broadcast(value: Any) -> Any:
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    data = np.resize(data, size)
    sent = multihost_utils.broadcast_one_to_all(data)
    return json.loads(np.asarray(sent).tobytes())


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__


def _last_part(error: BaseException) -> str:
    """Returns what the system said, without the names of the library's files."""
    return _first_line(error).rpartition(": ")[2].lower()
