"""The adapter's own part: layouts, types, saving. The suite checks what it computes."""

import dataclasses

import numpy as np
import pytest
from helpers import SMALL, draw_parameters, draw_tokens, grid, read

from memorizing_jax import adapter
from memorizing_jax.adapter import JaxBucketed, JaxImplementation
from memorizing_jax.errors import InputError

SIZES = {"batch": 2, "memory_size": 11, "num_heads": 3, "head_dim": 5, "top_k": 4}
EVERY = [
    value
    for name, value in vars(adapter).items()
    if name.startswith("Jax") and issubclass(value, JaxImplementation)
]


@pytest.fixture(scope="module")
def pairs():
    rng = np.random.default_rng(0)
    return grid(rng, 2, 7, 3, 5), grid(rng, 2, 7, 3, 5)


def remembering(implementation, pairs, **changes):
    state = implementation.init(**SIZES | changes)
    return implementation.insert(state, *pairs, np.array([7, 4]))


def test_each_class_says_what_it_is():
    assert len({each.name for each in EVERY}) == len(EVERY) >= 3
    for each in EVERY:
        assert ("exact_search" in each.features) == (each.engine == "exact")
        assert 0 < each.recall_target <= 1


def test_slots_come_in_the_layout_of_the_queries(pairs):
    """[batch, position, head, neighbor]: by hand, for one query of each row."""
    implementation = JaxImplementation()
    state = remembering(implementation, pairs)
    slots = implementation.search(state, pairs[0][:, :6])
    assert isinstance(slots, np.ndarray)
    assert slots.shape == (2, 6, 3, 4)
    for row, count in ((0, 7), (1, 4)):
        for position, head in np.ndindex(6, 3):
            score = pairs[0][row, :count, head] @ pairs[0][row, position, head]
            expected = np.argsort(-score, kind="stable")[:4]
            assert slots[row, position, head].tolist() == expected.tolist()


def test_a_state_is_used_once(pairs):
    """Insertion is in place: the state before is gone."""
    implementation = JaxImplementation()
    before = implementation.init(**SIZES)
    implementation.insert(before, *pairs, np.array([7, 7]))
    assert before.memory.keys.is_deleted()


@pytest.mark.rule("KNN-3")
def test_refuses_what_is_not_finite(pairs):
    implementation = JaxImplementation()
    state = remembering(implementation, pairs)
    queries = pairs[0].copy()
    queries[1, 4, 2, 3:] = np.nan
    with pytest.raises(InputError, match=r"queries\[\(1, 4, 2, 3\)\] is nan, must be"):
        implementation.search(state, queries)


@pytest.mark.rule("CKP-1")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_memory_comes_back_as_it_was(pairs, tmp_path, dtype):
    implementation = JaxImplementation()
    state = remembering(implementation, pairs, memory_dtype=dtype)
    implementation.save(state, tmp_path)
    restored = JaxImplementation().restore(tmp_path)
    assert restored.top_k == state.top_k
    assert restored.memory.keys.dtype == dtype
    for a, b in zip(
        dataclasses.astuple(restored.memory)[:3],
        dataclasses.astuple(state.memory)[:3],
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_buckets_are_those_that_search_uses():
    num_buckets, winners = JaxBucketed().bucketing(1000, 4)
    assert num_buckets * winners >= 4
    assert JaxBucketed().bucketing(1000, 32)[0] > num_buckets


@pytest.fixture(scope="module")
def config():
    """Returns a model's sizes, as the suite hands them over."""
    settings = ("search", "recall_target", "checked", "compute_dtype")
    settings += ("attention_scale_init", "gate_bias_init")
    sizes = dataclasses.asdict(SMALL)
    return {name: size for name, size in sizes.items() if name not in settings}


def test_a_model_reads_as_the_port_itself(config):
    implementation = JaxImplementation()
    params = {name: np.asarray(p) for name, p in draw_parameters(SMALL).items()}
    tokens = draw_tokens(SMALL, 2, 3)
    state = implementation.init_model(config, params, 3)
    expected, _, _ = read(params, SMALL, tokens)
    for i in range(2):
        logits, state = implementation.forward(
            state, tokens[i], np.full(3, i == 0), np.full(3, 7)
        )
        assert isinstance(logits, np.ndarray)
        # Two compilations of the same sums, in float32.
        np.testing.assert_allclose(logits, expected[i], rtol=0, atol=1e-5)
    other = {name: p + 1 for name, p in params.items()}
    replaced = implementation.replace_parameters(state, other)
    assert replaced.state is state.state
    np.testing.assert_array_equal(replaced.params["embedding"], other["embedding"])


def test_parameters_that_do_not_fit_are_refused(config):
    implementation = JaxImplementation()
    params = draw_parameters(SMALL)
    del params["layers.0.gate_bias"]
    with pytest.raises(InputError, match=r"layers.0.gate_bias is missing"):
        implementation.init_model(config, params, 2)
