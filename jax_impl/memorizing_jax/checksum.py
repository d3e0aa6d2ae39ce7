"""Checksums of arrays, wherever their parts lie and however they are divided.

Storage does not notice an altered byte among the numbers, and a hash of an array read
from start to end would need all of it on one host. Here every element adds a number
that depends on its bits and on its place in the whole array, so that devices sum
over what they hold, and the sum is the same on every mesh.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

Arrays = dict[str, jax.Array]


def checksums(arrays: Arrays) -> dict[str, int]:
    """Returns 32 bits for each array, the same in every process.

    A change of a single element changes its array's for sure; a change of several
    goes unnoticed once in 2^32.
    """
    return {name: int(found) for name, found in jax.device_get(_sums(arrays)).items()}


@jax.jit
def _sums(arrays: Arrays) -> Arrays:
    return {name: _sum(array) for name, array in arrays.items()}


def _sum(array: jax.Array) -> jax.Array:
    bits = _bits(array)
    place = jnp.zeros(bits.shape, jnp.uint32)
    for axis in range(bits.ndim):
        stride = math.prod(bits.shape[axis + 1 :]) % 2**32
        along = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        place += along * np.uint32(stride)
    # For a given place, other bits give another number: `_mix` is one-to-one.
    return _mix(bits ^ _mix(place + np.uint32(1))).sum(dtype=jnp.uint32)


def _bits(array: jax.Array) -> jax.Array:
    """Returns the bits of each element as uint32, of wide elements as two."""
    if array.dtype == jnp.bool_:
        return array.astype(jnp.uint32)
    size = min(array.dtype.itemsize, 4)
    bits = jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{8 * size}"))
    return bits.astype(jnp.uint32)


def _mix(x: jax.Array) -> jax.Array:
    """Spreads every bit over all 32: the finalizer of MurmurHash3."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))
