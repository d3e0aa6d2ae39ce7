"""The manifest, `dataset.json`: what a dataset's files hold, their sizes and SHA-256.

It is written last, since a folder without a manifest is not a dataset.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

FORMAT: Final = "memorizing token files"
VERSION: Final = 1
MANIFEST: Final = "dataset.json"
SPLITS: Final = ("train", "validation", "test")
_PER_SPLIT: Final = ("tokens", "documents")


class TokenFileError(ValueError):
    """Token files are missing, damaged, or not what the reader was told."""


def write_manifest(
    directory: str | os.PathLike[str],
    tokenizer: Mapping[str, Any],
    splits: Mapping[str, Any],
    record: Mapping[str, Any] | None = None,
) -> str:
    """Writes `dataset.json`, which makes the folder a dataset.

    Args:
      directory: the dataset's folder, with its splits written.
      tokenizer: `kind`, `vocab_size`, `file` and `sha256`.
      splits: what `token_files.write_split` returned, by split.
      record: how the dataset came about; readers do not depend on it.

    Returns:
      The fingerprint.
    """
    manifest: dict[str, Any] = {"format": FORMAT, "version": VERSION}
    manifest |= {"tokenizer": dict(tokenizer), "splits": dict(splits)}
    manifest["fingerprint"] = _fingerprint(manifest)
    with Path(directory, MANIFEST).open("w", encoding="ascii") as file:
        json.dump(manifest | dict(record or {}), file, indent=1)
        file.write("\n")
    return str(manifest["fingerprint"])


def read_manifest(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns `dataset.json`, its format, version and fingerprint checked.

    Raises:
      TokenFileError: the folder is no dataset, of another version, or its manifest
        was cut short or altered.
    """
    path = Path(directory, MANIFEST)
    try:
        manifest = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise TokenFileError(
            f"{directory} holds no {MANIFEST}, so it is not a dataset; make one with "
            "`python -m memorizing_data prepare`"
        ) from None
    except OSError as error:
        raise TokenFileError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise TokenFileError(
            f"{path} is not valid JSON, so it was cut short or altered; prepare the "
            "dataset again"
        ) from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise TokenFileError(f'{path} does not say "format": "{FORMAT}"')
    if manifest.get("version") != VERSION:
        raise TokenFileError(
            f"{path} has format version {manifest.get('version')!r}, and this program "
            f"reads version {VERSION}; prepare the dataset again"
        )
    found = _fingerprint(manifest)
    if found != manifest.get("fingerprint"):
        raise TokenFileError(
            f"{path} was altered: its fingerprint should be "
            f"{manifest.get('fingerprint')} and is {found}; prepare the dataset again"
        )
    return manifest


def describe_file(path: Path) -> dict[str, Any]:
    """Returns a file's name, size in bytes and SHA-256, as manifests hold them."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"file": path.name, "bytes": file.tell(), "sha256": digest}


def check_file(directory: Path, expected: Mapping[str, Any], *, verify: bool) -> None:
    """Checks a file against its description: its size, and its SHA-256 if `verify`.

    Raises:
      TokenFileError: it is missing, or differs from what was written.
    """
    path = directory / expected["file"]
    try:
        found: dict[str, Any] = {"bytes": path.stat().st_size}
        if verify and found["bytes"] == expected["bytes"]:
            found = describe_file(path)
    except OSError as error:
        raise TokenFileError(f"cannot read {path}: {error.strerror}") from None
    if found["bytes"] != expected["bytes"]:
        raise TokenFileError(
            f"{path} was cut short or extended: it should have {expected['bytes']} "
            f"bytes and has {found['bytes']}; prepare the dataset again"
        )
    if verify and found["sha256"] != expected["sha256"]:
        raise TokenFileError(
            f"{path} was altered: its SHA-256 should be {expected['sha256']} and is "
            f"{found['sha256']}; prepare the dataset again"
        )


def check_files(directory: Path, manifest: Mapping[str, Any], *, verify: bool) -> None:
    """Checks all files of a dataset, as `check_file` does."""
    files = [split[key] for split in manifest["splits"].values() for key in _PER_SPLIT]
    if manifest["tokenizer"]["file"]:
        files.append(manifest["tokenizer"])
    for expected in files:
        check_file(directory, expected, verify=verify)


def _fingerprint(manifest: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of what readers depend on, and of nothing else."""
    parts = {key: manifest.get(key) for key in ("version", "tokenizer", "splits")}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
