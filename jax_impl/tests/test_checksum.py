"""Checksums notice every change of an element, and of places."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memorizing_jax.checksum import checksums


@pytest.mark.parametrize(
    "dtype", ["float32", "bfloat16", "float16", "int32", "uint32", "int8", "bool"]
)
def test_any_bit_matters(dtype):
    rng = np.random.default_rng(0)
    size = jnp.dtype(dtype).itemsize
    raw = rng.integers(0, 2 if dtype == "bool" else 256, (3, 5 * size)).astype(np.uint8)
    found = set()
    for bit in [None, *range(1 if dtype == "bool" else 8 * size)]:
        changed = raw.copy()
        if bit is not None:
            changed[1, 2 * size + bit // 8] ^= 1 << (bit % 8)
        found.add(checksums({"x": jax.device_put(changed.view(dtype))})["x"])
    assert len(found) == 1 + (1 if dtype == "bool" else 8 * size)


def test_places_matter():
    x = jnp.arange(6, dtype=jnp.float32).reshape(2, 3)
    others = [x[::-1], x[:, ::-1], x.at[0, 0].set(-0.0), x.reshape(3, 2).T]
    found = {checksums({"x": array})["x"] for array in [x, *others]}
    assert len(found) == 5


def test_each_array_has_its_own():
    zeros = {"a": jnp.zeros((2, 3)), "b": jnp.zeros((2, 3)), "c": jnp.float32(0)}
    found = checksums(zeros)
    assert found["a"] == found["b"] != found["c"]
