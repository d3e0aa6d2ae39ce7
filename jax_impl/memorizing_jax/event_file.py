"""Lines of metrics as scalars for TensorBoard."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any


class EventFile:
    """Writes what the lines of metrics hold, number by number.

    A number's tag is the path of its keys, such as `memory/recall/8` or, for the
    first head of layer 8, `gates/8/0`.

    Args:
      folder: where TensorBoard will look; each part of a run adds a file.
      step: the step from which the run begins or continues: TensorBoard forgets
        what an earlier file says of later ones.
    """

    def __init__(self, folder: Path, step: int):
        # Loaded by those who asked for it: an extra.
        from tensorboardX import SummaryWriter

        # The name has the second, which two short parts may share.
        suffix = f".from_{step}"
        self._writer = SummaryWriter(
            str(folder), purge_step=step + 1, filename_suffix=suffix
        )

    def write(self, line: dict[str, Any]) -> None:
        """Takes up a line; it reaches the file within two minutes."""
        for tag, number in _numbers("", line):
            if tag != "step":
                self._writer.add_scalar(tag, number, line["step"])

    def close(self) -> None:
        """Writes what still waits."""
        self._writer.close()


def _numbers(tag: str, value: Any) -> Iterator[tuple[str, float]]:
    """Yields the numbers in a value that JSON can hold, each with its tag."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from _numbers(f"{tag}/{key}" if tag else str(key), inner)
    elif value is not None:
        yield tag, value
