"""The TPU compiler answers on a machine without a TPU."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest

from memorizing_jax import tpu_compiler
from memorizing_jax.errors import InputError


def test_compiles_for_a_slice_that_is_not_there():
    pytest.importorskip("libtpu")
    assert len(tpu_compiler.devices("v5e:16x16")) == 256
    shape = tpu_compiler.placed(jnp.zeros((128, 128)), tpu_compiler.one_device())
    compiled = jax.jit(lambda x: x @ x).lower(shape).compile()
    assert compiled.memory_analysis().argument_size_in_bytes == 128 * 128 * 4
    assert "T(8,128)" in compiled.as_text()  # Arrays in the tiles of a TPU.


def test_names_a_topology_that_does_not_exist():
    pytest.importorskip("libtpu")
    with pytest.raises(InputError, match="no topology 'v99:2x2', expected one like"):
        tpu_compiler.devices("v99:2x2")


def test_names_the_extra_where_libtpu_is_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"memorizing-transformers\[tpu\]"):
        tpu_compiler.devices("v5e:2x2")
