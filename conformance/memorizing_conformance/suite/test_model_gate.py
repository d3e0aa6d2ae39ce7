"""How a layer of the model mixes memory with local context."""

import numpy as np
import pytest

from memorizing_conformance.models import EXHAUSTIVE, MAIN, changed, read
from memorizing_conformance.readings import (
    OPEN,
    SHUT,
    assert_as_expected,
    assert_same_logits,
    draw,
)

pytestmark = [
    pytest.mark.level("model"),
    pytest.mark.needs("model", "exact_search"),
]


@pytest.mark.rule("GATE-1")
def test_memory_attention_is_its_own_softmax(implementation):
    """With gates open, nothing local counts: no bias of layers 0 and 2 does."""
    parameters, segments = draw(EXHAUSTIVE, 22)
    parameters = changed(parameters, "gate_bias", OPEN)
    parameters = changed(parameters, "layers.1.output_kernel", 0)
    biased = changed(parameters, "relative_bias", lambda bias: 6 * bias + 1)
    found = [
        read(implementation, EXHAUSTIVE, p, segments) for p in (parameters, biased)
    ]
    assert_same_logits(*found)
    silent = changed(parameters, "output_kernel", 0)
    without = read(implementation, EXHAUSTIVE, silent, segments[:2])
    assert np.abs(found[0][1] - without[1]).max() > 0.01, "memory was not read"


@pytest.mark.rule("GATE-2")
def test_the_gate_applies_without_a_memory(implementation):
    """With memory_size 0 a gate of one half leaves half of the local output."""
    off = EXHAUSTIVE | {"memory_size": 0}
    parameters, segments = draw(off, 23)
    half = changed(parameters, "gate_bias", 0)
    shut = changed(parameters, "gate_bias", SHUT)
    for name in ("layers.0.output_kernel", "layers.2.output_kernel"):
        shut = changed(shut, name, lambda kernel: kernel / 2)
    found = [read(implementation, off, p, segments) for p in (half, shut)]
    assert_same_logits(*found)


@pytest.mark.rule("GATE-3")
def test_the_gate_weighs_head_by_head(implementation):
    parameters, segments = draw(MAIN, 24)
    parameters = changed(
        parameters, "gate_bias", lambda bias: np.array([1.5, -1.5]) + 0 * bias
    )
    assert_as_expected(implementation, MAIN, parameters, segments)


@pytest.mark.rule("GATE-3")
def test_a_shut_gate_leaves_local_attention(implementation):
    """What the memory holds then makes no difference: not even how large it is."""
    parameters, segments = draw(EXHAUSTIVE, 25)
    parameters = changed(parameters, "gate_bias", SHUT)
    found = [
        read(implementation, EXHAUSTIVE | sizes, parameters, segments)
        for sizes in ({}, {"memory_size": 0})
    ]
    assert_same_logits(*found)
