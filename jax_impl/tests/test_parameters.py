"""Names, shapes and initial values of parameters, and what is refused."""

import jax
import numpy as np
import pytest
from helpers import SMALL, draw_parameters

from memorizing_jax import parameters
from memorizing_jax.config import ModelConfig
from memorizing_jax.errors import InputError

# Wide enough for statistics.
WIDE = ModelConfig(
    vocab_size=257,
    num_layers=1,
    model_dim=96,
    num_heads=64,
    head_dim=5,
    mlp_dim=130,
    memory_layers=(0,),
    attention_scale_init=1.5,
    gate_bias_init=-2.0,
)


@pytest.fixture(scope="module")
def drawn():
    """Returns initial parameters as NumPy arrays, of two keys."""
    init = jax.jit(lambda key: parameters.init(WIDE, key))
    return [
        {name: np.asarray(p) for name, p in init(jax.random.key(seed)).items()}
        for seed in (0, 1)
    ]


@pytest.mark.rule("MOD-6")
def test_names_and_shapes_are_those_of_the_rule():
    layer = {
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
    }
    expected = {"embedding": (29, 6), "final_norm_gain": (6,)}
    for i in range(3):
        expected |= {f"layers.{i}.{name}": size for name, size in layer.items()}
    expected |= {"layers.0.gate_bias": (2,), "layers.2.gate_bias": (2,)}
    assert parameters.shapes(SMALL) == expected


@pytest.mark.rule("MOD-5")
def test_neither_memory_size_nor_neighbors_shape_a_parameter():
    for changes in ({"memory_size": 0}, {"top_k": 1}, {"search": "bucketed"}):
        assert parameters.shapes(SMALL.replace(**changes)) == parameters.shapes(SMALL)


@pytest.mark.rule("MOD-3")
def test_initial_values(drawn):
    params = drawn[0]
    assert {name: p.shape for name, p in params.items()} == parameters.shapes(WIDE)
    fan_in = {"output_kernel": 64 * 5, "mlp_out_kernel": 130}
    for name, p in params.items():
        kind = name.rpartition(".")[2]
        assert p.dtype == np.float32
        if kind.endswith("_gain"):
            assert (p == 1).all()
        elif kind == "attention_scale":
            assert (p == 1.5).all()
        elif kind == "gate_bias":
            assert (p == -2).all()
        else:
            deviation = fan_in.get(kind, 96) ** -0.5
            deviation = {"embedding": 1.0, "relative_bias": 32**-0.5}.get(
                kind, deviation
            )
            # Five standard errors; a normal's is deviation / sqrt(2 n).
            error = 5 * deviation / p.size**0.5
            assert abs(p.mean()) < error, name
            assert abs(p.std() - deviation) < error, name
            # A normal of so many numbers passes 3 deviations, a truncated one stops.
            limit = 2 / 0.8796256610342398 * deviation
            assert (np.abs(p).max() > limit) == (not kind.endswith("_kernel")), name


def test_every_array_is_drawn_anew(drawn):
    one, other = drawn
    kernels = [p for p in one.values() if p.ndim == 3]
    heads = {p.ravel()[:5].tobytes() for p in kernels}
    assert len(heads) == len(kernels)
    assert (one["embedding"] != other["embedding"]).any()


def test_a_layer_under_its_short_names():
    """Layer 1 is not layer 10."""
    arrays = {"layers.1.gate_bias": 1, "layers.10.gate_bias": 10, "embedding": 0}
    assert parameters.of_layer(arrays, 1) == {"gate_bias": 1}
    assert parameters.of_layer(arrays, 10) == {"gate_bias": 10}


def test_layers_between_memories_are_one_group():
    config = SMALL.replace(num_layers=9, memory_layers=(3, 4, 8))
    one = [range(3, 4), range(4, 5), range(8, 9)]
    assert parameters.groups(config) == (range(3), *one[:2], range(5, 8), one[2])
    assert parameters.groups(config.replace(memory_layers=())) == (range(9),)
    assert parameters.groups(SMALL) == (range(1), range(1, 2), range(2, 3))


@pytest.mark.rule("MOD-6")
def test_stacked_layers_under_their_names_and_back():
    """A layer that stands alone keeps its name; so does all that is no layer's."""
    config = SMALL.replace(num_layers=6, memory_layers=(4,))
    flat = draw_parameters(config)
    stacked = parameters.stack(flat, config)
    of_group = parameters.of_group(stacked, range(4))
    assert of_group["mlp_in_kernel"].shape == (4, 6, 8)
    for i in range(4):
        expected = flat[f"layers.{i}.mlp_in_kernel"]
        np.testing.assert_array_equal(of_group["mlp_in_kernel"][i], expected)
    kept = {
        n for n in flat if not n.startswith(tuple(f"layers.{i}." for i in range(4)))
    }
    assert set(stacked) == kept | {f"layers.0:4.{kind}" for kind in of_group}
    assert {parameters.group_of(name) for name in stacked} == {"", "0:4"}
    back = parameters.unstack(stacked)
    parameters.check(back, config)
    for name, array in flat.items():
        np.testing.assert_array_equal(back[name], array)
    assert parameters.stack(stacked, config).keys() == stacked.keys()


def test_refuses_what_does_not_belong_to_the_model():
    params = draw_parameters(SMALL)
    parameters.check(params, SMALL)
    missing = {name: p for name, p in params.items() if name != "layers.2.gate_bias"}
    with pytest.raises(InputError, match=r"layers.2.gate_bias is missing.*\(2,\)"):
        parameters.check(missing, SMALL)
    turned = params | {"embedding": params["embedding"].T}
    message = r"embedding has shape \(6, 29\), expected \(29, 6\)"
    with pytest.raises(InputError, match=message):
        parameters.check(turned, SMALL)
    with pytest.raises(InputError, match=r"layers.2.gate_bias belongs to no part"):
        parameters.check(params, SMALL.replace(memory_layers=(0,)))
