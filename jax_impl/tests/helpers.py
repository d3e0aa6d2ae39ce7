"""Small things that several tests draw on."""

import os

import jax
import jax.numpy as jnp
import numpy as np

from memorizing_jax import model, parameters
from memorizing_jax.config import ModelConfig
from memorizing_jax.memory import Memory

# No two sizes alike, so that no axis can pass for another. Segments of 7 neither
# divide the memories of 10 nor the caches of 4.
SMALL = ModelConfig(
    vocab_size=29,
    num_layers=3,
    model_dim=6,
    num_heads=2,
    head_dim=5,
    mlp_dim=8,
    segment_length=7,
    local_window=9,
    cache_length=4,
    memory_layers=(0, 2),
    memory_size=10,
    top_k=3,
    search="exact",
)

forward = jax.jit(model.forward, static_argnums=5)


def grid(rng, *shape):
    """Draws multiples of 1/8 in [-2, 2]: their inner products are exact, ties real."""
    return (rng.integers(-16, 17, shape) / 8).astype(np.float32)


def holding(keys, num_written, dtype="float32"):
    """Returns a memory with these keys, [batch, num_heads, memory_size, head_dim].

    What is not valid is NaN, as the document before may have left it.
    """
    num_written = np.asarray(num_written, np.int32)
    stale = np.arange(keys.shape[2])[None, :] >= num_written[:, None]
    keys = np.where(stale[:, None, :, None], np.nan, keys).astype(np.float32)
    on_device = jnp.asarray(keys, dtype)
    return Memory(on_device, -on_device, jnp.asarray(num_written))


def draw_parameters(config, seed=0):
    """Draws parameters far from their initial values, so that each one matters."""
    rng = np.random.default_rng(seed)
    params = {}
    for name, shape in parameters.shapes(config).items():
        middle = 1.0 if name.endswith(("_gain", "_scale")) else 0.0
        drawn = middle + 0.4 * rng.standard_normal(shape)
        params[name] = jnp.asarray(drawn, jnp.float32)
    return params


def draw_tokens(config, num_segments, batch, seed=0):
    """Draws the tokens of some segments, [num_segments, batch, segment_length]."""
    shape = (num_segments, batch, config.segment_length)
    return np.random.default_rng(seed).integers(0, config.vocab_size, shape, np.int32)


def read(params, config, segments, starts=None, counts=None, state=None):
    """Reads segments one after the other.

    Where nothing else is said a document opens with the first one, and all are full.
    Returns the logits of each, the last state, and what each retrieved.
    """
    batch, length = segments[0].shape
    if state is None:
        state = model.init_state(config, batch)
    logits, retrieved = [], []
    for i, tokens in enumerate(segments):
        start = np.full(batch, i == 0) if starts is None else np.array(starts[i])
        count = np.full(batch, length) if counts is None else np.array(counts[i])
        found, state, what = forward(
            params, state, tokens, start, count.astype(np.int32), config
        )
        logits.append(np.asarray(found))
        retrieved.append(what)
    return np.stack(logits), state, retrieved


def draw_stream():
    """Draws four segments of three rows, which wrap, begin anew, are cut and idle.

    Returns tokens, starts and counts, as `read` takes them.
    """
    starts = [[1, 1, 1], [0, 0, 1], [0, 1, 0], [0, 0, 0]]
    counts = [[7, 7, 4], [7, 5, 7], [7, 7, 0], [7, 2, 7]]
    return draw_tokens(SMALL, 4, 3), np.array(starts, bool), np.array(counts)


def latest(output):
    """Returns the step of the newest checkpoint that is complete, or 0."""
    folder = output / "checkpoints"
    names = os.listdir(folder) if folder.exists() else []
    return max((int(name) for name in names if name.isdigit()), default=0)
