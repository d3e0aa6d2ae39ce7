"""Time and recall of every search, ours and others', on the same keys and queries."""

import dataclasses
import functools
from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from memorizing_jax import bench_keys, bench_peers, memory, search
from memorizing_jax.bench_report import Row, Timed, round_robin, rows_of
from memorizing_jax.bench_step import BATCH, STEP
from memorizing_jax.config import SearchEngine

TOP_K = 32
RECALL_TARGET = 0.95
QUERIES, HEADS = 512, 2
# So that a round takes seconds, and a dozen searches of their own keys fit in memory.
MOST_SCORES, MOST_KEYS, MOST_NUMBERS = 2**27, 2**20, 2**26


def measure(
    draw: bench_keys.Draw,
    kind: str,
    memory_size: int,
    head_dim: int,
    rounds: int,
    quiet: bool,
) -> list[Row]:
    """Returns one row per search: seconds, ratio to the plain product, recall."""
    heads = max(1, min(HEADS, MOST_KEYS // memory_size))
    num_queries = max(32, min(QUERIES, MOST_SCORES // (heads * memory_size)))
    keys, queries = draw(memory_size, num_queries, heads, head_dim)
    true = _true_slots(keys, queries)
    runs: Timed = {"product": _product(keys, queries)}
    for engine in get_args(SearchEngine):
        runs |= _engine(engine, keys, queries)
    for name, build in bench_peers.available(TOP_K).items():
        runs[name] = functools.partial(build(keys), queries)
    common = {
        "keys": kind,
        "memory_size": memory_size,
        "head_dim": keys.shape[-1],
        "queries": num_queries * heads,
    }
    rows = rows_of(round_robin(runs, rounds, quiet), "product", **common)
    for row in rows:
        name = row["name"]
        row["recall"] = None if name == "product" else _recall(runs[name](), true)
    return rows


def growth(draw: bench_keys.Draw, sizes: Sequence[int], args: Namespace) -> list[Row]:
    """Returns rows of the same queries to memories of several sizes."""
    num_queries = MOST_SCORES // max(sizes)
    runs: dict[str, Timed] = {engine: {} for engine in GROWING}
    recalls = {}
    for size in sizes:
        keys, queries = draw(size, num_queries, HEADS, 0)
        true = _true_slots(keys, queries)
        for engine in GROWING:
            for run in _engine(engine, keys, queries).values():
                name = f"{engine}, {size:,} pairs"
                runs[engine][name] = run
                recalls[name] = _recall(run(), true)
    every = {name: run for each in runs.values() for name, run in each.items()}
    seconds = round_robin(every, args.rounds, args.quiet)
    rows: list[Row] = []
    for of_engine in filter(None, runs.values()):
        names = list(of_engine)
        rows += rows_of({name: seconds[name] for name in names}, names[0])
    return [row | {"recall": recalls[row["name"]]} for row in rows]


# Engines that a platform runs for tests alone.
_INTERPRETED: dict[str, tuple[str, ...]] = {"cpu": ("pallas",)}
GROWING: tuple[SearchEngine, ...] = ("bucketed", "clustered", "scann")


def _engine(
    engine: SearchEngine,
    keys: npt.NDArray[np.float32],
    queries: npt.NDArray[np.float32],
) -> Timed:
    """Returns a call of one of our engines, or nothing where it cannot run."""
    if engine in _INTERPRETED.get(jax.default_backend(), ()):
        print(f"{engine} is left out: here its kernel would be interpreted")
        return {}
    find = jax.jit(
        functools.partial(
            search.find, top_k=TOP_K, engine=engine, recall_target=RECALL_TARGET
        )
    )
    asked = jnp.asarray(queries[None])
    try:
        num_keys, num_heads, head_dim = keys.shape
        stored = memory.empty(1, num_keys, num_heads, head_dim, engine=engine)
        stored = bench_keys.filled(stored, jnp.asarray(keys[None]))
        # Only keys are searched. Gone before the next engine's are made.
        stored = dataclasses.replace(stored, values=stored.keys)
        jax.block_until_ready(find(asked, stored))
    except Exception as error:  # Not installed, or not for this device.
        print(f"{engine} is left out: {error}")
        return {}
    return {engine: lambda: find(asked, stored).slots[0].swapaxes(0, 1)}


def _product(
    keys: npt.NDArray[np.float32], queries: npt.NDArray[np.float32]
) -> Callable[[], Any]:
    product = jax.jit(lambda q, k: jnp.einsum("qhd,hsd->hqs", q, k))
    asked, stored = jnp.asarray(queries), jnp.asarray(keys.swapaxes(0, 1))
    return lambda: product(asked, stored)


def against_product(memory_size: int, head_dim: int) -> Timed:
    """Returns calls that search for all queries of a step, and what they compare with.

    The product makes every score and keeps them; `top_k` selects among them.
    """
    heads, length = BATCH * STEP.num_heads, STEP.segment_length
    drawn = bench_keys.random(memory_size, length, heads, head_dim)
    empty = memory.empty(1, memory_size, heads, head_dim)
    keys, queries = (jnp.asarray(x[None]) for x in drawn)
    stored = bench_keys.filled(empty, keys)
    make = jax.jit(lambda q, k: jnp.einsum("bqhd,bhsd->bhqs", q, k))
    select = jax.jit(lambda scores: jax.lax.top_k(scores, STEP.top_k))

    def find(engine: SearchEngine) -> Callable[[], Any]:
        run = jax.jit(
            functools.partial(
                search.find,
                top_k=STEP.top_k,
                engine=engine,
                recall_target=STEP.recall_target,
            )
        )
        return lambda: run(queries, stored)

    runs: Timed = {
        "product": lambda: make(queries, stored.keys),
        "bucketed": find("bucketed"),
        "exact": find("exact"),
        "product, then lax.top_k": lambda: select(make(queries, stored.keys)),
    }
    peers = bench_peers.available(STEP.top_k)
    if "faiss Flat" in peers:
        flat = peers["faiss Flat"](drawn[0])
        runs["faiss Flat"] = lambda: flat(drawn[1])
    return runs


def _true_slots(
    keys: npt.NDArray[np.float32], queries: npt.NDArray[np.float32]
) -> npt.NDArray[np.int64]:
    find = bench_peers.available(TOP_K)["NumPy"](keys)
    return find(queries)


def _recall(found: Any, true: npt.NDArray[np.int64]) -> float:
    """Returns the share of the true neighbors, `[queries, heads, top_k]`, found."""
    hits = (np.asarray(found)[..., :, None] == true[..., None, :]).any(axis=-2)
    return float(hits.mean())
