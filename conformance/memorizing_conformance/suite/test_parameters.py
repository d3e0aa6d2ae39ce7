"""Names, shapes and initial values of parameters."""

import numpy as np
import pytest

from memorizing_conformance import models
from memorizing_conformance.models import MAIN

pytestmark = [pytest.mark.level("model"), pytest.mark.needs("parameters")]

# Large enough for statistics: its smallest kernel has 24 * 3 * 16 elements.
WIDE = MAIN | {
    "vocab_size": 211,
    "model_dim": 24,
    "num_heads": 3,
    "head_dim": 16,
    "mlp_dim": 71,
}
V, E, H, D, F = 211, 24, 3, 16, 71
FAN_IN = {
    "query_kernel": E,
    "key_kernel": E,
    "value_kernel": E,
    "output_kernel": H * D,
    "mlp_in_kernel": E,
    "mlp_out_kernel": F,
}


@pytest.fixture(scope="module")
def parameters(implementation):
    found = implementation.init_parameters(WIDE, 0)
    return {name: np.asarray(array) for name, array in found.items()}


@pytest.mark.rule("MOD-6")
def test_names_and_shapes(parameters):
    expected = {"embedding": (V, E), "final_norm_gain": (E,)}
    for i in range(3):
        layer = {
            "attention_norm_gain": (E,),
            "query_kernel": (E, H, D),
            "key_kernel": (E, H, D),
            "value_kernel": (E, H, D),
            "output_kernel": (H, D, E),
            "attention_scale": (H,),
            "relative_bias": (H, 32),
            "mlp_norm_gain": (E,),
            "mlp_in_kernel": (E, F),
            "mlp_out_kernel": (F, E),
        }
        if i in (0, 2):
            layer["gate_bias"] = (H,)
        expected |= {f"layers.{i}.{name}": shape for name, shape in layer.items()}
    assert {name: array.shape for name, array in parameters.items()} == expected


@pytest.mark.rule("MOD-6")
@pytest.mark.needs("model")
def test_the_model_takes_what_was_drawn(implementation, parameters):
    segments = models.cut(WIDE, models.draw_documents(0))
    logits = models.read(implementation, WIDE, parameters, segments[:1])[0]
    assert np.isfinite(logits).all()
    assert np.abs(logits).max() > 0


@pytest.mark.rule("MOD-3")
@pytest.mark.parametrize("kind", FAN_IN)
def test_kernels_have_variance_one_over_fan_in(parameters, kind):
    for name in names(parameters, kind):
        unit = parameters[name].astype(np.float64) * np.sqrt(FAN_IN[kind])
        assert_statistics(unit, name)
        # A normal variable cut at two deviations, then rescaled to variance 1.
        assert np.abs(unit).max() <= 2 / 0.8796 + 1e-3, f"{name} is not truncated"
        assert np.abs(unit).max() > 2.1, f"{name} is truncated too soon"


@pytest.mark.rule("MOD-3")
def test_the_embedding_has_deviation_one(parameters):
    embedding = parameters["embedding"].astype(np.float64)
    assert_statistics(embedding, "embedding")
    assert np.abs(embedding).max() > 2.6, "the embedding is truncated"


@pytest.mark.rule("MOD-3")
def test_the_relative_bias_has_deviation_of_its_buckets(parameters):
    biases = [parameters[name].ravel() for name in names(parameters, "relative_bias")]
    assert_statistics(np.concatenate(biases) * np.sqrt(32), "relative_bias")


def assert_statistics(unit, name):
    """Mean 0 and variance 1, within five standard errors of a normal sample."""
    assert abs(unit.mean()) < 5 / np.sqrt(unit.size), f"{name}: mean {unit.mean()}"
    error = abs(unit.var() - 1)
    assert error < 5 * np.sqrt(2 / unit.size), f"{name}: variance {unit.var()}"


@pytest.mark.rule("MOD-3")
@pytest.mark.parametrize(
    "kind",
    ["attention_norm_gain", "mlp_norm_gain", "final_norm_gain"],
)
def test_gains_are_one(parameters, kind):
    for name in names(parameters, kind):
        assert (parameters[name] == 1).all(), name


@pytest.mark.rule("MOD-3")
@pytest.mark.parametrize("kind", ["attention_scale", "gate_bias"])
def test_scale_and_gate_are_constant(parameters, kind):
    # The authors' values are 1 and 0; other constants may be configured.
    values = np.concatenate([parameters[name] for name in names(parameters, kind)])
    assert (values == values[0]).all(), f"{kind}: {values}"


@pytest.mark.rule("MOD-3")
def test_seeds_differ(implementation, parameters):
    again = implementation.init_parameters(WIDE, 0)
    other = implementation.init_parameters(WIDE, 1)
    for name in names(parameters, "query_kernel"):
        assert (np.asarray(again[name]) == parameters[name]).all(), name
        assert (np.asarray(other[name]) != parameters[name]).any(), name


@pytest.mark.rule("MOD-5")
def test_memory_shapes_no_parameter(implementation, parameters):
    other = implementation.init_parameters(WIDE | {"memory_size": 64, "top_k": 7}, 0)
    assert set(other) == set(parameters)
    for name, array in parameters.items():
        assert (np.asarray(other[name]) == array).all(), name


def names(parameters, kind):
    return [name for name in parameters if name.rpartition(".")[2] == kind]
