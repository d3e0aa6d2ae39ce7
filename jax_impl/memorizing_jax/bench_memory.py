"""What a memory costs by itself: insertion of a segment, bytes of a search."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from memorizing_jax import memory, search
from memorizing_jax.bench_report import Row, Timed
from memorizing_jax.bench_step import STEP
from memorizing_jax.config import SearchEngine


def insertions() -> Timed:
    """Returns calls that insert a segment: small and large memory, with wrap or not."""
    heads, dim, length = STEP.num_heads, STEP.head_dim, STEP.segment_length
    insert = jax.jit(memory.insert, donate_argnums=0)
    rng = np.random.default_rng(0)
    new = jnp.asarray(rng.standard_normal((1, length, heads, dim)), jnp.float32)
    count = jnp.full(1, length, jnp.int32)
    runs: Timed = {}
    for size in (8192, 1_048_576):
        for wraps in (False, True):
            # Half a segment before the end, or a whole one.
            written = size - (length // 2 if wraps else length)
            held = [memory.empty(1, size, heads, dim)]

            def run(
                held: list[memory.Memory] = held, written: int = written
            ) -> jax.Array:
                at = jnp.full(1, written, jnp.int32)
                stored = dataclasses.replace(held[0], num_written=at)
                held[0] = insert(stored, new, new, count)
                return held[0].keys

            runs[f"M = {size:,}{', wraps' if wraps else ''}"] = run
    return runs


def peak_bytes(engine: SearchEngine, memory_size: int) -> Row:
    """Returns what a compiled search allocates, by the compiler's own analysis."""
    heads, dim, length = STEP.num_heads, STEP.head_dim, STEP.segment_length
    stored = jax.eval_shape(
        lambda: memory.empty(1, memory_size, heads, dim, engine=engine)
    )
    queries = jax.ShapeDtypeStruct((1, length, heads, dim), jnp.float32)

    def find(queries: jax.Array, stored: memory.Memory) -> search.Found:
        return search.find(queries, stored, top_k=STEP.top_k, engine=engine)

    compiled = jax.jit(find).lower(queries, stored).compile()
    temporary = compiled.memory_analysis().temp_size_in_bytes  # type: ignore[union-attr]
    return {
        "search": engine,
        "memory_size": memory_size,
        "queries": length * heads,
        "temporary_MB": temporary / 1e6,
        "bytes_per_query": temporary // (length * heads),
    }
