"""Text files as documents, tokenized on the fly.

What `prepare` writes as a data set, for a model that brings its own tokenizer and for
documents that are read once.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from memorizing_data.token_files import (
    Document,
    TokenFiles,
    open_split,
    read_manifest,
)
from memorizing_jax.errors import InputError
from memorizing_jax.pretrained import Pretrained

_MANIFEST: Final = "dataset.json"


def read(
    paths: Sequence[Path], model: Pretrained, *, quiet: bool = False
) -> TokenFiles:
    """Reads and tokenizes documents: each file is one, and so is each file in a folder.

    Args:
      paths: files and folders; of folders all files below, in order of their names,
        but for hidden ones. A folder that `prepare` wrote stands for the documents of
        all its splits.
      model: whose tokenizer is used.
      quiet: show no progress.

    Returns:
      The documents, as an open split of a data set.

    Raises:
      InputError: a path is missing, not UTF-8 or empty, there is no document, or a
        data set has another tokenizer.
    """
    documents, tokens, digest = [], [], hashlib.sha256()
    start = 0
    for name, found, size in _documents(paths, model, quiet):
        documents.append(Document(name, start, len(found), size))
        tokens.append(found)
        start += len(found)
        digest.update(found.tobytes() + b"\0")
    if not documents:
        raise InputError(f"there is no file in {', '.join(map(str, paths))}")
    return TokenFiles(
        directory=paths[0],
        split="text",
        # Of the model, whose embedding may have rows that no token uses.
        vocab_size=model.config.vocab_size,
        fingerprint=digest.hexdigest(),
        documents=tuple(documents),
        tokenizer=model.described,
        mapped=np.concatenate(tokens),
    )


def _documents(
    paths: Sequence[Path], model: Pretrained, quiet: bool
) -> Iterator[tuple[str, npt.NDArray[np.int32], int]]:
    """Yields name, tokens and bytes of each document."""
    prepared = {path for path in paths if (path / _MANIFEST).is_file()}
    texts = {path: list(_files(path)) for path in paths if path not in prepared}
    total = sum(map(len, texts.values()))
    with tqdm(total=total, unit="file", desc="tokenizing", disable=quiet) as bar:
        for path in paths:
            if path in prepared:
                yield from _of_data_set(path, model)
            for file in texts.get(path, ()):
                text = _text(file)
                found = model.tokenizer.encode(text)
                if not len(found):
                    raise InputError(f"{file} is empty; leave it out")
                yield str(file), found, len(text.encode())
                bar.update()


def _of_data_set(
    folder: Path, model: Pretrained
) -> Iterator[tuple[str, npt.NDArray[np.int32], int]]:
    manifest = read_manifest(folder)
    for key in ("vocab_size", "sha256"):
        if manifest["tokenizer"][key] != model.described[key]:
            raise InputError(
                f"the tokenizer of {folder} has {key} {manifest['tokenizer'][key]}, "
                f"and that of the model {model.described[key]}; prepare the data with "
                "the model's"
            )
    for split, entry in manifest["splits"].items():
        if entry["num_documents"]:
            opened = open_split(folder, split)
            for i, document in enumerate(opened.documents):
                yield document.name, opened.tokens(i), document.num_bytes


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    elif path.is_dir():
        for folder, folders, names in os.walk(path):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                if not name.startswith("."):
                    yield Path(folder, name)
    else:
        raise InputError(f"there is no file or folder {path}")


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text: {error.reason} at byte {error.start}"
        ) from None
