"""Parameters alone in one file, for other programs and for publication.

The file is safetensors: arrays by the names of MOD-6, and in its metadata the model's
settings and the tokenizer that its tokens come from.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from memorizing_jax import parameters, train_config, train_step
from memorizing_jax.checkpoint import Checkpoints
from memorizing_jax.config import ModelConfig
from memorizing_jax.errors import InputError
from memorizing_jax.parameters import Parameters
from memorizing_jax.run_folder import RunFolder

_KEY: Final = "memorizing_transformer"
_VERSION: Final = 1


@dataclasses.dataclass(frozen=True)
class Trained:
    """Parameters and what they belong to.

    Attributes:
      parameters: by the names of MOD-6, float32.
      model: the settings they were trained with.
      tokenizer: `kind`, `vocab_size` and `sha256`, as data sets describe theirs.
      step: updates made.
    """

    parameters: Parameters
    model: ModelConfig
    tokenizer: dict[str, Any]
    step: int


def save(
    path: Path, trained: Trained, dtype: Literal["float32", "bfloat16"] = "float32"
) -> None:
    """Writes a file, under another name first, so that a kill leaves none by halves.

    Args:
      path: the file, replaced if it is there.
      trained: what to write.
      dtype: how numbers are stored; bfloat16 halves the file.
    """
    arrays = {
        name: np.asarray(array, jnp.dtype(dtype))
        for name, array in trained.parameters.items()
    }
    about = {
        "version": _VERSION,
        "model": train_config.model_to_json(trained.model),
        "tokenizer": trained.tokenizer,
        "step": trained.step,
    }
    new = path.with_name(path.name + ".new")
    # One entry: safetensors writes several in any order, and equal parameters should
    # give equal files.
    new.write_bytes(safetensors.numpy.save(arrays, {_KEY: json.dumps(about)}))
    os.replace(new, path)


def load(path: Path) -> Trained:
    """Reads a file that `save` wrote.

    Raises:
      InputError: it is missing, damaged, or not such a file.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    try:
        with safetensors.safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except safetensors.SafetensorError as error:
        raise InputError(
            f"{path} is not a safetensors file, or was cut short ({error})"
        ) from None
    about = json.loads(metadata.get(_KEY, "{}"))
    if about.get("version") != _VERSION:
        raise InputError(
            f"{path} does not say {_KEY} version {_VERSION}; take a file that "
            "`python -m memorizing_jax train` wrote"
        )
    model = train_config.model_from_json(about["model"])
    parameters.check(arrays, model)
    wide = {name: jnp.asarray(array, jnp.float32) for name, array in arrays.items()}
    return Trained(wide, model, about["tokenizer"], about["step"])


def load_run(path: Path, step: int | None = None) -> Trained:
    """Reads parameters from a checkpoint of a run.

    Args:
      path: folder of the run.
      step: which checkpoint; the newest if None.

    Raises:
      InputError: there is no such run or checkpoint, or it is damaged.
    """
    config, saved = RunFolder(path).read()
    checkpoints = Checkpoints(RunFolder(path, saved["checkpoints"]).checkpoints)
    shapes = jax.eval_shape(functools.partial(train_step.init, config)).parameters
    try:
        found, step = checkpoints.restore_parameters(step, shapes)
    finally:
        checkpoints.close()
    flat = parameters.unstack(found)
    return Trained(flat, config.model, saved["tokenizer"], step)


def check_tokenizer(trained: Trained, other: Mapping[str, Any], name: object) -> None:
    """Refuses a data set whose tokens mean something else to the parameters.

    Args:
      trained: the parameters.
      other: the data set's tokenizer.
      name: what to call the data set.

    Raises:
      InputError: the tokenizers differ.
    """
    # Not by kind: a tokenizer trained here, or given as a file, is the same one.
    for key in ("vocab_size", "sha256"):
        if trained.tokenizer.get(key) != other.get(key):
            raise InputError(
                f"the parameters were trained on tokens whose tokenizer has {key} "
                f"{trained.tokenizer.get(key)!r}, and that of {name} has "
                f"{other.get(key)!r}; prepare the data with the same tokenizer"
            )
