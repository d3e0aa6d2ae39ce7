"""Arrays in a safetensors file that notices when it was cut short or altered."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from memorizing_jax.errors import InputError

Arrays = dict[str, npt.NDArray[Any]]

_KEY: Final = "memorizing_transformer"


def save(
    path: Path, arrays: Mapping[str, npt.NDArray[Any]], about: dict[str, Any]
) -> None:
    """Writes a file, under another name first, so that a kill leaves none by halves.

    Args:
      path: the file, replaced if it is there.
      arrays: what it holds; bfloat16 will do.
      about: what belongs to them, fit for JSON; `kind` and `version` among it.
    """
    flat = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    text = json.dumps(about, sort_keys=True)
    sealed = json.dumps({"about": text, "sha256": _sha256(flat, text)})
    new = path.with_name(path.name + ".new")
    safetensors.numpy.save_file(flat, new, {_KEY: sealed})
    os.replace(new, path)


def load(path: Path, kind: str, version: int) -> tuple[Arrays, dict[str, Any]]:
    """Reads a file that `save` wrote.

    Raises:
      InputError: it is missing, damaged, or of another kind or version.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    try:
        with safetensors.safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        sealed = json.loads(metadata.get(_KEY, "{}"))
        text = sealed.get("about", "{}")
        about = json.loads(text)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except safetensors.SafetensorError as error:
        raise InputError(
            f"{path} is not a safetensors file, or was cut short ({error})"
        ) from None
    except (ValueError, TypeError, AttributeError):
        raise InputError(f"{path} was altered since it was written") from None
    if about.get("kind") != kind or about.get("version") != version:
        raise InputError(
            f"{path} does not say that it is a {kind} of version {version}; take a "
            "file that `python -m memorizing_jax read` wrote"
        )
    if _sha256(arrays, text) != sealed.get("sha256"):
        raise InputError(f"{path} was altered since it was written")
    return arrays, about


def _sha256(arrays: Arrays, text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
