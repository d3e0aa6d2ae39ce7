"""A training step with a memory, against the same step without."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from memorizing_jax import (
    bench_keys,
    layers,
    loss,
    memory,
    model,
    parameters,
    search,
)
from memorizing_jax.config import ModelConfig

# The step that the project promises to keep below 1.3 times its cost without memory.
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


class Recorded(NamedTuple):
    """Vectors of a trained model's memory layer, the same in every row.

    Attributes:
      keys: [batch, memory_size, num_heads, head_dim].
      queries: [batch, segment_length, num_heads, head_dim]; those that came next.
    """

    keys: jax.Array
    queries: jax.Array


def training_step(
    config: ModelConfig, recorded: Recorded | None = None
) -> Callable[[], Any]:
    """Returns a call that does forward, backward and insertion, memory full.

    With `recorded` vectors, memory layers ask with those queries and insert those
    keys, whatever their own are; what it takes to compute and differentiate their own
    is still done. Each key comes again when it is overwritten, so that the memory goes
    on holding the same ones.
    """
    params = parameters.init(config, jax.random.key(0))
    rng = np.random.default_rng(0)
    shape = (BATCH, config.segment_length)
    tokens = jnp.asarray(rng.integers(0, config.vocab_size, shape), jnp.int32)
    start = jnp.zeros(BATCH, bool)
    count = jnp.full(BATCH, config.segment_length, jnp.int32)
    own_projection = layers.project

    def mean_loss(params: Any, state: model.State) -> tuple[jax.Array, model.State]:
        def project(layer: Any, x: jax.Array) -> tuple[jax.Array, ...]:
            queries, keys, values = own_projection(layer, x)
            if recorded is None or "gate_bias" not in layer:
                return queries, keys, values
            next_slot = state.memories[0].num_written[0] % config.memory_size
            again = jax.lax.dynamic_slice_in_dim(
                recorded.keys, next_slot, config.segment_length, axis=1
            )
            # Plus nothing: so that their own are not left out.
            return recorded.queries + 0.0 * queries, again + 0.0 * keys, values

        with mock.patch.object(layers, "project", project):
            logits, state, _ = model.forward(
                params, state, tokens, start, count, config
            )
        nats, predicted = loss.total(logits, tokens, count)
        return nats / predicted.astype(nats.dtype), state

    step = jax.jit(jax.value_and_grad(mean_loss, has_aux=True), donate_argnums=1)
    state = model.init_state(config, BATCH)
    if recorded is None:
        memories = tuple(map(_filled_at_random, state.memories))
    else:
        memories = tuple(
            bench_keys.filled(stored, recorded.keys) for stored in state.memories
        )
    held = [dataclasses.replace(state, memories=memories)]

    def run() -> Any:
        (value, held[0]), gradients = step(params, held[0])
        return value, gradients

    return run


def recorded(draw: bench_keys.Draw, memory_size: int) -> Recorded:
    """Returns vectors for `STEP`, widened with zeros: inner products stay the same."""
    vectors = draw(memory_size, STEP.segment_length, STEP.num_heads, STEP.head_dim)
    missing = STEP.head_dim - vectors[0].shape[-1]
    widened = (np.pad(x, ((0, 0), (0, 0), (0, missing))) for x in vectors)
    return Recorded(*(jnp.asarray(np.stack([x] * BATCH)) for x in widened))


def recall(config: ModelConfig, recorded: Recorded) -> float:
    """Returns the share of the true neighbors that a step's search finds."""
    size, heads, dim = config.memory_size, config.num_heads, config.head_dim
    empty = memory.empty(BATCH, size, heads, dim, engine=config.search)
    stored = bench_keys.filled(empty, recorded.keys)
    found, true = (
        search.find(
            recorded.queries,
            stored,
            top_k=config.top_k,
            engine=engine,
            recall_target=config.recall_target,
        ).slots
        for engine in (config.search, "exact")
    )
    return float((found[..., :, None] == true[..., None, :]).any(axis=-2).mean())


def _filled_at_random(stored: memory.Memory) -> memory.Memory:
    """Returns the memory filled with unit keys; an empty one has no ties to settle."""
    batch, heads, size, dim = stored.keys.shape
    keys, _ = bench_keys.random(batch * size, 0, heads, dim)
    return bench_keys.filled(stored, jnp.asarray(keys.reshape(batch, size, heads, dim)))


def product(memory_size: int) -> Callable[[], Any]:
    """Returns a call of the plain product of a step's queries with all its keys."""
    shape = (BATCH, STEP.num_heads, memory_size, STEP.head_dim)
    keys = jax.random.normal(jax.random.key(0), shape)
    queries = jax.random.normal(
        jax.random.key(1), (*shape[:2], STEP.segment_length, shape[3])
    )
    run = jax.jit(lambda q, k: jnp.einsum("bhqd,bhsd->bhqs", q, k))
    return lambda: run(queries, keys)
