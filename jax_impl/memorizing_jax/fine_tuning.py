"""Parameters of another run to start from, with memory or without."""

import dataclasses
import hashlib
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from memorizing_data.token_files import TokenFiles
from memorizing_jax import parameter_files, parameters
from memorizing_jax.config import ModelConfig
from memorizing_jax.parameters import Parameters


@dataclasses.dataclass(frozen=True)
class Start:
    """What a run starts from in place of drawn parameters.

    Attributes:
      parameters: all that the model has.
      sha256: of those that were given.
      new_gates: memory layers whose gate was not.
    """

    parameters: Parameters
    sha256: str
    new_gates: tuple[int, ...]


def load(path: Path, config: ModelConfig, token_files: TokenFiles) -> Start:
    """Reads parameters to start from; memory layers new to them get a gate.

    The gate's is the one parameter that a memory adds (MOD-6), and no other depends
    on the size of the memory or on how many neighbors it gives (MOD-5).

    Args:
      path: file of parameters, or folder of a run, whose newest checkpoint is taken.
      config: the model to be trained.
      token_files: what it will read.

    Raises:
      InputError: the file or folder cannot be read, its tokens mean something else,
        or a parameter that is no gate is missing, surplus or misshapen.
    """
    read = parameter_files.load_run if path.is_dir() else parameter_files.load
    trained = read(path)
    directory = token_files.directory
    parameter_files.check_tokenizer(trained, token_files.tokenizer, directory)
    given = trained.parameters
    gate = jnp.full(config.num_heads, config.gate_bias_init, jnp.float32)
    new = {
        layer: f"layers.{layer}.gate_bias"
        for layer in config.memory_layers
        if f"layers.{layer}.gate_bias" not in given
    }
    # Each its own array: a step donates them, and none twice.
    complete = given | {name: gate.copy() for name in new.values()}
    parameters.check(complete, config)
    return Start(complete, _sha256(given), tuple(new))


def describe(start: Start, path: Path, config: ModelConfig) -> str:
    """Returns a sentence that says what was given and what is new."""
    if not start.new_gates:
        return f"every parameter comes from {path}"
    layers = " and ".join(map(str, start.new_gates))
    return (
        f"new gate for memory layer {layers}, with bias {config.gate_bias_init} "
        f"(--gate-bias-init); every other parameter comes from {path}"
    )


def _sha256(given: Parameters) -> str:
    """Returns the same for equal parameters, whatever file they come from."""
    digest = hashlib.sha256()
    for name in sorted(given):
        array = np.ascontiguousarray(given[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.view(np.uint8).data)
    return digest.hexdigest()
