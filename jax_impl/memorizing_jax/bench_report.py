"""Timing in turn, and tables of what was timed."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from tqdm import tqdm

Timed = dict[str, Callable[[], Any]]
Row = dict[str, Any]


def round_robin(
    runs: Timed, rounds: int, quiet: bool = False
) -> dict[str, list[float]]:
    """Returns seconds by name, `rounds` of each; the first, uncounted, compiles.

    All run in turn, round after round, so that whatever else the machine does falls
    on all alike.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for i in tqdm(range(rounds + 1), desc="rounds", disable=quiet, leave=False):
        for name, run in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            if i > 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def rows_of(seconds: dict[str, list[float]], base: str, **common: Any) -> list[Row]:
    """Returns one row per name: median, least, most, and the ratio to `base`."""
    reference = statistics.median(seconds[base])
    return [
        common
        | {
            "name": name,
            "median_ms": statistics.median(times) * 1e3,
            "least_ms": min(times) * 1e3,
            "most_ms": max(times) * 1e3,
            "ratio": statistics.median(times) / reference,
        }
        for name, times in seconds.items()
    ]


def table(rows: Sequence[Row]) -> str:
    """Returns rows as an aligned Markdown table; keys are its columns."""
    columns = list(rows[0])
    cells = [columns, *([_shown(row[name]) for name in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]

    def line(row: Sequence[str]) -> str:
        padded = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        return f"| {' | '.join(padded)} |"

    rule = "|".join("-" * (width + 1) + ":" for width in widths)
    return "\n".join([line(cells[0]), f"|{rule}|", *map(line, cells[1:])])


def _shown(value: Any) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.3g}" if value < 1 else f"{value:,.2f}"
    return "-" if value is None else str(value)
