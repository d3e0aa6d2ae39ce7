"""Names, shapes and initial values (MOD-3, MOD-5, MOD-6)."""

import numpy as np
import pytest
from helpers import SMALL, replace

from memorizing_reference import parameters


def test_names_and_shapes():
    found = parameters.shapes(replace(SMALL, num_layers=2, memory_layers=(1,)))
    assert found == {
        "embedding": (11, 6),
        "final_norm_gain": (6,),
        **{
            f"layers.{i}.{name}": shape
            for i in range(2)
            for name, shape in {
                "attention_norm_gain": (6,),
                "query_kernel": (6, 2, 5),
                "key_kernel": (6, 2, 5),
                "value_kernel": (6, 2, 5),
                "output_kernel": (2, 5, 6),
                "attention_scale": (2,),
                "relative_bias": (2, 32),
                "mlp_norm_gain": (6,),
                "mlp_in_kernel": (6, 8),
                "mlp_out_kernel": (8, 6),
            }.items()
        },
        "layers.1.gate_bias": (2,),
    }


def test_memory_size_and_top_k_shape_nothing():
    """MOD-5: the same draw, too, so that runs can be compared."""
    base = parameters.init(SMALL, seed=1)
    other = replace(SMALL, memory_size=77, top_k=13, num_buckets=5, cache_length=2)
    for name, array in parameters.init(other, seed=1).items():
        np.testing.assert_array_equal(array, base[name])


# Large enough for statistics, all different; fan_in of output_kernel is 12 * 25.
LARGE = replace(
    SMALL, vocab_size=500, model_dim=200, num_heads=12, head_dim=25, mlp_dim=400
)


@pytest.mark.parametrize(
    ("kind", "fan_in"),
    [
        ("query_kernel", 200),
        ("key_kernel", 200),
        ("value_kernel", 200),
        ("output_kernel", 300),
        ("mlp_in_kernel", 200),
        ("mlp_out_kernel", 400),
    ],
)
def test_kernels_are_truncated_normals(kind, fan_in):
    x = parameters.init(LARGE, seed=0, dtype=np.float64)[f"layers.1.{kind}"].ravel()
    x = x * np.sqrt(fan_in)
    # 60,000 numbers and more: a mean is known to 0.004, a deviation to 0.003.
    assert abs(x.mean()) < 0.02
    assert abs(x.std() - 1.0) < 0.015
    # Cut at two deviations, before the rescaling that makes the variance one.
    assert 2.2 < np.abs(x).max() < 2.0 / 0.8796


def test_other_initial_values():
    config = replace(LARGE, attention_scale_init=3.5, gate_bias_init=-1.25)
    found = parameters.init(config, seed=0)
    assert {array.dtype for array in found.values()} == {np.dtype(np.float32)}
    assert abs(found["embedding"].std() - 1.0) < 0.02
    assert np.abs(found["embedding"]).max() > 3  # Not truncated.
    bias = np.stack([found[f"layers.{i}.relative_bias"] for i in range(3)])
    assert abs(bias.std() * np.sqrt(32) - 1.0) < 0.1
    assert (found["final_norm_gain"] == 1).all()
    assert (found["layers.2.attention_norm_gain"] == 1).all()
    assert (found["layers.0.attention_scale"] == 3.5).all()
    assert (found["layers.0.gate_bias"] == -1.25).all()


def test_a_seed_fixes_everything():
    first, same = parameters.init(SMALL, seed=4), parameters.init(SMALL, seed=4)
    other = parameters.init(SMALL, seed=5)
    assert all((first[name] == same[name]).all() for name in first)
    assert (first["embedding"] != other["embedding"]).all()
    kernels = [first[f"layers.0.{kind}_kernel"] for kind in ("query", "key", "value")]
    assert (kernels[0] != kernels[1]).all()
    assert (kernels[1] != kernels[2]).all()


class TestCheck:
    def test_accepts_its_own(self):
        parameters.check(parameters.init(SMALL, seed=0), SMALL)

    def test_names_what_is_missing(self):
        params = parameters.init(SMALL, seed=0)
        del params["layers.2.gate_bias"]
        with pytest.raises(
            ValueError, match=r"layers\.2\.gate_bias is missing.*\(2,\)"
        ):
            parameters.check(params, SMALL)

    def test_names_what_is_misshapen(self):
        params = parameters.init(replace(SMALL, vocab_size=12), seed=0)
        with pytest.raises(
            ValueError, match=r"embedding has shape \(12, 6\).*\(11, 6\)"
        ):
            parameters.check(params, SMALL)

    def test_names_what_is_too_much(self):
        params = parameters.init(SMALL, seed=0)
        with pytest.raises(
            ValueError, match=r"layers\.0\.gate_bias belongs to no part"
        ):
            parameters.check(params, replace(SMALL, memory_layers=(2,)))
