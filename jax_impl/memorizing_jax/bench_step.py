"""Costs of memory in a model: a training step with it, insertion, bytes of a search."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from memorizing_jax import loss, memory, model, parameters, search
from memorizing_jax.bench_report import Row, Timed
from memorizing_jax.config import ModelConfig, SearchEngine

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


def training_step(config: ModelConfig) -> Callable[[], Any]:
    """Returns a call that does forward, backward and insertion, memory full."""
    params = parameters.init(config, jax.random.key(0))
    rng = np.random.default_rng(0)
    shape = (BATCH, config.segment_length)
    tokens = jnp.asarray(rng.integers(0, config.vocab_size, shape), jnp.int32)
    start = jnp.zeros(BATCH, bool)
    count = jnp.full(BATCH, config.segment_length, jnp.int32)

    def mean_loss(params: Any, state: model.State) -> tuple[jax.Array, model.State]:
        logits, state, _ = model.forward(params, state, tokens, start, count, config)
        nats, predicted = loss.total(logits, tokens, count)
        return nats / predicted.astype(nats.dtype), state

    step = jax.jit(jax.value_and_grad(mean_loss, has_aux=True), donate_argnums=1)
    state = model.init_state(config, BATCH)
    held = [dataclasses.replace(state, memories=tuple(map(_full, state.memories)))]

    def run() -> Any:
        (value, held[0]), gradients = step(params, held[0])
        return value, gradients

    return run


def _full(stored: memory.Memory) -> memory.Memory:
    """Returns the memory filled with unit keys; an empty one has no ties to settle."""
    insert = jax.jit(memory.insert, donate_argnums=0)
    batch, heads, size, dim = stored.keys.shape
    rng = np.random.default_rng(1)
    for _ in range(-(-size // 2048)):
        keys = rng.standard_normal((batch, 2048, heads, dim), np.float32)
        keys /= np.linalg.norm(keys, axis=-1, keepdims=True)
        count = jnp.full(batch, 2048, jnp.int32)
        stored = insert(stored, jnp.asarray(keys), jnp.asarray(keys), count)
    return stored


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


def product(memory_size: int) -> Callable[[], Any]:
    """Returns a call of the plain product of a step's queries with all its keys."""
    shape = (BATCH, STEP.num_heads, memory_size, STEP.head_dim)
    keys = jax.random.normal(jax.random.key(0), shape)
    queries = jax.random.normal(
        jax.random.key(1), (*shape[:2], STEP.segment_length, shape[3])
    )
    run = jax.jit(lambda q, k: jnp.einsum("bhqd,bhsd->bhqs", q, k))
    return lambda: run(queries, keys)
