"""Losses of one pre-trained model, read in several ways: what a memory gains it."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from memorizing_data.token_files import TokenFiles
from memorizing_jax import evaluation_report, memory_file
from memorizing_jax.evaluate import evaluate
from memorizing_jax.evaluation_report import Measured
from memorizing_jax.llama_config import LlamaConfig
from memorizing_jax.memory_file import MemoryFile
from memorizing_jax.parameters import Parameters
from memorizing_jax.pretrained import Pretrained
from memorizing_jax.pretrained_reading import Reading


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to read the documents.

    Attributes:
      label: what to call it.
      config: the model, its local context and its memory.
      limit: tokens of each document that can be read so; None for all.
      shared: pairs of a memory file, by the names of `shared_memory`.
    """

    label: str
    config: LlamaConfig
    limit: int | None = None
    shared: Parameters = dataclasses.field(default_factory=dict)


def ways(
    reading: Reading,
    config: LlamaConfig,
    layers: tuple[int, ...],
    memory_sizes: Sequence[int],
    file: MemoryFile | None = None,
) -> list[Way]:
    """Returns one way for each memory size; 0 is local attention alone.

    With a file there are as many again, which have its pairs beside their own.
    """
    found = [
        Way(
            f"memory {size:,}" if size else "local only",
            reading.with_memory(config, layers, size),
        )
        for size in memory_sizes
    ]
    if file is None:
        return found
    shared = memory_file.parameters(file, reading.memory_dtype)
    return found + [
        dataclasses.replace(
            way,
            label=f"file + {way.label}" if way.config.remembers else "file",
            shared=shared,
        )
        for way in found
    ]


def full(
    reading: Reading,
    config: LlamaConfig,
    documents: TokenFiles,
    max_tokens: int | None,
) -> Way:
    """Returns full attention over what the model was trained on, and no more."""
    longest = max(document.num_tokens for document in documents.documents)
    longest = min(longest, max_tokens or longest)
    limit = config.max_positions
    label = f"full, first {limit:,}" if longest > limit else "full"
    return Way(label, reading.full(config, longest), limit)


def measure(
    model: Pretrained,
    read: Sequence[Way],
    documents: TokenFiles,
    batch: int,
    max_tokens: int | None,
    *,
    quiet: bool,
) -> list[dict[str, Any]]:
    """Evaluates the model on the same documents in each way.

    Returns:
      For each way a line as `evaluation_report.to_json` makes it.
    """
    lengths = [_shorter(way.limit, max_tokens) for way in read]
    total = sum(
        min(document.num_tokens, length or document.num_tokens)
        for length in lengths
        for document in documents.documents
    )
    lines = []
    with tqdm(total=total, unit="token", unit_scale=True, disable=quiet) as bar:
        for way, length in zip(read, lengths, strict=True):
            bar.set_description(way.label)
            found = evaluate(
                model.parameters | way.shared,
                way.config,
                documents,
                batch,
                max_tokens=length,
                on_progress=bar.update,
            )
            line = evaluation_report.to_json(Measured(way.config, found), documents)
            settings = {
                name: getattr(way.config, name)
                for name in (
                    "memory_layers",
                    "memory_distance",
                    "segment_length",
                    "cache_length",
                    "num_sinks",
                )
            }
            lines.append({"label": way.label, "model": model.sha256} | line | settings)
    return lines


def _shorter(one: int | None, other: int | None) -> int | None:
    given = [length for length in (one, other) if length is not None]
    return min(given, default=None)
