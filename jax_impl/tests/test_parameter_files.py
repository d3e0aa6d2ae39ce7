"""Files of parameters come back whole; what is none is refused."""

import jax
import numpy as np
import pytest
import safetensors.numpy

from memorizing_jax import parameter_files, parameters
from memorizing_jax.errors import InputError
from memorizing_jax.parameter_files import Trained

BYTES = {"kind": "bytes", "vocab_size": 256, "file": None, "sha256": None}


@pytest.fixture(scope="module")
def trained(small):
    drawn = parameters.init(small.model, jax.random.key(0))
    return Trained(drawn, small.model, BYTES, 7)


def test_float32_comes_back_exactly(tmp_path, trained):
    path = tmp_path / "parameters.safetensors"
    parameter_files.save(path, trained)
    first = path.read_bytes()
    found = parameter_files.load(path)
    assert (found.model, found.tokenizer, found.step) == (trained.model, BYTES, 7)
    assert found.parameters.keys() == trained.parameters.keys()
    for name, expected in trained.parameters.items():
        np.testing.assert_array_equal(found.parameters[name], expected)
    parameter_files.save(path, found)
    assert path.read_bytes() == first


def test_bfloat16_is_half_as_large_and_near(tmp_path, trained):
    path, half = tmp_path / "full", tmp_path / "half"
    parameter_files.save(path, trained)
    parameter_files.save(half, trained, "bfloat16")
    arrays = sum(p.nbytes for p in trained.parameters.values())
    assert path.stat().st_size - half.stat().st_size >= arrays / 2 - 100
    found = parameter_files.load(half)
    for name, expected in trained.parameters.items():
        assert found.parameters[name].dtype == np.float32
        # Half of the last of 8 bits.
        np.testing.assert_allclose(found.parameters[name], expected, rtol=2**-8)


def test_refuses_what_is_no_such_file(tmp_path, trained):
    with pytest.raises(InputError, match="there is no file"):
        parameter_files.load(tmp_path / "nowhere")
    path = tmp_path / "file"
    parameter_files.save(path, trained)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match="was cut short"):
        parameter_files.load(path)
    safetensors.numpy.save_file({"x": np.zeros(3)}, path)
    with pytest.raises(InputError, match="does not say memorizing_transformer version"):
        parameter_files.load(path)


def test_refuses_tokens_that_mean_something_else(trained):
    parameter_files.check_tokenizer(trained, dict(BYTES), "tokens")
    with pytest.raises(InputError, match="sha256 None, and that of tokens has '0'"):
        parameter_files.check_tokenizer(trained, BYTES | {"sha256": "0"}, "tokens")
