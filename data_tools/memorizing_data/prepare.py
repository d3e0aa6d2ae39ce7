"""From documents to token files."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from memorizing_data import split, staging
from memorizing_data.errors import InputError
from memorizing_data.manifest import (
    MANIFEST,
    SPLITS,
    TokenFileError,
    check_files,
    describe_file,
    read_manifest,
    write_manifest,
)
from memorizing_data.settings import Prepare
from memorizing_data.sources import check_apart, open_source
from memorizing_data.summary import by_reason, describe_skipped, shown
from memorizing_data.survey import Survey, survey
from memorizing_data.token_files import EncodedDocument, write_split
from memorizing_data.tokenizer import (
    TOKENIZER_FILE,
    ByteTokenizer,
    JsonTokenizer,
    Tokenizer,
    first_loss,
    train_bpe,
)

_OURS: Final = {MANIFEST, TOKENIZER_FILE} | {
    f"{split}.{kind}" for split in SPLITS for kind in ("tokens", "documents.jsonl")
}


def prepare(settings: Prepare) -> bool:
    """Writes a dataset, unless the very same one is there already.

    Args:
      settings: what to read, and how.

    Returns:
      Whether it wrote one.

    Raises:
      InputError: the settings cannot be met, the output folder holds something
        else, or the disk is full. What was in the output folder is as it was before.
    """
    source, rule = open_source(settings), settings.split_rule()
    specification = _given_tokenizer(settings)
    output = settings.output.resolve()
    check_apart(source, output)
    staging.recover(output)
    _check_output(output)
    found = survey(source, rule, quiet=settings.quiet)
    _check_not_empty(found, settings)
    record = {
        "source": source.description() | {"sha256": found.sha256()},
        "settings": settings.recorded(),
        "split_rule": split.DESCRIPTION,
        "skipped": [{"name": name, "reason": why} for name, why in found.skipped],
    }
    if (output / MANIFEST).exists() and not settings.overwrite:
        _check_same(output, record, specification)
        return False
    try:
        with staging.staged(output) as folder:
            _write(folder, found, settings, specification, record)
    except OSError as error:
        raise InputError(
            f"cannot write {output}: {error.strerror or error}; what was there is "
            "unchanged"
        ) from None
    return True


def _write(
    folder: Path,
    found: Survey,
    settings: Prepare,
    specification: str | None,
    record: dict[str, Any],
) -> None:
    """Writes all files of a dataset into an empty folder."""
    tokenizer: Tokenizer = ByteTokenizer()
    entry: dict[str, Any] = {"kind": "bytes", "file": None, "sha256": None}
    size = settings.bpe_size()
    if size:
        if not found.entries["train"]:
            raise InputError(
                "the train split is empty, and the BPE is trained on it; lower the "
                "fractions of the others, or change --split-salt"
            )
        texts = (document.text for _, document in found.read("train", "learning from"))
        specification = train_bpe(texts, size)
    if specification is not None:
        tokenizer = JsonTokenizer(specification)
        path = folder / TOKENIZER_FILE
        path.write_text(specification, "utf-8", newline="")
        entry = {"kind": "bpe" if size else TOKENIZER_FILE} | describe_file(path)
    entry["vocab_size"] = tokenizer.vocab_size
    splits = {}
    for name in SPLITS:
        documents = _encode(found, name, tokenizer, settings.tokenizer)
        splits[name] = write_split(folder, name, documents, tokenizer.vocab_size)
    write_manifest(folder, entry, splits, record)


def _encode(
    found: Survey, split_name: str, tokenizer: Tokenizer, called: str
) -> Iterator[EncodedDocument]:
    """Yields the documents of a split as tokens.

    Raises:
      InputError: the tokenizer does not bring a text back.
    """
    for entry, document in found.read(split_name, "encoding"):
        tokens = tokenizer.encode(document.text)
        lost = first_loss(document.text, tokenizer.decode(tokens))
        if lost is not None:
            raise InputError(
                f"the tokenizer {called} cannot hold the document {entry.name!r}: it "
                f"does not bring back {lost!r}; use bytes, bpe:SIZE, or a tokenizer "
                "with byte fallback"
            )
        yield EncodedDocument(
            entry.name, tokens, entry.num_bytes, entry.sha256, document.files
        )


def _given_tokenizer(settings: Prepare) -> str | None:
    """Returns the content of the tokenizer.json that the settings name, if any."""
    if settings.tokenizer == "bytes" or settings.bpe_size():
        return None
    try:
        specification = Path(settings.tokenizer).read_bytes().decode()
        JsonTokenizer(specification)
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot use the tokenizer {settings.tokenizer}: {error}"
        ) from None
    return specification


def _check_output(output: Path) -> None:
    """Checks that the output folder is free, or holds nothing but a dataset."""
    if not output.exists():
        return
    if not output.is_dir():
        raise InputError(f"the output {output} is a file; choose another --output")
    found = {path.name for path in output.iterdir()}
    strange = sorted(found - _OURS)
    if strange or (found and MANIFEST not in found):
        raise InputError(
            f"the output {output} holds {shown((strange or sorted(found))[0])}, which "
            "is not part of a dataset; choose another --output"
        )


def _check_same(output: Path, record: dict[str, Any], tokenizer: str | None) -> None:
    """Checks that the output folder holds, intact, what would be written there."""
    try:
        manifest = read_manifest(output)
        check_files(output, manifest, verify=True)
    except TokenFileError as error:
        raise InputError(f"{error} with --overwrite") from None
    settings = manifest.get("settings", {})
    differing = [
        f"--{name.replace('_', '-')} {settings.get(name)!r}"
        for name, value in record["settings"].items()
        if settings.get(name) != value and name != "input"
    ]
    if manifest.get("source", {}).get("sha256") != record["source"]["sha256"]:
        differing.append("other texts")
    if tokenizer is not None and (
        hashlib.sha256(tokenizer.encode()).hexdigest()
        != manifest["tokenizer"]["sha256"]
    ):
        differing.append("another tokenizer")
    if differing:
        raise InputError(
            f"the output {output} holds a dataset made with {', '.join(differing)}; "
            "choose another --output, or --overwrite it"
        )


def _check_not_empty(found: Survey, settings: Prepare) -> None:
    """Checks that there is a document to write."""
    if not any(found.entries.values()):
        skipped = [{"name": name, "reason": reason} for name, reason in found.skipped]
        reasons = describe_skipped(by_reason(skipped)) or ["nothing"]
        raise InputError(
            f"the input {settings.input} holds no document that can be read (skipped: "
            f"{'; '.join(reasons)}); check --input and --extensions"
        )
