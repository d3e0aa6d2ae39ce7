"""One step: its loss, its gradients, and what it does to the state it was given."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memorizing_data.row_reader import RowReader
from memorizing_data.token_files import open_split
from memorizing_jax import input_pipeline, model, train_step
from memorizing_jax.train_config import OptimizerConfig
from memorizing_jax.train_step import Segments

forward = jax.jit(model.forward, static_argnums=5)
loss_and_gradients = jax.jit(train_step.loss_and_gradients, static_argnums=3)


@pytest.fixture(scope="module")
def run(small):
    return jax.jit(lambda: train_step.init(small))()


@pytest.fixture(scope="module")
def segments(dataset, small):
    """Returns the third segment of every row: some are padded."""
    reader = RowReader(
        open_split(dataset, "train"),
        batch=small.batch,
        segment_length=small.model.segment_length,
        seed=1,
        repeat=True,
    )
    for _ in range(3):
        batch = next(reader)
    assert 0 < batch.num_targets.min() < batch.num_targets.max()
    return input_pipeline.to_device(batch)


def test_loss_is_that_of_the_forward_pass(small, run, segments):
    (nats, predicted, *_), _ = loss_and_gradients(
        run.parameters, run.model, segments, small.model
    )
    logits, _, _ = forward(
        run.parameters,
        run.model,
        segments.tokens,
        segments.start_of_document,
        segments.num_tokens,
        small.model,
    )
    log_probability = np.asarray(jax.nn.log_softmax(logits))
    expected = 0.0
    for row, count in enumerate(np.asarray(segments.num_targets)):
        for i in range(count):
            expected -= log_probability[row, i, segments.targets[row, i]]
    assert predicted == segments.num_targets.sum()
    # float32 sums of some twenty terms around 5.
    np.testing.assert_allclose(nats, expected, rtol=1e-5)


def test_gradient_is_that_of_the_mean(small, run, segments):

    def mean(parameters):
        (nats, predicted, *_), _ = loss_and_gradients(
            parameters, run.model, segments, small.model
        )
        return float(nats) / int(predicted)

    _, gradients = loss_and_gradients(run.parameters, run.model, segments, small.model)
    # Along the gradient itself, where the slope is its norm.
    norm = jnp.sqrt(sum((g * g).sum() for g in gradients.values()))
    moved = [
        mean({n: p + s * gradients[n] / norm for n, p in run.parameters.items()})
        for s in (1e-2, -1e-2)
    ]
    slope = (moved[0] - moved[1]) / 2e-2
    # The rounding of a float32 loss near 5, over the step, is 5e-5.
    np.testing.assert_allclose(slope, norm, rtol=1e-2)


@pytest.mark.parametrize("optimizer", ["adafactor", "adamw"])
def test_step_learns_counts_and_gives_up_its_input(small, segments, optimizer):
    settings = OptimizerConfig(optimizer=optimizer, learning_rate=3e-2, warmup_steps=3)
    config = dataclasses.replace(small, optimizer=settings)
    run = jax.jit(lambda: train_step.init(config))()
    before, losses = run, []
    for _ in range(8):
        run, metrics = train_step.train_step_jit(run, segments, config)
        losses.append(float(metrics.nats) / int(metrics.num_predicted))
    assert losses[-1] < losses[0] - 0.1
    assert int(run.step) == 8
    # Donated, so that a memory of gigabytes is written in place.
    given_up = jax.tree.leaves((before.parameters, before.model.memories))
    assert all(array.is_deleted() for array in given_up)
    gates = metrics.gates[2]
    assert gates.shape == (small.model.num_heads,)
    assert ((gates > 0) & (gates < 1)).all()


def test_a_segment_without_targets_changes_no_parameter(no_validation):
    config = no_validation
    run = jax.jit(lambda: train_step.init(config))()
    before = {name: np.asarray(p) for name, p in run.parameters.items()}
    rows, length = config.batch, config.model.segment_length
    nothing = Segments(
        tokens=jnp.zeros((rows, length), jnp.int32),
        targets=jnp.zeros((rows, length), jnp.int32),
        start_of_document=jnp.zeros(rows, bool),
        num_tokens=jnp.zeros(rows, jnp.int32),
        num_targets=jnp.zeros(rows, jnp.int32),
    )
    stepped, metrics = train_step.train_step_jit(run, nothing, config)
    assert metrics.nats == 0
    assert metrics.num_predicted == 0
    for name, parameter in before.items():
        np.testing.assert_array_equal(stepped.parameters[name], parameter)
