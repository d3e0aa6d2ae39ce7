"""What a pre-trained model remembers of documents, as a file.

The file is safetensors. Of each layer with a memory it holds `layers.{i}.keys` and
`layers.{i}.values`, `[num_key_value_heads, num_pairs, head_dim]`, as they are stored in
a memory (PRE-2); of each pair `document` and `position`, `[num_pairs]`; and `tokens`,
`[num_tokens]`, those of all documents, to show what a pair stood for. Its metadata
names the model, the tokenizer, the documents and how they were read.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from memorizing_data.token_files import TokenFiles
from memorizing_jax import sealed_arrays
from memorizing_jax.errors import InputError
from memorizing_jax.parameters import Parameters
from memorizing_jax.pretrained import Pretrained
from memorizing_jax.pretrained_reading import layers_named

_KIND: Final = "memory file"
_VERSION: Final = 1

Layers = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Source:
    """A document that was read.

    Attributes:
      name: what it is called.
      num_tokens: its tokens.
      sha256: of its tokens, int32, hexadecimal.
    """

    name: str
    num_tokens: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class MemoryFile:
    """Pairs of whole documents, and where they come from.

    Attributes:
      model: sha256 of the model that read.
      tokenizer: `vocab_size` and `sha256` of its tokenizer.
      keys: by layer, `[num_key_value_heads, num_pairs, head_dim]`, before rotation.
      values: same shapes.
      document: `[num_pairs]`; which of `documents` a pair comes from.
      position: `[num_pairs]`; its position there.
      documents: what was read, in order.
      tokens: `[num_tokens]`; of all documents, one after the other.
      reading: the settings of the reading, for people.
    """

    model: str
    tokenizer: dict[str, Any]
    keys: dict[int, npt.NDArray[Any]]
    values: dict[int, npt.NDArray[Any]]
    document: npt.NDArray[np.int32]
    position: npt.NDArray[np.int32]
    documents: tuple[Source, ...]
    tokens: npt.NDArray[np.int32]
    reading: dict[str, Any]

    @property
    def layers(self) -> Layers:
        """The layers that have a memory."""
        return tuple(sorted(self.keys))


def save(path: Path, memory: MemoryFile) -> None:
    """Writes a file, under another name first; replaces one that is there."""
    arrays = {
        "document": memory.document,
        "position": memory.position,
        "tokens": memory.tokens,
    }
    arrays |= {f"layers.{i}.keys": x for i, x in memory.keys.items()}
    arrays |= {f"layers.{i}.values": x for i, x in memory.values.items()}
    about = {
        "kind": _KIND,
        "version": _VERSION,
        "model": memory.model,
        "tokenizer": memory.tokenizer,
        "layers": memory.layers,
        "dtype": str(memory.keys[memory.layers[0]].dtype),
        "documents": [dataclasses.asdict(source) for source in memory.documents],
        "reading": memory.reading,
    }
    sealed_arrays.save(path, arrays, about)


def load(path: Path) -> MemoryFile:
    """Reads a file that `save` wrote.

    Raises:
      InputError: it is missing, cut short, altered, or not such a file.
    """
    arrays, about = sealed_arrays.load(path, _KIND, _VERSION)
    return MemoryFile(
        model=about["model"],
        tokenizer=about["tokenizer"],
        keys={i: arrays[f"layers.{i}.keys"] for i in about["layers"]},
        values={i: arrays[f"layers.{i}.values"] for i in about["layers"]},
        document=arrays["document"],
        position=arrays["position"],
        documents=tuple(Source(**source) for source in about["documents"]),
        tokens=arrays["tokens"],
        reading=about["reading"],
    )


def load_for(paths: Sequence[Path], model: Pretrained) -> MemoryFile:
    """Reads files that belong to a model, as one: pairs in the order of the files.

    Raises:
      InputError: one of them is damaged, was made with another model or tokenizer, or
        remembers other layers than the first.
    """
    found: list[MemoryFile] = []
    for path in paths:
        memory = load(path)
        if memory.model != model.sha256:
            raise InputError(
                f"{path} was made with the model of sha256 {memory.model[:12]}, and "
                f"this one has {model.sha256[:12]}; take that model, or read the "
                "documents again"
            )
        for key in ("vocab_size", "sha256"):
            if memory.tokenizer[key] != model.described[key]:
                raise InputError(
                    f"{path} was made with a tokenizer whose {key} is "
                    f"{memory.tokenizer[key]}, and that of the model has "
                    f"{model.described[key]}; read the documents again"
                )
        if found and memory.layers != found[0].layers:
            raise InputError(
                f"{path} remembers layers {memory.layers}, and {paths[0]} layers "
                f"{found[0].layers}; read the documents again with the same layers"
            )
        found.append(memory)
    return functools.reduce(_merged, found)


def layers_of(file: MemoryFile | None, named: str | None, num_layers: int) -> Layers:
    """Returns the layers with a memory: those named, else the file's, else all.

    Raises:
      InputError: layers were named that are not the file's.
    """
    if file is None:
        return layers_named(named or "all", num_layers)
    if named is not None and layers_named(named, num_layers) != file.layers:
        raise InputError(
            f"memory-layers is {named}, and the memory file remembers layers "
            f"{','.join(map(str, file.layers))}; leave --memory-layers out, or read "
            "the documents again"
        )
    return file.layers


def held(file: MemoryFile, documents: TokenFiles) -> list[str]:
    """Returns the names of the documents that a file remembers already."""
    known = {source.sha256 for source in file.documents}
    return [
        document.name
        for i, document in enumerate(documents.documents)
        if sha256(documents.tokens(i)) in known
    ]


def sha256(tokens: npt.NDArray[np.int32]) -> str:
    """Returns the hash that names a document."""
    return hashlib.sha256(tokens.tobytes()).hexdigest()


def parameters(file: MemoryFile, dtype: str) -> Parameters:
    """Returns the pairs, stored as `dtype`, by the names of `shared_memory`."""
    keys = {f"layers.{i}.shared_keys": x for i, x in file.keys.items()}
    values = {f"layers.{i}.shared_values": x for i, x in file.values.items()}
    return {name: jnp.asarray(x, dtype) for name, x in (keys | values).items()}


def _merged(one: MemoryFile, other: MemoryFile) -> MemoryFile:
    def pairs(
        a: dict[int, npt.NDArray[Any]], b: dict[int, npt.NDArray[Any]]
    ) -> dict[int, npt.NDArray[Any]]:
        # The wider type of the two holds both.
        dtype = max(a[one.layers[0]].dtype, b[one.layers[0]].dtype, key=_width)
        return {
            i: np.concatenate([a[i].astype(dtype), b[i].astype(dtype)], axis=1)
            for i in a
        }

    return dataclasses.replace(
        one,
        keys=pairs(one.keys, other.keys),
        values=pairs(one.values, other.values),
        document=np.concatenate([one.document, other.document + len(one.documents)]),
        position=np.concatenate([one.position, other.position]),
        documents=one.documents + other.documents,
        tokens=np.concatenate([one.tokens, other.tokens]),
    )


def _width(dtype: np.dtype[Any]) -> int:
    return dtype.itemsize
