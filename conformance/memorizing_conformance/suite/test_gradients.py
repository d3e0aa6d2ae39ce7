"""Where gradient flows, and where it stops.

The expectation is no formula: it is the slope of the reference in float64, along
random directions, with the retrieved slots held fixed.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memorizing_conformance import oracle, strategies
from memorizing_conformance.comparison import GRADIENT_TOLERANCE, assert_close
from memorizing_conformance.reference_adapter import Oracle
from memorizing_conformance.strategies import Sizes

pytestmark = [pytest.mark.level("gradients"), pytest.mark.needs("gradients")]

SIZES = Sizes(
    batch=2, memory_size=16, num_heads=3, head_dim=4, top_k=5, segment_length=7
)
CACHE, HEADS = 5, 3
LEARNED = ("relative_bias", "attention_scale", "gate_bias")
ARRAYS = ("queries", "local_keys", "local_values", *LEARNED)


def draw(seed):
    """Arguments of a memory layer, and the pairs of two segments in its memory."""
    rng = np.random.default_rng(seed)
    local = (2, CACHE + 7, HEADS, 4)
    arguments = {
        "queries": strategies.grid_array(rng, SIZES.segment) / 2,
        "local_keys": strategies.grid_array(rng, local) / 2,
        "local_values": strategies.grid_array(rng, local),
        "num_cached": np.array([CACHE, 2]),
        "relative_bias": strategies.grid_array(rng, (HEADS, 32)),
        "attention_scale": np.array([0.75, -1.25, 0.5], np.float32),
        "gate_bias": np.array([0.5, -0.5, 1], np.float32),
    }
    pairs = [
        [strategies.grid_array(rng, SIZES.segment) for _ in range(2)] for _ in range(2)
    ]
    cotangent = strategies.grid_array(rng, SIZES.segment)
    return arguments, pairs, cotangent, rng


def remember(implementation, pairs, num_tokens=(7, 3)):
    state = implementation.init(**SIZES.memory)
    for keys, values in pairs:
        state = implementation.insert(state, keys, values, np.array(num_tokens))
    return state


def gradients(implementation, state, arguments, cotangent):
    found = implementation.memory_layer_gradients(
        state,
        arguments["queries"],
        arguments["local_keys"],
        arguments["local_values"],
        arguments["num_cached"],
        cotangent,
        local_window=9,
        **{name: arguments[name] for name in LEARNED},
    )
    return {name: np.asarray(array, np.float64) for name, array in found.items()}


def slope(state, slots, arguments, cotangent, direction):
    """Returns how fast `sum(cotangent * output)` grows along a direction."""
    values = []
    for step in (1e-5, -1e-5):
        moved = {
            name: arguments[name].astype(np.float64) + step * direction.get(name, 0)
            for name in ARRAYS
        }
        scale = moved["attention_scale"]
        memory_output = oracle.attend(state, moved["queries"], slots, scale)
        local_output = Oracle().attend_local(
            moved["queries"],
            moved["local_keys"],
            moved["local_values"],
            arguments["num_cached"],
            local_window=9,
            relative_bias=moved["relative_bias"],
            attention_scale=scale,
        )
        output = Oracle().combine(memory_output, local_output, moved["gate_bias"])
        values.append(float((cotangent * output).sum()))
    return (values[0] - values[1]) / 2e-5


def check_slopes(implementation, seed, names, *, prepare=lambda arguments: arguments):
    arguments, pairs, cotangent, rng = draw(seed)
    arguments = prepare(arguments)
    state = remember(implementation, pairs)
    slots = np.asarray(implementation.search(state, arguments["queries"]))
    found = gradients(implementation, state, arguments, cotangent)
    stored = remember(Oracle(), pairs)
    for name in names:
        assert found[name].shape == arguments[name].shape, name
        direction = rng.standard_normal(arguments[name].shape)
        if name in ("local_keys", "local_values"):
            direction[:, :CACHE] = 0  # LOC-7 has its own test.
        expected = slope(stored, slots, arguments, cotangent, {name: direction})
        assert_close(
            (found[name] * direction).sum(),
            expected,
            f"slope along {name}",
            GRADIENT_TOLERANCE,
        )


def only_memory(arguments):
    return arguments | {"gate_bias": np.full(HEADS, 40, np.float32)}


@pytest.mark.rule("MEM-8")
@pytest.mark.parametrize("name", ["queries", "attention_scale", "gate_bias"])
@given(seed=st.integers(0, 9999))
def test_gradient_flows_through_retrieved_pairs(implementation, name, seed):
    check_slopes(implementation, seed, [name])
    if name != "gate_bias":
        # With gates open all of it comes by way of the memory.
        check_slopes(implementation, seed, [name], prepare=only_memory)


@pytest.mark.rule("MEM-8")
@given(seed=st.integers(0, 9999))
def test_no_gradient_reaches_stored_pairs(implementation, seed):
    arguments, pairs, cotangent, _ = draw(seed)
    state = remember(implementation, pairs)
    found = gradients(implementation, state, arguments, cotangent)
    assert set(ARRAYS) <= set(found) <= {*ARRAYS, "memory_keys", "memory_values"}
    for name in set(found) - set(ARRAYS):
        assert (found[name] == 0).all(), f"gradient reaches {name}"
    # With gates open nothing local is read, and none flows there either.
    open_gates = only_memory(arguments)
    found = gradients(implementation, state, open_gates, cotangent)
    for name in ("local_keys", "local_values", "relative_bias"):
        assert_close(found[name], np.zeros_like(found[name]), name)


@pytest.mark.rule("MEM-8")
@given(seed=st.integers(0, 9999))
def test_the_memory_is_the_same_afterwards(implementation, seed):
    arguments, pairs, cotangent, _ = draw(seed)
    state = remember(implementation, pairs)
    scale = arguments["attention_scale"]
    before = np.array(implementation.attend_memory(state, arguments["queries"], scale))
    gradients(implementation, state, arguments, cotangent)
    after = np.array(implementation.attend_memory(state, arguments["queries"], scale))
    assert (before == after).all()


@pytest.mark.rule("LOC-4")
@pytest.mark.parametrize("name", ["queries", "local_keys", "local_values"])
@given(seed=st.integers(0, 9999))
def test_gradient_flows_through_local_attention(implementation, name, seed):
    check_slopes(implementation, seed, [name])


@pytest.mark.rule("LOC-4")
@given(seed=st.integers(0, 9999))
def test_gradient_flows_to_the_position_bias(implementation, seed):
    check_slopes(implementation, seed, ["relative_bias"])


@pytest.mark.rule("QKN-3")
@given(seed=st.integers(0, 9999))
def test_the_gradient_of_the_scale_keeps_its_sign(implementation, seed):
    """The logits' factor is its size, so for a negative scale the slope turns round."""
    arguments, pairs, cotangent, _ = draw(seed)
    turned = arguments | {"attention_scale": -arguments["attention_scale"]}
    state = remember(implementation, pairs)
    found, other = (
        gradients(implementation, state, one, cotangent)["attention_scale"]
        for one in (arguments, turned)
    )
    assert_close(other, -found, "gradient of attention_scale", GRADIENT_TOLERANCE)
    check_slopes(implementation, seed, ["attention_scale"])


@pytest.mark.rule("GATE-3")
@given(seed=st.integers(0, 9999))
def test_gradient_flows_to_the_gate(implementation, seed):
    check_slopes(implementation, seed, ["gate_bias"])


@pytest.mark.rule("LOC-7")
@given(seed=st.integers(0, 9999))
def test_no_gradient_reaches_the_cache(implementation, seed):
    arguments, pairs, cotangent, _ = draw(seed)
    state = remember(implementation, pairs)
    found = gradients(implementation, state, arguments, cotangent)
    for name in ("local_keys", "local_values"):
        assert (found[name][:, :CACHE] == 0).all(), f"gradient reaches cached {name}"
        assert np.abs(found[name][:, CACHE:]).max() > 0, f"no gradient in {name}"


@pytest.mark.rule("GATE-2")
def test_an_empty_memory_has_finite_gradients(implementation):
    """The softmax of nothing must not poison what flows back."""
    arguments, _, cotangent, _ = draw(0)
    state = implementation.init(**SIZES.memory)
    arguments["num_cached"] = np.array([0, 0])
    found = gradients(implementation, state, arguments, cotangent)
    for name in ARRAYS:
        assert np.isfinite(found[name]).all(), name
    local = {name: found[name] for name in ("local_keys", "local_values")}
    assert all(np.abs(array).max() > 0 for array in local.values())
    expected = slope(
        Oracle().init(**SIZES.memory),
        np.full((*SIZES.segment[:3], SIZES.top_k), -1),
        arguments,
        cotangent,
        {"gate_bias": np.ones(HEADS)},
    )
    found_slope = found["gate_bias"].sum()
    assert_close(found_slope, expected, "slope along gate_bias", GRADIENT_TOLERANCE)
