"""The hand-written backward pass against central differences, in float64."""

import dataclasses

import numpy as np
import pytest
from helpers import filled

from memorizing_reference import attention, gradients, search

BATCH, SEGMENT, CACHE, HEADS, DIM = 2, 3, 4, 5, 7
LEARNED = ["queries", "local_keys", "local_values", "relative_bias"]
LEARNED += ["attention_scale", "gate_bias"]


@dataclasses.dataclass
class Case:
    arrays: dict
    fixed: dict
    cotangent: np.ndarray

    def forward(self, **changes):
        arrays = self.arrays | changes
        local = ("queries", "local_keys", "local_values")
        return gradients.forward(
            *(arrays[name] for name in local),
            self.fixed["num_cached"],
            self.fixed["memory"],
            self.fixed["slots"],
            local_window=self.fixed["local_window"],
            **{name: arrays[name] for name in LEARNED if name not in local},
        )

    def loss(self, **changes):
        return float((self.cotangent * self.forward(**changes)[0]).sum())


def make_case(dtype=np.float64, num_written=(9, 2), top_k=3, seed=0):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.normal(size=shape).astype(dtype)

    queries = attention.normalize(normal(BATCH, SEGMENT, HEADS, DIM))
    state = filled(rng, BATCH, num_written, 6, HEADS, DIM, dtype)
    state = dataclasses.replace(state, keys=attention.normalize(state.keys))
    arrays = {
        "queries": queries,
        "local_keys": attention.normalize(normal(BATCH, CACHE + SEGMENT, HEADS, DIM)),
        "local_values": normal(BATCH, CACHE + SEGMENT, HEADS, DIM),
        "relative_bias": normal(HEADS, 32),
        "attention_scale": np.array([1.0, -2.0, 0.5, 3.0, -0.25], dtype),
        "gate_bias": np.array([0.0, 1.0, -2.0, 0.5, 4.0], dtype),
    }
    fixed = {
        "num_cached": np.array([1, 4]),
        "memory": state,
        "slots": search.top_k_slots(queries, state, top_k),
        "local_window": 5,
    }
    return Case(arrays, fixed, normal(BATCH, SEGMENT, HEADS, DIM))


def test_forward_is_the_models_attention():
    case = make_case()
    a, f = case.arrays, case.fixed
    local = attention.local_attention(
        a["queries"],
        a["local_keys"],
        a["local_values"],
        f["num_cached"],
        local_window=f["local_window"],
        relative_bias=a["relative_bias"],
        attention_scale=a["attention_scale"],
    )
    far = attention.memory_attention(
        a["queries"], f["memory"], f["slots"], a["attention_scale"]
    )
    expected = attention.combine(far, local, a["gate_bias"])
    # The same sums in another order: a few units in the last place of float64.
    np.testing.assert_allclose(case.forward()[0], expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("num_written", [(9, 2), (0, 8)])
@pytest.mark.parametrize("name", LEARNED)
def test_against_central_differences(name, num_written):
    """Rows with more than enough, too few and no pairs; the selection is fixed."""
    case = make_case(num_written=num_written)
    found = gradients.backward(case.forward()[1], case.cotangent)[name]
    expected = np.zeros_like(found)
    step = 1e-5  # Error: step**2 of the third derivative, and 1e-16 / step.
    for index in np.ndindex(expected.shape):
        moved = np.zeros_like(expected)
        moved[index] = step
        above = case.loss(**{name: case.arrays[name] + moved})
        below = case.loss(**{name: case.arrays[name] - moved})
        expected[index] = (above - below) / (2 * step)
    if name in ("local_keys", "local_values"):
        # The loss does depend on the cache; the gradient is stopped there (LOC-7).
        assert np.abs(expected[:, :CACHE]).max() > 1e-3
        assert (found[:, :CACHE] == 0).all()
        found, expected = found[:, CACHE:], expected[:, CACHE:]
    assert np.abs(expected).max() > 1e-3 or name == "queries"
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8)


def test_no_neighbor_flips_within_the_step():
    """What the test above takes for granted: selection is constant nearby."""
    case = make_case()
    memory, slots = case.fixed["memory"], case.fixed["slots"]
    for step in (-1e-5, 1e-5):
        moved = case.arrays["queries"] + step
        np.testing.assert_array_equal(search.top_k_slots(moved, memory, 3), slots)


def test_nothing_flows_into_memory():
    """MEM-8: the loss depends on stored pairs, and no gradient names them."""
    case = make_case()
    saved = case.forward()[1]
    before = case.loss()
    memory = case.fixed["memory"]
    case.fixed["memory"] = dataclasses.replace(memory, values=memory.values + 1)
    assert abs(case.loss() - before) > 1e-3
    assert sorted(gradients.backward(saved, case.cotangent)) == sorted(LEARNED)


def test_queries_learn_from_memory_alone():
    """MEM-8: with the gate open only neighbors are read, and queries still learn."""
    case = make_case()
    case.arrays["gate_bias"] = np.full(HEADS, 50.0)
    found = gradients.backward(case.forward()[1], case.cotangent)
    assert np.abs(found["queries"]).max() > 1e-3
    assert np.abs(found["attention_scale"]).max() > 1e-3
    assert np.abs(found["local_values"]).max() < 1e-20


def test_a_single_pair_by_hand():
    """One neighbor and one local position: weights are 1, so only values matter."""
    one = np.ones((1, 1, 1, 1))
    state = filled(np.random.default_rng(1), 1, 1, 1, 1, 1, np.float64)
    state = dataclasses.replace(state, keys=one, values=5 * one)
    _, saved = gradients.forward(
        one,
        np.concatenate([one, one], axis=1),
        np.concatenate([3 * one, 7 * one], axis=1),
        np.array([1]),
        state,
        np.zeros((1, 1, 1, 1), int),
        local_window=1,
        relative_bias=np.zeros((1, 32)),
        attention_scale=np.ones(1),
        gate_bias=np.zeros(1),
    )
    found = gradients.backward(saved, 8 * one)
    # gate 1/2: 8 * 1/2 * 1/2 * (5 - 3) = 4
    assert found["gate_bias"].tolist() == [4.0]
    assert found["queries"].ravel().tolist() == [0.0]


def test_a_scale_of_zero_has_no_slope():
    """QKN-3: `|scale|` has a kink there, and the gradient is 0 by decision."""
    case = make_case()
    case.arrays["attention_scale"][1] = 0.0
    found = gradients.backward(case.forward()[1], case.cotangent)["attention_scale"]
    assert (found == 0).tolist() == [False, True, False, False, False]


def test_float32_gives_float32():
    case32, case = make_case(np.float32), make_case()
    case32.fixed["slots"] = case.fixed["slots"]
    found32 = gradients.backward(case32.forward()[1], case32.cotangent)
    found = gradients.backward(case.forward()[1], case.cotangent)
    for name in LEARNED:
        assert found32[name].dtype == np.float32, name
        # Sums of up to 100 terms of size 1, each off by 1e-7.
        np.testing.assert_allclose(found32[name], found[name], atol=2e-5)


def test_what_lies_in_hidden_places_does_not_matter():
    """A NaN before the row's cached positions, or behind an absent neighbor."""
    case = make_case(num_written=(9, 0))
    clean = gradients.backward(case.forward()[1], case.cotangent)
    for name in ("local_keys", "local_values"):
        case.arrays[name][0, :3] = np.nan
    memory = case.fixed["memory"]
    memory.keys[1] = memory.values[1] = np.nan
    dirty = gradients.backward(case.forward()[1], case.cotangent)
    for name in LEARNED:
        np.testing.assert_array_equal(dirty[name], clean[name])
