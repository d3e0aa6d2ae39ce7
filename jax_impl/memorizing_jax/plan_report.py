"""Plans as text, as a table and as JSON lines."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memorizing_jax.errors import InputError

# What `plan_command.Setting.compiled` returns, fit for JSON.
Row = dict[str, Any]
# A step with its memory, and the same without.
Pair = tuple[Row, Row]

_COLUMNS = (
    *("preset", "slice", "chips", "mesh", "memory", "fits", "GiB a chip"),
    *("parameters", "optimizer", "memory GiB", "temporaries", "TFLOP", "GB moved"),
    *("compiler ms", "roofline ms", "time of memory"),
)


def read(path: Path) -> list[Row]:
    """Returns the lines of a file, none where it does not exist.

    Raises:
      InputError: the file holds something else.
    """
    if not path.exists():
        return []
    rows = []
    for line in path.read_text("utf-8").splitlines():
        try:
            row = json.loads(line)
            row["preset"], row["topology"], row["fits"]
        except (ValueError, KeyError, TypeError):
            raise InputError(
                f"{path} has a line that is no plan: {line[:60]!r}; remove it, or "
                "choose another file"
            ) from None
        rows.append(row)
    return rows


def append(path: Path, row: Row) -> None:
    """Adds a line to a file, at once, so that a stopped table can go on."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def text(pairs: Sequence[Pair]) -> str:
    """Returns what a person deciding on a slice wants to know of one step."""
    ((row, without),) = pairs
    data, memory, model = row["mesh"]
    held = {
        "parameters": row["parameters"],
        "optimizer": row["optimizer"],
        "memory": row["memory"],
        "cache": row["cache"],
        "temporaries": row["temporaries"],
        "program": row["program"],
    }
    lines = [
        f"{row['preset']} on {row['topology']}: {row['chips']} chips, mesh data {data}"
        f" x memory {memory} x model {model}",
        f"{row['batch']} rows, {row['tokens']:,} tokens a step, memory of "
        f"{row['memory_size']:,} pairs, search {row['search']}",
        *(["compiled at the least effort"] if row["quick"] else []),
        "",
        verdict(row),
        "",
        f"bytes per chip, of {_gib(row['capacity'])} GiB",
        *(f"  {name:<12}{_gib(size):>10} GiB" for name, size in held.items()),
        "",
        "per step and chip",
        f"  {row['operations'] / 1e12:.2f} TFLOP in products, "
        f"{row['bytes_moved'] / 1e9:.1f} GB to and from memory",
        f"  {_ms(row['compute_seconds'])} ms of computing by the compiler's estimate, "
        "collectives left out",
        f"  {_ms(row['roofline_seconds'])} ms at least, at the chip's public peaks "
        "(roofline)",
        *(
            f"  {count:,} x {kind}, {size / 1e6:,.1f} MB received"
            for kind, (count, size) in row["collectives"].items()
        ),
        "",
        f"what memory adds to the same step without it: {share(row, without)}",
    ]
    return "\n".join(lines)


def verdict(row: Row) -> str:
    """Returns whether a step fits, and why not."""
    if not row["fits"]:
        return f"does not fit, because the compiler says: {row['reason']}"
    used = _total(row) / row["capacity"]
    copies = "" if row["in_place"] else "; not all of its state is updated in place"
    return f"fits: {used:.0%} of a chip's memory{copies}"


def share(row: Row, without: Row) -> str:
    """Returns what the memory adds to a step: time by the compiler, bytes held."""
    if not row["fits"] or not without["fits"]:
        return "not known, as one of them does not fit"
    more = _total(row) - _total(without)
    parts = [f"{_gib(more)} GiB per chip"]
    for name, what in (
        ("operations", "operations"),
        ("compute_seconds", "computing time by the compiler's estimate"),
    ):
        if row[name] and without[name]:
            parts.append(f"{row[name] / without[name] - 1:+.0%} {what}")
    return ", ".join(parts)


def table(pairs: Sequence[Pair]) -> str:
    """Returns a table in Markdown, a line per step."""
    lines = [_COLUMNS, ("---",) * len(_COLUMNS), *(_line(*pair) for pair in pairs)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _line(row: Row, without: Row) -> tuple[str, ...]:
    both = row["compute_seconds"] and without["compute_seconds"]
    times = (
        f"x{row['compute_seconds'] / without['compute_seconds']:.2f}" if both else "-"
    )
    held = [_gib(row[n]) for n in ("parameters", "optimizer", "memory", "temporaries")]
    return (
        *(row["preset"], row["topology"], str(row["chips"])),
        "x".join(map(str, row["mesh"])),
        f"{row['memory_size']:,} {row['search']}" if row["memory_size"] else "none",
        "yes" if row["fits"] else "no",
        f"{_gib(_total(row))} of {_gib(row['capacity'])}" if row["fits"] else "-",
        *held,
        f"{row['operations'] / 1e12:.2f}",
        f"{row['bytes_moved'] / 1e9:.0f}" if row["fits"] else "-",
        _ms(row["compute_seconds"]),
        _ms(row["roofline_seconds"]),
        times,
    )


def _total(row: Row) -> int:
    parts = ("parameters", "optimizer", "memory", "cache", "temporaries", "program")
    return sum(row[name] for name in parts)


def _gib(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 2**30:.2f}"


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.1f}"
