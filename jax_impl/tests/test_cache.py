"""The local cache by hand: what it keeps, and that no gradient enters it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import grid

from memorizing_jax import cache

HEADS, DIM = 2, 3

append = jax.jit(cache.append)


def numbered(*numbers, batch=3):
    number = np.array(numbers, np.float32)
    shape = (batch, len(numbers), HEADS, DIM)
    return np.broadcast_to(number[None, :, None, None], shape)


def kept(state):
    """Returns the numbers that each row keeps, oldest first."""
    assert (state.keys == state.keys[:, :, :1, :1]).all()
    assert (state.values == -state.keys).all()
    return np.asarray(state.keys)[:, :, 0, 0].tolist()


@pytest.mark.rule("LOC-2")
@pytest.mark.rule("SEG-4")
@pytest.mark.parametrize(
    ("before", "expected"),
    [
        # Shorter than the segment; rows with 4, 1 and 0 real tokens.
        ((8, 9), [[3, 4], [9, 1], [8, 9]]),
        # Longer than the segment.
        ((5, 6, 7, 8, 9), [[9, 1, 2, 3, 4], [6, 7, 8, 9, 1], [5, 6, 7, 8, 9]]),
        ((), [[], [], []]),
    ],
)
def test_keeps_the_newest_real_positions(before, expected):
    state = cache.Cache(numbered(*before), -numbered(*before))
    segment = numbered(1, 2, 3, 4)
    state = append(state, segment, -segment, np.array([4, 1, 0]))
    assert kept(state) == expected


@pytest.mark.rule("LOC-2")
def test_local_context_is_the_cache_and_then_the_segment():
    state = cache.Cache(numbered(8, 9), -numbered(8, 9))
    keys, values = cache.local_context(state, numbered(1, 2, 3), -numbered(1, 2, 3))
    assert kept(cache.Cache(keys, values)) == [[8, 9, 1, 2, 3]] * 3
    keys, values = cache.local_context(None, numbered(1, 2, 3), -numbered(1, 2, 3))
    assert kept(cache.Cache(keys, values)) == [[1, 2, 3]] * 3


@pytest.mark.rule("LOC-7")
def test_no_gradient_flows_into_what_is_cached():
    rng = np.random.default_rng(0)
    cached, segment = grid(rng, 1, 2, HEADS, DIM), grid(rng, 1, 4, HEADS, DIM)
    count = np.array([3])

    def appended(cached, segment):
        state = cache.append(cache.Cache(cached, cached), segment, segment, count)
        return state.keys.sum() + state.values.sum()

    def seen(cached, segment):
        state = cache.Cache(cached, cached)
        keys, values = cache.local_context(state, segment, segment)
        return keys.sum() + 2 * values.sum()

    gradient = jax.jit(jax.grad(appended, argnums=1))
    assert (gradient(cached, segment) == 0).all()
    of_cached, of_segment = jax.jit(jax.grad(seen, argnums=(0, 1)))(cached, segment)
    assert (of_cached == 0).all()
    assert (of_segment == 3).all()


def test_a_fresh_cache_has_its_own_arrays():
    state = cache.empty(2, 4, HEADS, DIM, "bfloat16")
    assert state.keys.dtype == state.values.dtype == jnp.bfloat16
    assert state.keys.shape == state.values.shape == (2, 4, HEADS, DIM)
    assert state.keys.unsafe_buffer_pointer() != state.values.unsafe_buffer_pointer()
