"""Token by token equals segment by segment (GEN-1)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memorizing_jax import decode, model, parameters
from memorizing_jax.config import ModelConfig

# Lengths of the documents that each row reads: around the segment's 6, and such that
# one row begins a document while the other is in the middle of a segment.
ROWS = ((20, 7, 12), (9, 1, 29))

forward = jax.jit(model.forward, static_argnums=5)
decode_step = jax.jit(decode.decode_step, static_argnums=4, donate_argnums=1)


def sizes(**changes):
    return ModelConfig(
        vocab_size=19,
        num_layers=2,
        model_dim=12,
        num_heads=2,
        head_dim=5,
        mlp_dim=17,
        memory_layers=(),
        segment_length=6,
        top_k=3,
        search="exact",
    ).replace(**changes)


def far_from_initial(config):
    drawn = parameters.init(config, jax.random.key(1))
    keys = jax.random.split(jax.random.key(2), len(drawn))
    return {
        name: value + 0.3 * jax.random.normal(key, value.shape)
        for key, (name, value) in zip(keys, drawn.items(), strict=True)
    }


def segment_by_segment(params, config, tokens):
    """Returns the logits of one document, and the state after it."""
    state, logits, length = model.init_state(config, 1), [], config.segment_length
    for first in range(0, len(tokens), length):
        piece = tokens[first : first + length]
        padded = np.zeros((1, length), np.int32)
        padded[0, : len(piece)] = piece
        start, count = jnp.array([first == 0]), jnp.array([len(piece)])
        found, state, _ = forward(params, state, padded, start, count, config)
        logits.append(np.asarray(found)[0, : len(piece)])
    return np.concatenate(logits), state


@pytest.mark.rule("GEN-1")
@pytest.mark.parametrize(
    "changes",
    [
        {"cache_length": 3, "memory_size": 16, "local_window": 5},
        {"cache_length": 0, "memory_size": 16, "local_window": 4},  # No cache.
        {"cache_length": 7, "memory_size": 4, "local_window": 9},  # M < N < C < W.
        {"cache_length": 5, "memory_size": 0, "local_window": 4},  # No memory.
    ],
    ids=lambda changes: ",".join(f"{key}={value}" for key, value in changes.items()),
)
def test_equals_the_segment_parallel_pass(changes):
    config = sizes(memory_layers=(0, 1), **changes)
    params = far_from_initial(config)
    rng = np.random.default_rng(5)
    documents = [[rng.integers(0, 19, n) for n in lengths] for lengths in ROWS]
    expected = [
        np.concatenate([segment_by_segment(params, config, d)[0] for d in row])
        for row in documents
    ]
    starts = [
        np.concatenate([np.arange(len(d)) == 0 for d in row]) for row in documents
    ]
    tokens = [np.concatenate(row) for row in documents]
    state = decode.init_decode_state(config, len(ROWS))
    for i in range(min(map(len, tokens))):
        token = jnp.array([row[i] for row in tokens], jnp.int32)
        start = jnp.array([row[i] for row in starts])
        logits, state = decode_step(params, state, token, start, config)
        for row, found in enumerate(np.asarray(logits)):
            # Logits of size one; the sums are the same, in another order.
            np.testing.assert_allclose(found, expected[row][i], rtol=0, atol=1e-5)


@pytest.mark.rule("GEN-1")
@pytest.mark.parametrize("cache_length", [0, 4])
def test_either_may_go_on_from_the_other(cache_length):
    config = sizes(memory_layers=(1,), cache_length=cache_length, memory_size=16)
    params = far_from_initial(config)
    tokens = np.random.default_rng(6).integers(0, 19, 30).astype(np.int32)
    expected, _ = segment_by_segment(params, config, tokens)
    _, state = segment_by_segment(params, config, tokens[:12])
    decoding = decode.from_segments(state, config)
    for i in range(12, 24):
        token, start = jnp.array(tokens[i : i + 1]), jnp.array([False])
        logits, decoding = decode_step(params, decoding, token, start, config)
        np.testing.assert_allclose(logits[0], expected[i], rtol=0, atol=1e-5)
    state = decode.to_segments(decoding, config)
    rest, no, six = tokens[None, 24:], jnp.array([False]), jnp.array([6])
    logits, _, _ = forward(params, state, rest, no, six, config)
    np.testing.assert_allclose(logits[0], expected[24:], rtol=0, atol=1e-5)
