"""What memory costs: steps, searches, insertion, bytes, as ratios taken in one run.

`python -m memorizing_jax.bench` runs all; name some to run those. Tables are printed,
and written with the raw numbers to the output folder.
"""

import argparse
import datetime
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from memorizing_jax import bench_search, bench_step, bucketed_search
from memorizing_jax.bench_report import Row, plot_search, round_robin, rows_of, table
from memorizing_jax.bench_step import STEP


def step(args: argparse.Namespace) -> list[Row]:
    """Training step with a memory against the same step without."""
    product = bench_step.product(65536)
    runs = {
        "no memory": bench_step.training_step(STEP.replace(memory_layers=())),
        "8,192, bucketed": bench_step.training_step(STEP),
        "65,536, bucketed": bench_step.training_step(STEP.replace(memory_size=65536)),
        "plain product, 65,536": product,
    }
    return rows_of(round_robin(runs, args.rounds, args.quiet), "no memory")


def searches(args: argparse.Namespace) -> list[Row]:
    """Time and recall of every search on the same keys and queries."""
    rows = []
    for kind, (draw, dims) in bench_search.sources(args).items():
        for memory_size in args.sizes:
            for head_dim in dims:
                found = bench_search.measure(
                    draw, kind, memory_size, head_dim, args.rounds, args.quiet
                )
                print(table(found), flush=True)
                rows += found
    plot_search(args.output / "search.png", rows)
    return rows


def insertion(args: argparse.Namespace) -> list[Row]:
    """Insertion of a segment of 512 into small and large memories."""
    runs = bench_step.insertions()
    return rows_of(round_robin(runs, args.rounds, args.quiet), next(iter(runs)))


def peak(args: argparse.Namespace) -> list[Row]:
    """Bytes that a search allocates beside its arguments and results."""
    del args
    return [
        bench_step.peak_bytes(engine, size)
        for engine in ("bucketed", "exact", "approx_max_k")
        for size in (65536, 1_048_576)
    ]


QUESTIONS: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
    "step": step,
    "search": searches,
    "insertion": insertion,
    "peak": peak,
}


def main() -> None:
    """Runs the questions asked, prints tables, writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("questions", nargs="*", help=f"of {', '.join(QUESTIONS)}")
    parser.add_argument("--rounds", type=int, default=7, help="timed runs of each row")
    parser.add_argument(
        "--sizes",
        type=int,
        nargs="+",
        default=[8192, 65536],
        help="memory sizes to search, in pairs (default: 8192 65536)",
    )
    parser.add_argument("--parameters", help="a trained model's file, for its keys")
    parser.add_argument("--tokens", help="data set whose test documents it reads")
    parser.add_argument(
        "--output", type=Path, default=Path(".cache/bench"), help="folder for results"
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    args = parser.parse_args()
    if unknown := sorted(set(args.questions) - set(QUESTIONS)):
        parser.error(f"no question {unknown[0]!r}; there are {', '.join(QUESTIONS)}")
    if args.rounds < 1:
        parser.error(f"--rounds is {args.rounds}, must be 1 or more")
    if bool(args.parameters) != bool(args.tokens):
        parser.error("--parameters and --tokens go together")

    args.output.mkdir(parents=True, exist_ok=True)
    machine = describe_machine()
    print(machine)
    for name in args.questions or QUESTIONS:
        question = QUESTIONS[name]
        rows = question(args)
        print(f"\n{question.__doc__}\n\n{table(rows)}\n", flush=True)
        report: dict[str, Any] = {"machine": machine, "rows": rows}
        new = args.output / f"{name}.json.new"
        new.write_text(json.dumps(report, indent=1) + "\n")
        os.replace(new, args.output / f"{name}.json")


def describe_machine() -> str:
    """Returns device, cores, versions, date and the buckets that 0.98 takes."""
    device = jax.devices()[0]
    buckets = bucketed_search.choose_buckets(STEP.recall_target, 8192, STEP.top_k)
    return (
        f"{_processor() if device.platform == 'cpu' else device.device_kind}, "
        f"{os.cpu_count()} cores, Python {platform.python_version()}, "
        f"JAX {jax.__version__}, {datetime.date.today()}; bucketed at 0.98: "
        f"{buckets[0]} buckets of {buckets[1]}"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
