"""Evaluates one model at several memory sizes: table, JSON lines, picture."""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from memorizing_data.token_files import TokenFiles
from memorizing_jax.config import ModelConfig
from memorizing_jax.errors import InputError
from memorizing_jax.evaluate import Evaluation, evaluate
from memorizing_jax.parameters import Parameters


@dataclasses.dataclass(frozen=True)
class Measured:
    """An evaluation, and the settings under which it was made."""

    config: ModelConfig
    evaluation: Evaluation


def measure(
    params: Parameters,
    configs: Sequence[ModelConfig],
    token_files: TokenFiles,
    batch: int,
    *,
    num_documents: int | None = None,
    max_tokens: int | None = None,
    quiet: bool = False,
) -> list[Measured]:
    """Evaluates the same parameters on the same documents under each configuration.

    Args:
      params: by the names of MOD-6.
      configs: they differ in memory size, `top_k` or search (MOD-5).
      token_files: the split to read.
      batch: documents read side by side.
      num_documents: how many of the first documents to read; all if left out.
      max_tokens: tokens to read of each document; to its end if left out.
      quiet: show no progress.

    Returns:
      One for each configuration, in the same order.

    Raises:
      InputError: there is nothing to read or to predict.
    """
    if num_documents is not None and num_documents < 1:
        raise InputError(f"documents is {num_documents}, must be 1 or more")
    documents = token_files.documents[:num_documents]
    each = sum(min(d.num_tokens, max_tokens or d.num_tokens) for d in documents)
    with tqdm(
        total=each * len(configs), unit="token", unit_scale=True, disable=quiet
    ) as bar:
        return [
            Measured(
                config,
                evaluate(
                    params,
                    config,
                    token_files,
                    batch,
                    documents=range(len(documents)),
                    max_tokens=max_tokens,
                    on_progress=bar.update,
                ),
            )
            for config in configs
        ]


def to_json(measured: Measured, token_files: TokenFiles) -> dict[str, Any]:
    """Returns one configuration's results, fit for a line of JSON."""
    config, found = measured.config, measured.evaluation
    names = [token_files.documents[i].name for i in found.documents]
    keys = ("first", "last", "loss", "num_predicted")
    return {
        "split": token_files.split,
        "data": token_files.fingerprint,
        "memory_size": config.memory_size,
        "top_k": config.top_k,
        "search": config.search,
        "loss": found.loss,
        "perplexity": found.perplexity,
        "bits_per_byte": found.bits_per_byte,
        "num_predicted": found.num_predicted,
        "by_position": [
            dict(zip(keys, line, strict=True)) for line in found.by_position()
        ],
        "by_document": [
            {"name": name, "nats": float(nats.sum()), "num_predicted": len(nats)}
            for name, nats in zip(names, found.nats, strict=True)
        ],
    }


def write_lines(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Writes JSON lines, under another name first."""
    new = path.with_name(path.name + ".new")
    new.write_text("".join(json.dumps(line) + "\n" for line in lines), "ascii")
    os.replace(new, path)


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Returns what `to_json` gave as two tables: by memory size, and by position."""
    rows = [["", "perplexity", "nats/token", "bits/byte"]]
    for line in lines:
        bits = line["bits_per_byte"]
        rows.append(
            [
                _label(line),
                f"{line['perplexity']:.4f}",
                f"{line['loss']:.4f}",
                "-" if bits is None else f"{bits:.4f}",
            ]
        )
    by_size = _aligned(rows)
    rows = [["position", *map(_label, lines)]]
    rows[0].append("tokens")
    for i, span in enumerate(lines[0]["by_position"]):
        losses = [_loss_of(line, i, span) for line in lines]
        reach = f"{span['first']:,}-{span['last'] - 1:,}"
        rows.append([reach, *losses, f"{span['num_predicted']:,}"])
    return f"{by_size}\n\nnats/token by position in the document\n{_aligned(rows)}"


def plot(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Draws perplexity by memory size, and by position in the document.

    Raises:
      InputError: matplotlib is not installed.
    """
    try:
        import matplotlib.figure
    except ImportError:
        raise InputError(
            "--plot needs matplotlib; install it, or this package with its extra plot"
        ) from None
    figure = matplotlib.figure.Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    labels = [_label(line) for line in lines]
    left.plot(labels, [line["perplexity"] for line in lines], marker="o")
    left.tick_params(axis="x", rotation=30)
    left.set(xlabel="memory, pairs per head", ylabel="perplexity")
    for line, label in zip(lines, labels, strict=True):
        spans = line["by_position"]
        middle = [(span["first"] * span["last"]) ** 0.5 for span in spans]
        losses = [span["loss"] for span in spans]
        right.plot(middle, losses, marker="o", label=label)
    right.set(xlabel="position in the document (tokens)", ylabel="nats per token")
    right.set_xscale("log", base=2)
    figure.legend(*right.get_legend_handles_labels(), loc="outside right center")
    new = path.with_name(path.name + ".new")
    figure.savefig(new, format=path.suffix.removeprefix(".") or "png", dpi=150)
    os.replace(new, path)


def _loss_of(line: dict[str, Any], i: int, span: dict[str, Any]) -> str:
    """Returns the loss in one span, if the same tokens of it were read."""
    spans = line["by_position"]
    same = i < len(spans) and spans[i]["num_predicted"] == span["num_predicted"]
    return f"{spans[i]['loss']:.4f}" if same else "-"


def _label(line: dict[str, Any]) -> str:
    return str(line.get("label", f"memory {line['memory_size']:,}"))


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
    return "\n".join(lines)
