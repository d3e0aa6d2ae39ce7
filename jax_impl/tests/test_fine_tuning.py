"""Starting from another run: what may be new is a gate, and nothing else."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from memorizing_data.token_files import open_split
from memorizing_jax import fine_tuning, parameter_files
from memorizing_jax.__main__ import main
from memorizing_jax.errors import InputError

SETTINGS = (
    "--preset=tiny",
    "--batch=2",
    "--segment-length=8",
    "--search=exact",
    "--evaluation-interval=0",
    "--log-interval=1",
    "--learning-rate=0.1",
    "--warmup-steps=1",
)


def train(dataset, output, *more):
    return main(["train", f"--data={dataset}", f"--output={output}", *SETTINGS, *more])


@pytest.fixture(scope="module")
def without(dataset, tmp_path_factory):
    """Returns the folder of a run without memory, of three steps."""
    output = tmp_path_factory.mktemp("runs") / "without"
    assert train(dataset, output, "--steps=3", "--memory-layers", "--quiet") == 0
    return output


def parameters_of(output):
    return safetensors.numpy.load_file(output / "parameters.safetensors")


def test_a_model_without_memory_learns_to_use_one(dataset, without, tmp_path, capsys):
    """Both layers get a gate, and both gates move; then the memory grows."""
    small = tmp_path / "small"
    file = without / "parameters.safetensors"
    start = (f"--parameters={file}", "--gate-bias-init=-1", "--memory-layers", "0", "1")
    assert train(dataset, small, "--steps=8", "--memory-size=16", *start) == 0
    said = capsys.readouterr().err
    assert "new gate for memory layer 0 and 1, with bias -1.0 (--gate-bias" in said
    assert f"every other parameter comes from {file}" in said
    for layer in (0, 1):
        gate = parameters_of(small)[f"layers.{layer}.gate_bias"]
        assert (np.abs(gate + 1) > 1e-3).all()

    # MOD-5: another size, and the newest checkpoint of a run in place of a file.
    large = tmp_path / "large"
    more = ("--memory-layers", "0", "1", "--memory-size=40", "--top-k=12")
    assert train(dataset, large, "--steps=1", f"--parameters={small}", *more) == 0
    assert f"every parameter comes from {small}" in capsys.readouterr().err
    config = json.loads((large / "config.json").read_text())
    assert config["settings"]["model"]["memory_size"] == 40


def test_given_parameters_are_taken_as_they_are(dataset, without):
    """From a file or from the run that wrote it: the same arrays, the same name."""
    trained = parameter_files.load(without / "parameters.safetensors")
    config = trained.model.replace(memory_layers=(0, 1), gate_bias_init=-2.0)
    token_files = open_split(dataset, "train")
    starts = [
        fine_tuning.load(path, config, token_files)
        for path in (without, without / "parameters.safetensors")
    ]
    assert starts[0].sha256 == starts[1].sha256
    assert starts[0].new_gates == (0, 1)
    for start in starts:
        for name, parameter in start.parameters.items():
            given = trained.parameters.get(name, jnp.full(config.num_heads, -2.0))
            np.testing.assert_array_equal(parameter, given)
    # A step donates every array, and none twice.
    buffers = [p.unsafe_buffer_pointer() for p in starts[0].parameters.values()]
    assert len(set(buffers)) == len(buffers)


def test_whatever_else_is_missing_is_named(dataset, without, tmp_path):
    token_files = open_split(dataset, "train")
    trained = parameter_files.load(without / "parameters.safetensors")
    for change, message in (
        ({"num_layers": 3}, "parameter layers.2.attention_norm_gain is missing"),
        ({"num_layers": 1}, "parameter layers.1.attention_norm_gain belongs to no"),
        ({"mlp_dim": 7}, r"mlp_in_kernel has shape \(32, 64\), expected \(32, 7\)"),
    ):
        config = trained.model.replace(**change)
        with pytest.raises(InputError, match=message):
            fine_tuning.load(without, config, token_files)
    # A gate is no longer wanted: not dropped in silence.
    gated = jax.tree.map(jnp.copy, trained.parameters)
    gated |= {"layers.1.gate_bias": jnp.zeros(trained.model.num_heads)}
    model = trained.model.replace(memory_layers=(1,))
    path = tmp_path / "gated.safetensors"
    parameter_files.save(
        path, dataclasses.replace(trained, parameters=gated, model=model)
    )
    with pytest.raises(InputError, match=r"layers.1.gate_bias belongs to no part"):
        fine_tuning.load(path, trained.model, token_files)
