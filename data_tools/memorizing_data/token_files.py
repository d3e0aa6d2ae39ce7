"""Token files: what `prepare` writes and everybody else reads.

A dataset is a folder with a manifest (see `manifest`) and, for each split, the tokens
of its documents, one document after the other, and an index with one line per
document. `FORMAT.md` describes every byte.

Writing: `write_split` for each split, then `write_manifest`. Reading: `open_split`.
"""

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from memorizing_data.manifest import (
    SPLITS,
    TokenFileError,
    check_file,
    describe_file,
    read_manifest,
    write_manifest,
)

__all__ = [
    "SPLITS",
    "Document",
    "EncodedDocument",
    "TokenFileError",
    "TokenFiles",
    "open_split",
    "read_index",
    "read_manifest",
    "write_manifest",
    "write_split",
]


@dataclasses.dataclass(frozen=True)
class Document:
    """Where one document lies in its split.

    Attributes:
      name: what the document is called in its source.
      start: place of its first token in the split's token file.
      num_tokens: its tokens, at least one.
      num_bytes: length of its text in UTF-8, for bits per byte (SEG-5).
    """

    name: str
    start: int
    num_tokens: int
    num_bytes: int


@dataclasses.dataclass(frozen=True)
class EncodedDocument:
    """One document on its way into a token file.

    Attributes:
      name: what the document is called in its source.
      tokens: integers of shape `[num_tokens]`, at least one.
      num_bytes: length of its text in UTF-8.
      sha256: of its text in UTF-8, hexadecimal.
      files: names of the files that were joined into it, in order.
    """

    name: str
    tokens: np.ndarray
    num_bytes: int
    sha256: str = ""
    files: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class TokenFiles:
    """One split of a dataset, open for reading.

    Attributes:
      directory: the dataset's folder.
      split: "train", "validation" or "test".
      vocab_size: every token is below it.
      fingerprint: SHA-256 over the tokenizer and all splits; equal fingerprints
        mean equal tokens, wherever the folder lies.
      documents: the documents in file order.
      tokenizer: `kind`, `vocab_size`, `file` and `sha256`.
      mapped: the memory-mapped tokens of all documents, `[num_tokens]`.
    """

    directory: Path
    split: str
    vocab_size: int
    fingerprint: str
    documents: tuple[Document, ...]
    tokenizer: dict[str, Any]
    mapped: np.ndarray = dataclasses.field(repr=False, compare=False)

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents together."""
        return len(self.mapped)

    def tokens(
        self, index: int, first: int = 0, last: int | None = None
    ) -> npt.NDArray[np.int32]:
        """Returns tokens `first` to `last` (not included) of one document, as a copy.

        Args:
          index: the document's place in `documents`, from 0.
          first: offset of the first token within the document.
          last: offset after the last token; the document's end if left out.

        Returns:
          Shape `[last - first]`.

        Raises:
          IndexError: there is no such document.
          ValueError: the document does not reach from `first` to `last`.
        """
        if not 0 <= index < len(self.documents):
            raise IndexError(f"no document {index} among {len(self.documents)}")
        document = self.documents[index]
        last = document.num_tokens if last is None else last
        if not 0 <= first <= last <= document.num_tokens:
            raise ValueError(f"{first=}, {last=} exceed {document.num_tokens=}")
        stored = self.mapped[document.start + first : document.start + last]
        return stored.astype(np.int32)


def open_split(
    directory: str | os.PathLike[str], split: str, *, verify: bool = True
) -> TokenFiles:
    """Opens one split, after checking that its files are the ones written.

    Args:
      directory: the dataset's folder.
      split: "train", "validation" or "test".
      verify: whether to hash the token file (about a second per GB). Sizes and the
        index are checked in any case.

    Returns:
      The split, its tokens memory-mapped.

    Raises:
      TokenFileError: the dataset is missing, damaged, or has nothing in this split.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    if split not in manifest["splits"]:
        names = ", ".join(manifest["splits"])
        raise TokenFileError(f"{directory} has no split {split!r}; it has {names}")
    entry = manifest["splits"][split]
    if not entry["num_documents"]:
        raise TokenFileError(
            f"the split {split!r} of {directory} holds no documents; prepare it again "
            "with a larger fraction, another salt, or documents named for this split"
        )
    check_file(directory, entry["documents"], verify=True)
    check_file(directory, entry["tokens"], verify=verify)
    return TokenFiles(
        directory=directory,
        split=split,
        vocab_size=manifest["tokenizer"]["vocab_size"],
        fingerprint=manifest["fingerprint"],
        documents=tuple(
            Document(line["name"], line["start"], line["num_tokens"], line["num_bytes"])
            for line in read_index(directory, entry)
        ),
        tokenizer=manifest["tokenizer"],
        mapped=np.memmap(directory / entry["tokens"]["file"], entry["dtype"], "r"),
    )


def read_index(directory: Path, entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the lines of a split's index; `entry` is its part of the manifest."""
    text = (directory / entry["documents"]["file"]).read_bytes()
    return [json.loads(line) for line in text.splitlines()]


def write_split(
    directory: str | os.PathLike[str],
    split: str,
    documents: Iterable[EncodedDocument],
    vocab_size: int,
) -> dict[str, Any]:
    """Writes one split's token file and index, document by document.

    Args:
      directory: the dataset's folder, which exists.
      split: "train", "validation" or "test".
      documents: consumed once, so that a generator keeps memory small.
      vocab_size: every token must be below it.

    Returns:
      The split's part of the manifest, for `write_manifest`.

    Raises:
      ValueError: a document is empty, or a token is negative or not below
        `vocab_size`.
    """
    dtype = np.dtype("<u2" if vocab_size <= 2**16 else "<u4")
    tokens_path = Path(directory, f"{split}.tokens")
    index_path = Path(directory, f"{split}.documents.jsonl")
    num_documents = num_tokens = num_bytes = 0
    with tokens_path.open("wb") as tokens_file, index_path.open("wb") as index_file:
        for document in documents:
            tokens = _checked(document, vocab_size)
            tokens_file.write(tokens.astype(dtype).tobytes())
            line = {
                "name": document.name,
                "start": num_tokens,
                "num_tokens": len(tokens),
                "num_bytes": document.num_bytes,
                "sha256": document.sha256,
                "files": document.files,
            }
            index_file.write(json.dumps(line).encode() + b"\n")
            num_documents += 1
            num_tokens += len(tokens)
            num_bytes += document.num_bytes
    return {
        "num_documents": num_documents,
        "num_tokens": num_tokens,
        "num_bytes": num_bytes,
        "dtype": dtype.str,
        "tokens": describe_file(tokens_path),
        "documents": describe_file(index_path),
    }


def _checked(document: EncodedDocument, vocab_size: int) -> np.ndarray:
    """Returns a document's tokens if they can be written."""
    tokens = np.asarray(document.tokens)
    if not len(tokens):
        raise ValueError(f"document {document.name!r} has no tokens")
    lowest, highest = tokens.min(), tokens.max()
    if not 0 <= lowest <= highest < vocab_size:
        raise ValueError(
            f"document {document.name!r} has tokens from {lowest} to {highest}, and "
            f"{vocab_size=} allows 0 to {vocab_size - 1}"
        )
    return tokens
