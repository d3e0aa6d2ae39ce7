"""Times the step with memory against the same step without, in one process.

`python -m memorizing_jax.bench` prints ratios. All rows of a table run in turn,
round after round, so that whatever else the machine does falls on all alike;
medians are compared, and the spread is shown.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from memorizing_jax import bucketed_search, loss, memory, model, parameters, search
from memorizing_jax.config import ModelConfig

# The step that the project promises to keep below 1.5 times its cost without memory.
STEP = ModelConfig(
    vocab_size=4096,
    num_layers=4,
    model_dim=256,
    num_heads=4,
    head_dim=64,
    mlp_dim=1024,
    memory_layers=(2,),
    segment_length=512,
    local_window=512,
    cache_length=512,
    memory_size=8192,
    top_k=32,
    recall_target=0.98,
)
BATCH = 2
# Memory sizes to search, and queries of each row and head: about equal products.
SEARCHES = ((8192, 512), (65536, 128))

Timed = dict[str, Callable[[], Any]]


def round_robin(
    runs: Timed, rounds: int, quiet: bool = False
) -> dict[str, list[float]]:
    """Returns seconds by name, `rounds` of each; the first, uncounted, compiles."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for i in tqdm.trange(rounds + 1, disable=quiet, desc="rounds"):
        for name, run in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            if i > 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def training_step(config: ModelConfig) -> Callable[[], Any]:
    """Returns a call that does forward, backward and insertion, memory full."""
    params = parameters.init(config, jax.random.key(0))
    state = model.init_state(config, BATCH)
    rng = np.random.default_rng(0)
    shape = (BATCH, config.segment_length)
    tokens = jnp.asarray(rng.integers(0, config.vocab_size, shape), jnp.int32)
    start = jnp.zeros(BATCH, bool)
    full = jnp.full(BATCH, config.segment_length, jnp.int32)

    def mean_loss(params: Any, state: model.State) -> tuple[jax.Array, model.State]:
        logits, state, _ = model.forward(params, state, tokens, start, full, config)
        nats, count = loss.total(logits, tokens, full)
        return nats / count.astype(nats.dtype), state

    gradient = jax.value_and_grad(mean_loss, has_aux=True)
    step = jax.jit(gradient, donate_argnums=1)
    # Filled with real pairs: a search over unwritten slots would find nothing.
    segments = config.memory_size // config.segment_length if config.remembers else 0
    for _ in range(segments):
        (_, state), _ = step(params, state)
    held = [state]

    def run() -> Any:
        (value, state), gradients = step(params, held[0])
        held[0] = state
        return value, gradients

    return run


def search_against_product(memory_size: int, queries_per_head: int) -> Timed:
    """Returns calls: plain `Q K^T`, each engine on random unit keys, same sizes."""
    heads, dim = STEP.num_heads, STEP.head_dim
    rng = np.random.default_rng(0)

    def unit(*shape: int) -> jax.Array:
        x = rng.standard_normal(shape).astype(np.float32)
        return jnp.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True))

    queries = unit(BATCH, queries_per_head, heads, dim)
    keys = unit(BATCH, heads, memory_size, dim)
    written = jnp.full(BATCH, memory_size, jnp.int32)
    full = memory.Memory(keys, keys, written)
    product = jax.jit(lambda q, k: jnp.einsum("bqhd,bhsd->bhqs", q, k))
    runs: Timed = {"product": lambda: product(queries, keys)}
    for engine in ("bucketed", "exact"):
        find = jax.jit(
            lambda q, m, engine=engine: search.find(
                q, m, top_k=STEP.top_k, engine=engine, recall_target=STEP.recall_target
            )
        )
        runs[engine] = lambda find=find: find(queries, full)  # type: ignore[misc]
    return runs


def measured_recall(memory_size: int) -> float:
    """Returns the share of the true top-k that bucketed search finds."""
    runs = search_against_product(memory_size, queries_per_head=64)
    found, true = (
        np.asarray(runs["bucketed"]().slots),
        np.asarray(runs["exact"]().slots),
    )
    hits = (found[..., :, None] == true[..., None, :]).any(-1)
    return float(hits.mean())


def main() -> None:
    """Runs the benchmarks, prints tables, writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="timed runs of each row")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error(f"--rounds is {args.rounds}, must be 1 or more")

    device = (
        f"{jax.devices()[0].device_kind}, {platform.machine()}, JAX {jax.__version__}"
    )
    report: dict[str, Any] = {"device": device, "rounds": args.rounds}
    buckets = bucketed_search.choose_buckets(
        STEP.recall_target, STEP.memory_size, STEP.top_k
    )
    print(f"{device}; bucketed: {buckets[0]} buckets, {buckets[1]} winners each")
    recall = measured_recall(STEP.memory_size)
    print(f"recall@{STEP.top_k} at {STEP.memory_size} slots: {recall:.4f}\n")

    steps = {
        "no memory": training_step(STEP.replace(memory_layers=())),
        f"memory {STEP.memory_size}": training_step(STEP),
    }
    tables = {"training step": (steps, "no memory")}
    for size, queries in SEARCHES:
        title = f"search of {size} slots by {BATCH * STEP.num_heads * queries} queries"
        tables[title] = (search_against_product(size, queries), "product")
    for title, (runs, base) in tables.items():
        seconds = round_robin(runs, args.rounds, args.quiet)
        report[title] = seconds
        print_table(title, seconds, base)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        new = args.output.with_name(args.output.name + ".new")
        new.write_text(json.dumps(report, indent=1) + "\n")
        os.replace(new, args.output)


def print_table(title: str, seconds: dict[str, list[float]], base: str) -> None:
    """Prints medians, spread and the ratio to the row named `base`."""
    print(f"{title:46}   median       min       max   ratio")
    reference = statistics.median(seconds[base])
    for name, times in seconds.items():
        median = statistics.median(times)
        print(
            f"  {name:42} {median * 1e3:7.1f}ms {min(times) * 1e3:7.1f}ms "
            f"{max(times) * 1e3:7.1f}ms  {median / reference:6.2f}"
        )
    print()


if __name__ == "__main__":
    main()
