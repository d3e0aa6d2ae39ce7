"""Time and recall of every search, ours and others', on the same keys and queries."""

import argparse
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from memorizing_jax import bench_keys, bench_peers, memory, search
from memorizing_jax.bench_report import Row, round_robin, rows_of
from memorizing_jax.config import SearchEngine

TOP_K = 32
RECALL_TARGET = 0.95
HEADS = 2
# At most so many scores per run, or a round takes minutes at a million keys.
MOST_SCORES = 2**26


def measure(
    draw: bench_keys.Draw,
    kind: str,
    memory_size: int,
    head_dim: int,
    rounds: int,
    quiet: bool,
) -> list[Row]:
    """Returns one row per search: seconds, ratio to the plain product, recall."""
    num_queries = max(32, min(512, MOST_SCORES // (HEADS * memory_size)))
    keys, queries = draw(memory_size, num_queries, HEADS, head_dim)
    true = _true_slots(keys, queries)
    runs: dict[str, Callable[[], Any]] = {"product": _product(keys, queries)}
    for engine in get_args(SearchEngine):
        runs |= _engine(engine, keys, queries)
    for name, build in bench_peers.available(TOP_K).items():
        runs[name] = functools.partial(build(keys), queries)
    seconds = round_robin(runs, rounds, quiet)
    common = {
        "keys": kind,
        "memory_size": memory_size,
        "head_dim": keys.shape[-1],
        "queries": num_queries * keys.shape[1],
    }
    rows = rows_of(seconds, "product", **common)
    for row in rows:
        name = row["name"]
        row["recall"] = None if name == "product" else _recall(runs[name](), true)
    return rows


def filled(engine: SearchEngine, keys: npt.NDArray[np.float32]) -> memory.Memory:
    """Returns a memory of one row that was given these keys, segment by segment."""
    num_keys, num_heads, head_dim = keys.shape
    stored = memory.empty(1, num_keys, num_heads, head_dim, engine=engine)
    for first in range(0, num_keys, 2048):
        segment = jnp.asarray(keys[None, first : first + 2048])
        count = jnp.full(1, segment.shape[1], jnp.int32)
        stored = _insert(stored, segment, segment, count)
    return stored


_insert = jax.jit(memory.insert, donate_argnums=0)


def _engine(
    engine: SearchEngine,
    keys: npt.NDArray[np.float32],
    queries: npt.NDArray[np.float32],
) -> dict[str, Callable[[], Any]]:
    """Returns a call of one of our engines, or nothing where it cannot run."""
    find = jax.jit(
        functools.partial(
            search.find, top_k=TOP_K, engine=engine, recall_target=RECALL_TARGET
        )
    )
    asked = jnp.asarray(queries[None])
    try:
        stored = filled(engine, keys)
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


def _true_slots(
    keys: npt.NDArray[np.float32], queries: npt.NDArray[np.float32]
) -> npt.NDArray[np.int64]:
    find = bench_peers.available(TOP_K)["NumPy"](keys)
    return find(queries)


def _recall(found: Any, true: npt.NDArray[np.int64]) -> float:
    """Returns the share of the true neighbors, `[queries, heads, top_k]`, found."""
    hits = (np.asarray(found)[..., :, None] == true[..., None, :]).any(axis=-2)
    return float(hits.mean())


def sources(args: argparse.Namespace) -> dict[str, tuple[bench_keys.Draw, list[int]]]:
    """Returns the kinds of keys to measure on, each with its dimensions."""
    kinds: dict[str, tuple[bench_keys.Draw, list[int]]] = {
        "random": (bench_keys.random, [64, 128]),
        "clustered": (bench_keys.clustered, [64, 128]),
    }
    if args.parameters:
        trained = bench_keys.of_trained_model(
            Path(args.parameters), Path(args.tokens), args.quiet
        )
        kinds["trained"] = (trained, [48])
    return kinds
