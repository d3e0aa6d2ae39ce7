"""Looks into a dataset."""

import dataclasses
import difflib
from pathlib import Path

from memorizing_data.errors import InputError
from memorizing_data.manifest import check_files, read_manifest
from memorizing_data.token_files import open_split
from memorizing_data.tokenizer import load


@dataclasses.dataclass(frozen=True)
class Inspect:
    """Show what a dataset holds.

    Attributes:
      directory: the dataset's folder.
      verify: hash every file and compare with the manifest (about a second per GB);
        without it only sizes and indices are checked.
      document: show the beginning of the document of this name.
      tokens: how many tokens of it.
      json: print one line of JSON.
    """

    directory: Path
    verify: bool = False
    document: str | None = None
    tokens: int = 200
    json: bool = False


def verify(directory: Path) -> None:
    """Checks all files of a dataset against sizes and SHA-256.

    Raises:
      TokenFileError: the dataset is missing or damaged.
    """
    check_files(directory, read_manifest(directory), verify=True)


def head(directory: Path, name: str, num_tokens: int) -> str:
    """Returns the beginning of a document, as text.

    Raises:
      InputError: there is no document of this name, or nothing to show of it.
      TokenFileError: the dataset is missing or damaged.
    """
    if num_tokens < 1:
        raise InputError(f"--tokens is {num_tokens} and must be at least 1")
    names = []
    for split, entry in read_manifest(directory)["splits"].items():
        if not entry["num_documents"]:
            continue
        files = open_split(directory, split, verify=False)
        for index, document in enumerate(files.documents):
            if document.name == name:
                last = min(num_tokens, document.num_tokens)
                return load(directory).decode(files.tokens(index, 0, last))
            names.append(document.name)
    nearest = difflib.get_close_matches(name, names, 1, 0) or names[:1]
    raise InputError(
        f"{directory} has no document {name!r}; the nearest name is {nearest[0]!r}"
    )
