"""Schedules by hand, and what each optimizer does to which parameter."""

import jax.numpy as jnp
import numpy as np
import pytest

from memorizing_jax import optimizer
from memorizing_jax.train_config import OptimizerConfig


def rates(config, *numbers):
    """Returns the learning rates of updates counted from 1."""
    return [float(optimizer.learning_rate(config, jnp.int32(n - 1))) for n in numbers]


def test_schedule_of_the_paper():
    # min(n / 1000, 1) / sqrt(max(n, 1000)): 0.0316 at its peak.
    expected = [0.0316227766 / 1000, 0.0316227766 / 2, 1000**-0.5, 0.01]
    found = rates(OptimizerConfig(), 1, 500, 1000, 10_000)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_cosine_ends_at_a_tenth_and_stays():
    config = OptimizerConfig(
        learning_rate=2.0, warmup_steps=10, schedule="cosine", decay_steps=110
    )
    # Halfway the cosine is 0: the middle of 2.0 and 0.2.
    found = rates(config, 5, 10, 60, 110, 500)
    np.testing.assert_allclose(found, [1.0, 2.0, 1.1, 0.2, 0.2], rtol=1e-6)


def first_update(config, gradient=1.0, **parameters):
    parameters = {name: jnp.asarray(value) for name, value in parameters.items()}
    gradients = {
        name: jnp.full_like(value, gradient) for name, value in parameters.items()
    }
    state = optimizer.init(config, parameters)
    updated, _ = optimizer.update(config, gradients, state, parameters)
    return {name: np.asarray(updated[name] - parameters[name]) for name in parameters}


def test_only_kernels_and_embedding_decay():
    config = OptimizerConfig(
        optimizer="adamw", learning_rate=0.5, warmup_steps=1, weight_decay=0.25
    )
    ones = {
        name: np.ones((2, 3), np.float32)
        for name in ("embedding", "layers.0.query_kernel", "layers.0.relative_bias")
    }
    updates = first_update(config, gradient=0.0, **ones)
    decay = {name: float(update[0, 0]) for name, update in updates.items()}
    assert decay == {
        "embedding": -0.125,
        "layers.0.query_kernel": -0.125,
        "layers.0.relative_bias": 0.0,
    }


def test_adafactor_moves_a_gate_that_starts_at_zero():
    zeros = np.zeros(4, np.float32)
    config = OptimizerConfig(warmup_steps=1, learning_rate=0.5)
    updates = first_update(config, **{"layers.1.gate_bias": zeros, "other": zeros})
    # (1 - momentum) * rate * direction; for others times the parameter's size,
    # which counts as at least 1e-3.
    np.testing.assert_allclose(updates["layers.1.gate_bias"], -0.05, rtol=1e-5)
    np.testing.assert_allclose(updates["other"], -0.05e-3, rtol=1e-5)


@pytest.mark.parametrize("name", ["adafactor", "adamw"])
def test_descends_whatever_the_size_of_gradients(name):
    """Clipped or not, updates of a bowl lead to its bottom."""
    config = OptimizerConfig(optimizer=name, learning_rate=0.1, warmup_steps=5)
    parameters = {"kernel": jnp.full((3, 5), 4.0)}
    state = optimizer.init(config, parameters)
    for _ in range(200):
        gradients = {"kernel": 1e6 * parameters["kernel"]}
        parameters, state = optimizer.update(config, gradients, state, parameters)
    assert np.abs(parameters["kernel"]).max() < 0.5


@pytest.mark.parametrize("name", ["adafactor", "adamw"])
def test_stacked_layers_move_as_if_each_stood_alone(name):
    """Layers of different sizes and gradients, wide enough to be factored."""
    config = OptimizerConfig(optimizer=name, learning_rate=0.1, warmup_steps=2)
    rng = np.random.default_rng(0)
    # Lengths of 128 and more are what Adafactor sums over.
    sizes = np.array([0.02, 1.0, 7.0], np.float32)[:, None, None]
    kernel = jnp.asarray(sizes * rng.standard_normal((3, 130, 141)), jnp.float32)
    gradient = rng.standard_normal((4, 3, 130, 141)) / sizes
    flat = {f"layers.{i}.query_kernel": kernel[i] for i in range(3)}
    stacked = {"layers.0:3.query_kernel": kernel}
    states = [optimizer.init(config, parameters) for parameters in (flat, stacked)]
    for step in jnp.asarray(gradient, jnp.float32):
        of_flat = {f"layers.{i}.query_kernel": step[i] for i in range(3)}
        flat, states[0] = optimizer.update(config, of_flat, states[0], flat)
        stacked, states[1] = optimizer.update(
            config, {"layers.0:3.query_kernel": step}, states[1], stacked
        )
    for i, moved in enumerate(stacked["layers.0:3.query_kernel"]):
        assert np.abs(moved - kernel[i]).max() > 1e-4
        # The same sums of float32 in another order, relative to the layer's size.
        alone, atol = flat[f"layers.{i}.query_kernel"], 1e-6 * sizes[i].item()
        np.testing.assert_allclose(moved, alone, rtol=2e-5, atol=atol)
