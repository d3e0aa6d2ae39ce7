"""Losses, gradients and updates of a model on a mesh are those on one device."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from compiled_text import traveling

from memorizing_jax import memory_shards, sharding, train_step
from memorizing_jax.config import ModelConfig
from memorizing_jax.sharding import MeshConfig
from memorizing_jax.train_config import OptimizerConfig, TrainConfig
from memorizing_jax.train_step import Segments

# Heads, MLP and rows divide by 8, the vocabulary by nothing. Most bytes are memory's.
MODEL = ModelConfig(
    vocab_size=29,
    num_layers=1,
    model_dim=16,
    num_heads=8,
    head_dim=5,
    mlp_dim=24,
    memory_layers=(0,),
    segment_length=7,
    local_window=9,
    cache_length=4,
    memory_size=40,
    top_k=6,
)
CONFIG = TrainConfig(model=MODEL, optimizer=OptimizerConfig(warmup_steps=3), batch=8)
MESHES = [(8, 1, 1), (2, 4, 1), (2, 2, 2), (1, 8, 1), (1, 1, 8)]
# Of float32 sums over tokens, heads and shards in another order: some hundred terms,
# each rounded at 6e-8, of which many cancel in a gradient.
LOSS_TOLERANCE = {"rtol": 2e-6}
GRADIENT_TOLERANCE = {"rtol": 2e-5, "atol": 2e-6}


def draw_segments(config, count):
    """Draws segments; odd rows are padded or idle, and begin anew in the sixth."""
    rng = np.random.default_rng(0)
    odd = np.arange(config.batch) % 2 == 1
    for i in range(count):
        tokens, targets = rng.integers(0, 29, (2, config.batch, 7), np.int32)
        counts = np.where(odd, rng.integers(0, 8, config.batch, np.int32), 7)
        start = odd if i == 5 else np.full(config.batch, i == 0)
        yield Segments(tokens, targets, start, counts, counts)


def begin(config, mesh):
    """Returns a run before its first step, where the table puts it."""
    make = functools.partial(train_step.init, config)
    places = sharding.shardings(jax.eval_shape(make), mesh)
    return jax.jit(make, out_shardings=places)()


@functools.cache
def losses_and_gradients(sizes):
    """Returns those of each segment of a stream; the parameters stay as they are."""
    mesh = mesh_of(sizes)
    config = dataclasses.replace(CONFIG, mesh=MeshConfig(*sizes))
    run = begin(config, mesh)
    step = jax.jit(
        functools.partial(train_step.loss_and_gradients, config=config.model),
        donate_argnums=1,
    )
    state, results = run.model, []
    with jax.set_mesh(mesh):
        # The last pairs overwrite the first.
        for segments in draw_segments(config, 12):
            (nats, predicted, state, *_), gradients = step(
                run.parameters, state, segments
            )
            results.append(jax.tree.map(np.asarray, (nats, predicted, gradients)))
    assert int(state.memories[0].num_written.max()) > MODEL.memory_size
    keys = memory_shards.in_slot_order(state.memories[0].keys, sizes[1])
    return results, np.asarray(keys)


def mesh_of(sizes):
    return sharding.make_mesh(MeshConfig(*sizes), jax.devices()[: np.prod(sizes)])


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_losses_and_gradients_are_those_of_one_device(sizes):
    found, keys = losses_and_gradients(sizes)
    expected, expected_keys = losses_and_gradients((1, 1, 1))
    for (nats, predicted, gradients), there in zip(found, expected, strict=True):
        np.testing.assert_allclose(nats, there[0], **LOSS_TOLERANCE)
        assert predicted == there[1]
        for name, gradient in gradients.items():
            np.testing.assert_allclose(
                gradient, there[2][name], **GRADIENT_TOLERANCE, err_msg=name
            )
    # Of normalized keys of 5 numbers.
    np.testing.assert_allclose(keys, expected_keys, atol=1e-6)


@pytest.fixture(scope="module")
def stepped():
    """Returns a run after three steps on a mesh, and the compiled step."""
    config = dataclasses.replace(CONFIG, mesh=MeshConfig(2, 2, 2))
    mesh = mesh_of((2, 2, 2))
    run = begin(config, mesh)
    with jax.set_mesh(mesh):
        step = train_step.jitted(config, mesh)
        compiled = step.lower(run, next(draw_segments(config, 1))).compile()
        for segments in draw_segments(config, 3):
            run, metrics = step(run, segments)
    assert step._cache_size() == 1
    return run, metrics, compiled


def test_updates_are_those_of_one_device(stepped):
    run, metrics, _ = stepped
    alone = jax.jit(lambda: train_step.init(CONFIG))()
    for segments in draw_segments(CONFIG, 3):
        alone, expected = train_step.train_step_jit(alone, segments, CONFIG)
    np.testing.assert_allclose(metrics.nats, expected.nats, **LOSS_TOLERANCE)
    for name, parameter in run.parameters.items():
        there = alone.parameters[name]
        # Adafactor divides by the size of gradients, also where they nearly vanish.
        np.testing.assert_allclose(parameter, there, rtol=1e-3, atol=1e-4, err_msg=name)


def test_a_step_moves_no_memory(stepped):
    """No array that travels has an axis as long as a memory, or a shard of one."""
    _, _, compiled = stepped
    found = traveling(compiled.as_text())
    assert len(found) > 10
    slots = {MODEL.memory_size, MODEL.memory_size // 2}
    assert not any(slots & set(array.shape) for array in found)
