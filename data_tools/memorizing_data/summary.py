"""What a dataset holds, in figures and in words."""

import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from memorizing_data.manifest import check_file, read_manifest
from memorizing_data.token_files import read_index

# The sizes of memory that the paper uses most, in pairs; one pair a token.
_MEMORY_SIZES: Final = (8192, 65536)
_NAMES_SHOWN: Final = 3
_LABEL: Final = 12  # Characters.


def summarize(directory: Path) -> dict[str, Any]:
    """Returns the figures of a dataset, from its manifest and indices.

    Raises:
      TokenFileError: the dataset is missing or damaged.
    """
    manifest = read_manifest(directory)
    splits, documents = {}, []
    split_of: dict[str, set[str]] = {}
    for split, entry in manifest["splits"].items():
        check_file(directory, entry["documents"], verify=True)
        check_file(directory, entry["tokens"], verify=False)
        splits[split] = {
            key: entry[key] for key in ("num_documents", "num_tokens", "num_bytes")
        }
        for document in read_index(directory, entry):
            documents.append((document["num_tokens"], document["name"]))
            split_of.setdefault(document["sha256"], set()).add(split)
    longest, longest_name = max(documents)
    lengths = [num_tokens for num_tokens, _ in documents]
    settings = manifest.get("settings", {})
    return {
        "directory": str(directory),
        "fingerprint": manifest["fingerprint"],
        "input": settings.get("input", "unknown"),
        "tokenizer": settings.get("tokenizer", manifest["tokenizer"]["kind"]),
        "vocab_size": manifest["tokenizer"]["vocab_size"],
        "skipped": by_reason(manifest.get("skipped", [])),
        "splits": splits,
        "median_tokens": statistics.median(lengths),
        "longest_tokens": longest,
        "longest_name": longest_name,
        "share_spanned": {
            size: sum(length <= size for length in lengths) / len(lengths)
            for size in _MEMORY_SIZES
        },
        "num_texts_in_several_splits": sum(len(some) > 1 for some in split_of.values()),
    }


def lines(summary: dict[str, Any]) -> list[str]:
    """Returns a summary as lines for people."""
    splits = summary["splits"]
    documents = sum(split["num_documents"] for split in splits.values())
    num_bytes = sum(split["num_bytes"] for split in splits.values())
    said = {
        "input": f"{summary['input']}: {documents:,} documents, {num_bytes:,} bytes"
    }
    skipped = describe_skipped(summary["skipped"]) or ["nothing"]
    said["skipped"] = ("\n" + " " * _LABEL).join(skipped)
    said["tokenizer"] = f"{summary['tokenizer']}, {summary['vocab_size']:,} tokens"
    for name, split in splits.items():
        said[name] = f"{split['num_documents']:,} documents"
        if split["num_tokens"]:
            ratio = split["num_bytes"] / split["num_tokens"]
            said[name] += f", {split['num_tokens']:,} tokens, {ratio:.2f} bytes a token"
    said["lengths"] = (
        f"median {summary['median_tokens']:,.0f} tokens, longest "
        f"{summary['longest_tokens']:,} ({shown(summary['longest_name'])})"
    )
    said["memory"] = " and ".join(
        f"{size:,} pairs span {share:.0%}"
        for size, share in summary["share_spanned"].items()
    )
    said["memory"] += " of the documents"
    said["output"] = (
        f"{summary['directory']}, fingerprint {summary['fingerprint'][:16]}"
    )
    return [f"{label:<{_LABEL}}{text}" for label, text in said.items()]


def warnings(summary: dict[str, Any]) -> list[str]:
    """Returns what a person should know before using the dataset."""
    found = [
        f"the {name} split is empty; with few documents, draw another split with "
        "--split-salt, or name its documents with a pattern"
        for name, split in summary["splits"].items()
        if not split["num_documents"]
    ]
    if repeated := summary["num_texts_in_several_splits"]:
        found.append(f"{repeated} texts stand word for word in more than one split")
    return found


def describe_skipped(skipped: dict[str, Any]) -> list[str]:
    """Returns a line for each reason: how many were skipped, and the first names."""
    return [
        f"{entry['count']:,} {reason}: {', '.join(map(shown, entry['names']))}"
        + ", ..." * (entry["count"] > len(entry["names"]))
        for reason, entry in skipped.items()
    ]


def by_reason(skipped: Iterable[dict[str, str]]) -> dict[str, Any]:
    """Returns the number and the first names of what was skipped, by reason."""
    found: dict[str, Any] = {}
    for entry in skipped:
        group = found.setdefault(entry["reason"], {"count": 0, "names": []})
        group["count"] += 1
        if group["count"] <= _NAMES_SHOWN:
            group["names"].append(entry["name"])
    return found


def shown(name: str) -> str:
    """Returns a name as it can be printed on one line."""
    return name if name.isprintable() else ascii(name)
