"""A folder appears whole or not at all, and never at the cost of the one before it."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from memorizing_data.errors import InputError


@contextlib.contextmanager
def staged(output: Path) -> Iterator[Path]:
    """Yields an empty folder that takes the place of `output` at the end.

    It is called `.NAME.partial` and goes away if the block raises. Whoever is killed
    leaves it behind, for the next to clear away.

    Args:
      output: an absolute path; what is there is replaced.

    Raises:
      InputError: another process is writing `output`.
    """
    partial = output.with_name(f".{output.name}.partial")
    handle = _claim(partial)
    try:
        yield partial
        _replace(output, partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        os.close(handle)


def recover(output: Path) -> None:
    """Puts `output` back if its replacement was killed half-way."""
    previous = _previous(output)
    if previous.exists() and not output.exists():
        previous.rename(output)


def _claim(partial: Path) -> int:
    """Returns a lock on an empty folder, as an open file descriptor."""
    partial.mkdir(parents=True, exist_ok=True)
    handle = os.open(partial, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Its owner may have finished and renamed it in between.
        if not os.path.samestat(os.fstat(handle), os.stat(partial)):
            raise BlockingIOError
    except (BlockingIOError, FileNotFoundError):
        os.close(handle)
        raise InputError(f"another process is writing {partial}; wait for it") from None
    for left_behind in partial.iterdir():
        left_behind.unlink()
    return handle


def _replace(output: Path, partial: Path) -> None:
    # Else the new name could reach the disk before the new content.
    for path in (*partial.iterdir(), partial):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    previous = _previous(output)
    shutil.rmtree(previous, ignore_errors=True)
    if output.exists():
        output.rename(previous)
    try:
        partial.rename(output)
    except BaseException:
        recover(output)
        raise
    shutil.rmtree(previous, ignore_errors=True)


def _previous(output: Path) -> Path:
    return output.with_name(f".{output.name}.previous")
