"""A model of the Llama family as it was trained: layers, rotation, parameters."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memorizing_conformance import models
from memorizing_conformance.comparison import assert_close
from memorizing_conformance.models import changed, read
from memorizing_conformance.pretrained import (
    GATED,
    JOINT,
    LOCAL,
    ORDINARY,
    logits_of_llama,
)
from memorizing_conformance.readings import assert_same_logits, draw

pytestmark = [
    pytest.mark.level("model"),
    pytest.mark.needs("model", "pretrained", "exact_search"),
]


def assert_reads_as_llama(implementation, config, parameters, seed, length=33):
    """Row 0 against full attention, written out apart from the reference."""
    documents = models.draw_documents(seed, [length, length])
    segments = models.cut(config, documents)
    found = read(implementation, config, parameters, segments)
    for row, document in enumerate(documents):
        one = np.concatenate([logits[row] for logits in found])[:length]
        assert_close(one, logits_of_llama(config, parameters, document), "logits")


@pytest.mark.rule("PRE-7")
@pytest.mark.rule("PRE-8")
@given(seed=st.integers(0, 9999))
def test_with_room_for_everything_it_is_an_ordinary_llama(implementation, seed):
    parameters = models.draw_parameters(ORDINARY, seed)
    assert_reads_as_llama(implementation, ORDINARY, parameters, seed)


@pytest.mark.rule("PRE-7")
def test_a_tied_embedding_makes_the_logits(implementation):
    """One segment alone, in which nothing can be dropped."""
    parameters = models.draw_parameters(LOCAL, 1)
    assert_reads_as_llama(implementation, LOCAL, parameters, 1, length=6)


@pytest.mark.rule("PRE-7")
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_the_norm_has_the_epsilon_that_is_configured(implementation, size):
    """An embedding of size 1e-3 has a mean square of 1e-6, less than epsilon."""
    parameters = models.draw_parameters(LOCAL, 2)
    for kind in ("output_kernel", "mlp_out_kernel"):
        parameters = changed(parameters, kind, 0)
    parameters = changed(parameters, "embedding", lambda array: size * array)
    parameters = changed(parameters, "final_norm_gain", lambda gain: gain / size)
    assert_reads_as_llama(implementation, LOCAL, parameters, 2, length=6)


@pytest.mark.rule("PRE-7")
def test_without_attention_it_is_a_stack_of_mlps(implementation):
    parameters = models.draw_parameters(LOCAL, 3)
    parameters = changed(parameters, "output_kernel", 0)
    parameters = changed(parameters, "mlp_out_kernel", lambda kernel: 3 * kernel)
    assert_reads_as_llama(implementation, LOCAL, parameters, 3, length=6)


@pytest.mark.rule("PRE-8")
def test_all_components_turn_at_their_own_speed(implementation):
    """Queries that keep one pair of components, one after the other."""
    for pair in range(2):
        parameters = models.draw_parameters(ORDINARY, 4 + pair)
        others = [d for d in range(4) if d % 2 != pair]

        def silenced(kernel, others=others):
            kernel = 2 * kernel
            kernel[:, :, others] = 0
            return kernel

        parameters = changed(parameters, "query_kernel", silenced)
        assert_reads_as_llama(implementation, ORDINARY, parameters, 4 + pair)


@pytest.mark.rule("PRE-10")
@pytest.mark.needs("model_gradients")
@pytest.mark.parametrize("config", [JOINT, GATED], ids=["joint", "gate"])
def test_every_parameter_has_its_gradient(implementation, config):
    """Of a model of one layer, so that slopes take little time."""
    config = config | {"num_layers": 1, "memory_layers": (0,), "model_dim": 5}
    parameters, segments = draw(config, 6, num_segments=1)
    state = implementation.init_model(config, parameters, models.BATCH)
    _, gradients = implementation.model_gradients(state, *segments[0])
    assert set(gradients) == set(parameters)
    for name, array in parameters.items():
        assert np.shape(gradients[name]) == array.shape, name


@pytest.mark.rule("PRE-10")
@pytest.mark.needs("parameters")
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_parameters_have_the_agreed_shapes(implementation, tied):
    config = GATED | {"tied_embedding": tied}
    found = implementation.init_parameters(config, 0)
    expected = {
        "embedding": (41, 12),
        "final_norm_gain": (12,),
        **({} if tied else {"output_embedding": (41, 12)}),
        "layers.0.gate_bias": (6,),
        "layers.2.gate_bias": (6,),
    }
    for i in range(3):
        expected |= {
            f"layers.{i}.attention_norm_gain": (12,),
            f"layers.{i}.query_kernel": (12, 6, 4),
            f"layers.{i}.key_kernel": (12, 2, 4),
            f"layers.{i}.value_kernel": (12, 2, 4),
            f"layers.{i}.output_kernel": (6, 4, 12),
            f"layers.{i}.mlp_norm_gain": (12,),
            f"layers.{i}.mlp_gate_kernel": (12, 17),
            f"layers.{i}.mlp_up_kernel": (12, 17),
            f"layers.{i}.mlp_out_kernel": (17, 12),
        }
    assert {name: np.shape(array) for name, array in found.items()} == expected


@pytest.mark.rule("PRE-10")
@pytest.mark.needs("parameters")
def test_a_joint_model_has_no_gate(implementation):
    found = implementation.init_parameters(JOINT, 0)
    assert not [name for name in found if name.endswith("gate_bias")]


@pytest.mark.rule("PRE-9")
def test_a_lone_token_reads_itself(implementation):
    """Its weight is 1: what it reads is its own value, whatever its query."""
    parameters = models.draw_parameters(ORDINARY, 7)
    other = changed(parameters, "query_kernel", lambda kernel: -3 * kernel)
    silent = changed(parameters, "output_kernel", 0)
    documents = models.draw_documents(7, [1, 1])
    segments = models.cut(ORDINARY, documents)
    found = [
        read(implementation, ORDINARY, p, segments) for p in (parameters, other, silent)
    ]
    assert_same_logits(found[1], found[0])
    assert np.abs(found[2][0] - found[0][0]).max() > 0.01, "it read nothing"
    expected = logits_of_llama(ORDINARY, parameters, documents[0])
    assert_close(found[0][0][0, :1], expected, "logits")
