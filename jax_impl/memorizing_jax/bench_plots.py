"""Pictures of benchmarks, one per question."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memorizing_jax.bench_report import Row


def bars(path: Path, rows: Sequence[Row]) -> None:
    """Draws a bar per row: the median, with a line from the least to the most.

    Of rows without times, the last column.
    """
    figure, ax = _figure(7.0, 1.0 + 0.28 * len(rows))
    timed = "median_ms" in rows[0]
    column = "median_ms" if timed else list(rows[0])[-1]
    place = list(range(len(rows), 0, -1))
    ax.barh(place, [row[column] for row in rows], color="tab:blue", alpha=0.6)
    if timed:
        least, most = ([row[name] for row in rows] for name in ("least_ms", "most_ms"))
        ax.hlines(place, least, most, color="black", linewidth=1)
    ax.set_yticks(place, [_label(row) for row in rows], fontsize=8)
    ax.set_xlabel("ms: median, least to most" if timed else column.replace("_", " "))
    figure.savefig(path, dpi=100)


def recall_and_time(path: Path, rows: Sequence[Row]) -> None:
    """Draws recall against time of every search: sizes across, kinds of keys down."""
    import matplotlib.figure
    import matplotlib.lines

    sizes = sorted({row["memory_size"] for row in rows})
    kinds = sorted({(row["keys"], row["head_dim"]) for row in rows})
    figure = matplotlib.figure.Figure(
        figsize=(3.4 * len(sizes), 2.6 * len(kinds)), layout="constrained"
    )
    grid = figure.subplots(len(kinds), len(sizes), squeeze=False, sharex=True)
    names = dict.fromkeys(row["name"] for row in rows if row["recall"] is not None)
    colors = {name: f"C{i}" for i, name in enumerate(names)}
    for i, (kind, head_dim) in enumerate(kinds):
        for j, size in enumerate(sizes):
            ax = grid[i][j]
            of_panel = [
                row
                for row in rows
                if (row["keys"], row["head_dim"], row["memory_size"])
                == (kind, head_dim, size)
            ]
            for row in of_panel:
                if row["recall"] is not None:
                    color = colors[row["name"]]
                    ax.plot(row["ratio"], row["recall"], "o", color=color, alpha=0.7)
            ax.axvline(1.0, color="gray", linewidth=0.5)
            ax.set_xscale("log")
            ax.set_ylim(0.0, 1.1)
            ax.set_title(f"{kind} keys, D = {head_dim}, M = {size:,}", fontsize=9)
            ax.set_visible(bool(of_panel))
    marks = [
        matplotlib.lines.Line2D([], [], marker="o", linestyle="", color=color)
        for color in colors.values()
    ]
    figure.legend(marks, colors, loc="outside upper center", ncols=5, fontsize=8)
    figure.supxlabel("time / plain matrix product", fontsize=9)
    figure.supylabel("recall@32", fontsize=9)
    figure.savefig(path, dpi=80)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _label(row: Row) -> str:
    """Returns what tells a row from the others."""
    parts = [str(row.get("name", row.get("search")))]
    if "memory_size" in row:
        parts.append(f"M = {row['memory_size']:,}")
    if "head_dim" in row:
        parts.append(f"D = {row['head_dim']}")
    return ", ".join(parts)
