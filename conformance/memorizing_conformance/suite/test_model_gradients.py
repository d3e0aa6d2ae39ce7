"""The gradient of the whole model's loss, held to the slope of the reference."""

import numpy as np
import pytest

from memorizing_conformance import models, reference_model
from memorizing_conformance.comparison import GRADIENT_TOLERANCE, assert_close
from memorizing_conformance.models import TINY
from memorizing_conformance.reference_adapter import Oracle

pytestmark = [
    pytest.mark.level("model"),
    pytest.mark.needs("model", "model_gradients", "exact_search"),
]


@pytest.fixture(scope="module")
def step(implementation):
    """Loss and gradient of a third segment, and the oracle's state before it."""
    parameters = models.draw_parameters(TINY, 0)
    segments = models.cut(TINY, models.draw_documents(0, [13, 12], vocab_size=13))
    states = []
    for one in (implementation, Oracle()):
        state = one.init_model(TINY, parameters, models.BATCH)
        for segment in segments[:2]:
            _, state = one.forward(state, *segment[:3])
        states.append(state)
    # The third segment is padded: 3 and 2 tokens, of which 2 and 1 have targets.
    assert segments[2][4].tolist() == [2, 1]
    loss, gradients = implementation.model_gradients(states[0], *segments[2])
    return float(loss), gradients, states[1], segments[2]


@pytest.mark.rule("SEG-3")
@pytest.mark.rule("SEG-4")
def test_the_loss_is_the_nats_of_all_targets(step):
    loss, _, state, segment = step
    expected = reference_model.segment_loss(state.parameters, state, *segment)
    assert_close(loss, expected, "loss")


@pytest.mark.rule("MOD-6")
def test_every_parameter_has_its_gradient(step):
    _, gradients, state, _ = step
    assert set(gradients) == set(state.parameters)
    for name, array in state.parameters.items():
        assert np.shape(gradients[name]) == array.shape, name


@pytest.mark.rule("MEM-8")
@pytest.mark.rule("LOC-7")
def test_the_gradient_is_the_slope_with_the_state_held_fixed(step):
    """Cache and memory came from these parameters, and are constants all the same."""
    _, gradients, state, segment = step
    rng = np.random.default_rng(1)
    for name, array in state.parameters.items():
        direction = rng.standard_normal(array.shape)
        losses = []
        for size in (1e-5, -1e-5):
            moved = state.parameters | {name: array + size * direction}
            losses.append(reference_model.segment_loss(moved, state, *segment))
        found = (np.asarray(gradients[name], np.float64) * direction).sum()
        expected = (losses[0] - losses[1]) / 2e-5
        assert_close(found, expected, f"slope along {name}", GRADIENT_TOLERANCE)


@pytest.mark.rule("MEM-8")
def test_gradient_reaches_what_reads_the_memory(step):
    _, gradients, _, _ = step
    for kind in ("query_kernel", "attention_scale", "gate_bias"):
        gradient = np.asarray(gradients[f"layers.1.{kind}"])
        assert np.abs(gradient).max() > 1e-6, f"none reaches {kind}"
