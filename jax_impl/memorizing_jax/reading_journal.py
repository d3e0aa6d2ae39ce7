"""A reading that goes on where it was killed.

What was read so far lies in a folder beside the memory file: parts with the pairs of
some segments each, and the state from which to go on. The state is written last, so
that parts it does not count are as good as not there.
"""

import shutil
from pathlib import Path
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from memorizing_data.row_reader import RowReader
from memorizing_jax import sealed_arrays
from memorizing_jax.errors import InputError
from memorizing_jax.llama_model import LlamaState

_VERSION: Final = 1
# By layer: keys and values, each [num_key_value_heads, num_pairs, head_dim].
Stretch = dict[int, tuple[npt.NDArray[Any], npt.NDArray[Any]]]


class Journal:
    """The folder beside a memory file that is being made.

    Args:
      path: of the memory file.
      identity: what a reading must agree with to go on, fit for JSON.
    """

    def __init__(self, path: Path, identity: dict[str, Any]):
        self.folder = path.with_name(path.name + ".reading")
        self.num_parts = 0
        self._identity = identity
        self._state = self.folder / "state.safetensors"

    def restore(self, state: LlamaState, reader: RowReader) -> LlamaState:
        """Moves the reader to where to go on and returns the state there.

        Args:
          state: before the first segment; returned if nothing was written yet.
          reader: at the first segment.

        Raises:
          InputError: the folder belongs to another reading, or is damaged.
        """
        if not self._state.exists():
            return state
        arrays, about = sealed_arrays.load(self._state, "reading", _VERSION)
        for key, here in self._identity.items():
            if about["identity"].get(key) != here:
                raise InputError(
                    f"{self.folder} was begun with {key} {about['identity'].get(key)}, "
                    f"and now it is {here}; go on as begun, or remove the folder"
                )
        self.num_parts = about["num_parts"]
        reader.restore(about["reader"])
        leaves = [jnp.asarray(arrays[str(i)]) for i in range(len(arrays))]
        return jax.tree.unflatten(jax.tree.structure(state), leaves)

    def save(self, new: list[Stretch], state: LlamaState, reader: RowReader) -> None:
        """Writes what was read since the last time."""
        self.folder.mkdir(exist_ok=True)
        part = {
            f"{i}.{name}": np.concatenate([stretch[i][which] for stretch in new], 1)
            for i in new[0]
            for which, name in enumerate(("keys", "values"))
        }
        sealed_arrays.save(
            self._part(self.num_parts), part, {"kind": "part", "version": _VERSION}
        )
        self.num_parts += 1
        leaves = jax.tree.leaves(jax.device_get(state))
        about = {
            "kind": "reading",
            "version": _VERSION,
            "identity": self._identity,
            "num_parts": self.num_parts,
            "reader": reader.state(),
        }
        arrays = {str(i): leaf for i, leaf in enumerate(leaves)}
        sealed_arrays.save(self._state, arrays, about)

    def parts(self, layers: tuple[int, ...]) -> list[Stretch]:
        """Returns what was written, in order."""
        found = []
        for number in range(self.num_parts):
            arrays, _ = sealed_arrays.load(self._part(number), "part", _VERSION)
            found.append(
                {i: (arrays[f"{i}.keys"], arrays[f"{i}.values"]) for i in layers}
            )
        return found

    def remove(self) -> None:
        """Removes the folder, if there is one."""
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def _part(self, number: int) -> Path:
        return self.folder / f"{number:06d}.safetensors"
