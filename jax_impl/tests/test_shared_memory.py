"""Pairs that all rows share are found and read as if they were each row's oldest."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from llama_helpers import SMALL, draw_parameters, forward

from memorizing_jax import llama_model
from memorizing_jax import memory as memories

BATCH, PAIRS = 2, 20


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"search": "bucketed", "recall_target": 1.0},
        {"combination": "gate"},
    ],
    ids=["exact", "bucketed", "gate"],
)
def test_shared_pairs_are_as_the_oldest_of_every_row(changes):
    config = SMALL.replace(memory_size=64, **changes)
    params = draw_parameters(config)
    rng = np.random.default_rng(3)
    shape = (PAIRS, config.num_key_value_heads, config.head_dim)
    own = shared = llama_model.init_state(config, BATCH)
    pairs = {}
    filled = []
    for i, memory in zip(config.memory_layers, own.memories, strict=True):
        keys, values = rng.integers(-8, 9, (2, *shape)).astype(np.float32) / 8
        # Equal keys, so that ties are broken.
        keys[1::2] = keys[::2]
        pairs[f"layers.{i}.shared_keys"] = jnp.asarray(keys.swapaxes(0, 1))
        pairs[f"layers.{i}.shared_values"] = jnp.asarray(values.swapaxes(0, 1))
        rows = (np.repeat(x[None], BATCH, 0) for x in (keys, values))
        filled.append(memories.insert(memory, *rows, jnp.full(BATCH, PAIRS)))
    own = dataclasses.replace(own, memories=tuple(filled))
    tokens = rng.integers(0, config.vocab_size, (BATCH, 35)).astype(np.int32)
    seen = set()
    for first in range(0, 35, 5):
        rest = (
            tokens[:, first : first + 5],
            np.zeros(BATCH, bool),
            np.full(BATCH, 5, np.int32),
        )
        expected, own, old = forward(params, own, *rest, config=config)
        found, shared, new = forward(params | pairs, shared, *rest, config=config)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
        for i in config.memory_layers:
            np.testing.assert_array_equal(new[i].slots, old[i].slots)
            np.testing.assert_allclose(new[i].weights, old[i].weights, atol=1e-4)
            seen |= set((np.asarray(new[i].slots).ravel() >= PAIRS).tolist())
    assert seen == {False, True}


def test_shared_pairs_serve_without_memories_of_the_rows():
    config = SMALL.replace(memory_layers=())
    params = draw_parameters(config)
    shape = (config.num_key_value_heads, PAIRS, config.head_dim)
    pairs = {
        f"layers.1.shared_{name}": jnp.asarray(x, jnp.float32)
        for name, x in zip(
            ("keys", "values"),
            np.random.default_rng(1).standard_normal((2, *shape)),
            strict=True,
        )
    }
    rest = (np.array([[1, 2, 3, 4, 5]]), np.array([True]), np.array([5], np.int32))
    state = llama_model.init_state(config, 1)
    alone, _, nothing = forward(params, state, *rest, config=config)
    found, after, retrieved = forward(params | pairs, state, *rest, config=config)
    assert nothing == {}
    assert set(retrieved) == {1}
    assert (retrieved[1].slots >= 0).all()
    assert after.memories == ()
    assert np.abs(np.asarray(found - alone)).max() > 1e-3
