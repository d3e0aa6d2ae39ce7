"""What memory costs: steps, searches, insertion, bytes, as ratios taken in one run.

`python -m memorizing_jax.bench` runs all; name some to run those. Every table is
printed as soon as it is complete, and written to the output folder as JSON and a plot.
Two cores take twenty minutes for all of it, most of that to build indexes of a million
pairs: `--sizes 8192 65536` takes seven.
"""

import argparse
import datetime
import functools
import json
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from memorizing_jax import (
    bench_keys,
    bench_memory,
    bench_plots,
    bench_search,
    bench_step,
    bucketed_search,
    parameter_files,
)
from memorizing_jax.bench_report import Row, round_robin, rows_of, table
from memorizing_jax.bench_step import STEP


def step(args: argparse.Namespace) -> Iterator[list[Row]]:
    """Training step with a memory against the same step without."""
    large = STEP.replace(memory_size=65536)
    runs = {
        "no memory": bench_step.training_step(STEP.replace(memory_layers=())),
        "8,192 pairs, bucketed": bench_step.training_step(STEP),
        "65,536 pairs, bucketed": bench_step.training_step(large),
    }
    recalls = {}
    if args.parameters:
        recorded = bench_step.recorded(_trained(args, 65536), 65536)
        for engine in ("bucketed", "clustered"):
            config = large.replace(search=engine, recall_target=0.95)
            name = f"65,536 trained pairs, {engine}"
            runs[name] = bench_step.training_step(config, recorded)
            recalls[name] = bench_step.recall(config, recorded)
    runs["plain product, 65,536 pairs"] = bench_step.product(65536)
    rows = rows_of(round_robin(runs, args.rounds, args.quiet), "no memory")
    yield [row | {"recall": recalls.get(row["name"])} for row in rows]


def product(args: argparse.Namespace) -> Iterator[list[Row]]:
    """Bucketed search at recall 0.98 against the plain product, 4096 queries."""
    for memory_size in (8192, 65536):
        for head_dim in (64, 128):
            runs = bench_search.against_product(memory_size, head_dim)
            seconds = round_robin(runs, args.rounds, args.quiet)
            yield rows_of(
                seconds, "product", memory_size=memory_size, head_dim=head_dim
            )


def searches(args: argparse.Namespace) -> Iterator[list[Row]]:
    """Time and recall of every search on the same keys and queries."""
    kinds: dict[str, tuple[bench_keys.Draw, Sequence[int]]] = {
        "random": (bench_keys.random, (64, 128)),
        "clustered": (bench_keys.clustered, (64, 128)),
    }
    if args.parameters:
        trained = _trained(args, max(args.sizes))
        kinds["trained"] = (
            trained,
            (parameter_files.load(args.parameters).model.head_dim,),
        )
    for memory_size in args.sizes:
        for kind, (draw, dims) in kinds.items():
            for head_dim in dims:
                if memory_size * head_dim <= bench_search.MOST_NUMBERS:
                    yield bench_search.measure(
                        draw, kind, memory_size, head_dim, args.rounds, args.quiet
                    )


def growth(args: argparse.Namespace) -> Iterator[list[Row]]:
    """The same queries to larger memories, keys of a trained model."""
    if args.parameters:
        trained = _trained(args, max(args.sizes))
        yield bench_search.growth(trained, args.sizes, args)


def insertion(args: argparse.Namespace) -> Iterator[list[Row]]:
    """Insertion of a segment of 512 into small and large memories."""
    runs = bench_memory.insertions()
    yield rows_of(round_robin(runs, args.rounds, args.quiet), next(iter(runs)))


def peak(args: argparse.Namespace) -> Iterator[list[Row]]:
    """Bytes that a search allocates beside its arguments and results."""
    del args
    yield [
        bench_memory.peak_bytes(engine, size)
        for engine in ("bucketed", "exact", "approx_max_k")
        for size in (65536, 1_048_576)
    ]


def _trained(args: argparse.Namespace, most_keys: int) -> bench_keys.Draw:
    return _read(args.parameters, args.tokens, most_keys, args.quiet)


# A minute and a half for a million keys: for all questions once.
_read = functools.cache(bench_keys.of_trained_model)


QUESTIONS: dict[str, Callable[[argparse.Namespace], Iterator[list[Row]]]] = {
    "step": step,
    "product": product,
    "insertion": insertion,
    "peak": peak,
    "growth": growth,
    "search": searches,
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
        default=[8192, 65536, 1_048_576],
        help="memory sizes to search, in pairs (default: 8192 65536 1048576)",
    )
    parser.add_argument(
        "--parameters", type=Path, help="a trained model's file, for its keys"
    )
    parser.add_argument(
        "--tokens", type=Path, help="data set whose test documents it reads"
    )
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
        print(f"\n{question.__doc__}\n")
        rows: list[Row] = []
        for some in question(args):
            print(f"{table(some)}\n", flush=True)
            rows += some
            # What was measured stays, whatever stops the rest.
            write(args.output / name, {"machine": machine, "rows": rows})


def write(path: Path, report: dict[str, Any]) -> None:
    """Writes `path`.json and `path`.png."""
    new = path.with_suffix(".json.new")
    new.write_text(json.dumps(report, indent=1) + "\n")
    os.replace(new, path.with_suffix(".json"))
    rows = report["rows"]
    draw = bench_plots.recall_and_time if path.name == "search" else bench_plots.bars
    draw(path.with_suffix(".png"), rows)


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
