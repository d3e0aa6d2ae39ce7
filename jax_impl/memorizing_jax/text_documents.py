"""Text files as documents, tokenized on the fly.

What `prepare` writes as a data set, for a model that brings its own tokenizer and for
documents that are read once.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from memorizing_data.token_files import Document, TokenFiles
from memorizing_jax.errors import InputError
from memorizing_jax.pretrained import Pretrained


def read(
    paths: Sequence[Path], model: Pretrained, *, quiet: bool = False
) -> TokenFiles:
    """Reads and tokenizes documents: each file is one, and so is each file in a folder.

    Args:
      paths: files and folders; of folders all files below, in order of their names,
        but for hidden ones.
      model: whose tokenizer is used.
      quiet: show no progress.

    Returns:
      The documents, as an open split of a data set.

    Raises:
      InputError: a path is missing, not UTF-8 or empty, or there is no document.
    """
    files = [file for path in paths for file in _files(path)]
    if not files:
        raise InputError(f"there is no file in {', '.join(map(str, paths))}")
    documents, tokens, digest = [], [], hashlib.sha256()
    start = 0
    for file in tqdm(files, unit="file", desc="tokenizing", disable=quiet):
        text = _text(file)
        found = model.tokenizer.encode(text)
        if not len(found):
            raise InputError(f"{file} is empty; leave it out")
        size = len(text.encode())
        documents.append(Document(str(file), start, len(found), size))
        tokens.append(found)
        start += len(found)
        digest.update(found.tobytes() + b"\0")
    return TokenFiles(
        directory=files[0].parent,
        split="text",
        # Of the model, whose embedding may have rows that no token uses.
        vocab_size=model.config.vocab_size,
        fingerprint=digest.hexdigest(),
        documents=tuple(documents),
        tokenizer=model.described,
        mapped=np.concatenate(tokens),
    )


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
