"""The position bias: the table of LOC-5, and its layout against a loop."""

import jax
import numpy as np
import pytest
from helpers import grid

from memorizing_jax import positions

# From LOC-5: the largest distance of each bucket from 16 to 30; 31 has no end.
LAST_OF_BUCKET = (18, 20, 23, 26, 30, 34, 39, 45, 51, 58, 66, 76, 86, 98, 112)
# Segment and local context: square, with a cache, single positions, all 32 buckets.
LAYOUTS = [(1, 1), (1, 6), (4, 4), (3, 10), (6, 7), (20, 150)]
HEADS = 3

bias = jax.jit(positions.bias, static_argnums=(1, 2))


@pytest.mark.rule("LOC-5")
def test_buckets_are_those_of_the_table():
    expected = list(range(16))
    for bucket, last in enumerate(LAST_OF_BUCKET, start=16):
        expected += [bucket] * (last + 1 - len(expected))
    expected += [31] * (100_000 - len(expected))
    assert positions.bucket(np.arange(100_000)).tolist() == expected


def looped(relative_bias, segment_length, local_length):
    """Returns the bias of every pair that a query can see, and 0 elsewhere."""
    result = np.zeros((HEADS, segment_length, local_length), np.float32)
    for i in range(segment_length):
        for j in range(local_length):
            distance = local_length - segment_length + i - j
            if distance >= 1:
                bucket = positions.bucket(np.array([distance]))[0]
                result[:, i, j] = relative_bias[:, bucket]
    return result


@pytest.mark.rule("LOC-4")
@pytest.mark.parametrize(("segment_length", "local_length"), LAYOUTS)
def test_bias_equals_a_loop(segment_length, local_length):
    rng = np.random.default_rng(0)
    # Any float32: choosing a column must not round it.
    relative_bias = rng.standard_normal((HEADS, 32)).astype(np.float32)
    found = np.asarray(bias(relative_bias, segment_length, local_length))
    expected = looped(relative_bias, segment_length, local_length)
    assert found.shape == expected.shape
    # Where a key does not lie before its query the bias means nothing.
    seen = np.tri(segment_length, local_length, local_length - segment_length - 1)
    np.testing.assert_array_equal(found * seen, expected)


@pytest.mark.parametrize(("segment_length", "local_length"), LAYOUTS)
def test_gradient_is_that_of_the_loop(segment_length, local_length):
    rng = np.random.default_rng(1)
    cotangent = grid(rng, HEADS, segment_length, local_length)
    seen = np.tri(segment_length, local_length, local_length - segment_length - 1)
    cotangent = (cotangent * seen).astype(np.float32)

    def total(relative_bias):
        return (positions.bias(relative_bias, *cotangent.shape[1:]) * cotangent).sum()

    found = np.asarray(jax.jit(jax.grad(total))(np.zeros((HEADS, 32), np.float32)))
    expected = np.zeros((HEADS, 32), np.float32)
    for i, j in np.argwhere(seen):
        bucket = positions.bucket(np.array([local_length - segment_length + i - j]))[0]
        expected[:, bucket] += cotangent[:, i, j]
    # Sums of multiples of 1/8, so exact in any order.
    np.testing.assert_array_equal(found, expected)
