"""Documents read into a memory file by a pre-trained model."""

import functools
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from memorizing_data.row_reader import RowReader
from memorizing_data.token_files import TokenFiles
from memorizing_jax import llama_model, memory_file
from memorizing_jax.errors import InputError
from memorizing_jax.interruption import Interruption
from memorizing_jax.llama_config import LlamaConfig
from memorizing_jax.llama_model import LlamaState
from memorizing_jax.memory_file import MemoryFile, Source
from memorizing_jax.parameters import Parameters
from memorizing_jax.pretrained import Pretrained
from memorizing_jax.reading_journal import Journal, Stretch


def read(
    model: Pretrained,
    config: LlamaConfig,
    documents: TokenFiles,
    path: Path,
    settings: dict[str, Any],
    *,
    quiet: bool = False,
    interval: float = 60.0,
) -> signal.Signals | None:
    """Reads documents one after the other and writes a memory file.

    Each is read from a fresh state, with a memory of its own (MEM-5). The file keeps
    the pairs of all positions but the sinks, in their order: those that left the
    cache (PRE-6), and at a document's end what is still there.

    Args:
      model: what reads.
      config: how: the local context, and the memory while reading.
      documents: what is read.
      path: of the memory file.
      settings: of the reading; fit for JSON. A reading goes on only with the same.
      quiet: show no progress.
      interval: seconds after which what was read is written to the disk.

    Returns:
      The signal that stopped it; None when the file was written.

    Raises:
      InputError: there is nothing to remember, or another reading was begun there.
    """
    lengths = [document.num_tokens for document in documents.documents]
    if max(lengths) <= config.num_sinks:
        raise InputError(
            f"no document is longer than the {config.num_sinks} sinks, so that there "
            "is nothing to remember; give longer documents, or lower --num-sinks"
        )
    reader = RowReader(
        documents,
        batch=1,
        segment_length=config.segment_length,
        seed=None,
        repeat=False,
    )
    identity = {"model": model.sha256, "documents": documents.fingerprint} | settings
    journal = Journal(path, identity)
    begun = journal.restore(llama_model.init_state(config, 1), reader)
    new: list[Stretch] = []
    written = time.monotonic()
    bar = tqdm(
        total=sum(lengths),
        initial=_tokens_read(reader, lengths),
        unit="token",
        unit_scale=True,
        disable=quiet,
    )
    with Interruption() as interruption, bar:
        for state, pairs, count in _segments(model, config, begun, reader, lengths):
            new += pairs
            bar.update(count)
            stopped = interruption.stops_at(0)
            if stopped or time.monotonic() - written > interval:
                journal.save(new, state, reader)
                new, written = [], time.monotonic()
            if stopped:
                return interruption.received
    parts = journal.parts(config.memory_layers) + new
    memory_file.save(path, _file(model, config, documents, parts, settings))
    journal.remove()
    return None


def _tokens_read(reader: RowReader, lengths: list[int]) -> int:
    """Returns how many tokens came before the next segment."""
    place = reader.state()
    inside = place["document"][0] >= 0
    return sum(lengths[: place["taken"] - inside]) + int(place["position"][0])


def _segments(
    model: Pretrained,
    config: LlamaConfig,
    state: LlamaState,
    reader: RowReader,
    lengths: list[int],
) -> Iterator[tuple[LlamaState, list[Stretch], int]]:
    """Yields after each segment the state, the pairs to keep, and the tokens read."""
    for segment in reader:
        state, pairs = _step(
            model.parameters,
            state,
            segment.tokens,
            segment.start_of_document,
            segment.num_tokens,
            config,
        )
        found = [_to_host(pairs)]
        count = int(segment.num_tokens[0])
        num_read = int(segment.position[0]) + count
        if num_read == lengths[int(segment.document[0])] and state.caches:
            found.append(_rest(state, num_read, config))
        yield state, found, count


@functools.partial(jax.jit, static_argnames="config", donate_argnames="state")
def _step(
    params: Parameters,
    state: LlamaState,
    tokens: jax.Array,
    start_of_document: jax.Array,
    num_tokens: jax.Array,
    config: LlamaConfig,
) -> tuple[LlamaState, dict[int, Any]]:
    state = llama_model.reset(state, start_of_document)
    found = llama_model.read(params, state, tokens, num_tokens, config)
    after = llama_model.insert(state, found.caches, found.pairs, num_tokens, config)
    dtype = jnp.dtype(config.memory_dtype)
    pairs = {
        i: (entering.keys[0].astype(dtype), entering.values[0].astype(dtype))
        for i, entering in found.pairs.items()
    }
    return after, {i: (*two, found.pairs[i].num_tokens[0]) for i, two in pairs.items()}


def _to_host(pairs: dict[int, Any]) -> Stretch:
    found: Stretch = {}
    for i, (keys, values, count) in jax.device_get(pairs).items():
        found[i] = keys[:count].swapaxes(0, 1), values[:count].swapaxes(0, 1)
    return found


def _rest(state: LlamaState, num_read: int, config: LlamaConfig) -> Stretch:
    """Returns what is still in the cache when a document ends, but for sinks."""
    count = max(0, min(config.cache_length, num_read - config.num_sinks))
    dtype, first = jnp.dtype(config.memory_dtype), config.cache_length - count
    found: Stretch = {}
    for i in config.memory_layers:
        cache = jax.device_get(state.caches[i])
        keys, values = (
            x[0, first:].astype(dtype).swapaxes(0, 1)
            for x in (cache.keys, cache.values)
        )
        found[i] = keys, values
    return found


def _file(
    model: Pretrained,
    config: LlamaConfig,
    documents: TokenFiles,
    parts: list[Stretch],
    settings: dict[str, Any],
) -> MemoryFile:
    tokens = [documents.tokens(i) for i in range(len(documents.documents))]
    kept = [np.arange(config.num_sinks, len(x), dtype=np.int32) for x in tokens]
    keys, values = (
        {
            i: np.concatenate([part[i][which] for part in parts], axis=1)
            for i in config.memory_layers
        }
        for which in (0, 1)
    )
    return MemoryFile(
        model=model.sha256,
        tokenizer={key: model.described[key] for key in ("vocab_size", "sha256")},
        keys=keys,
        values=values,
        document=np.repeat(
            np.arange(len(tokens), dtype=np.int32), [len(x) for x in kept]
        ),
        position=np.concatenate(kept),
        documents=tuple(
            Source(document.name, len(found), memory_file.sha256(found))
            for document, found in zip(documents.documents, tokens, strict=True)
        ),
        tokens=np.concatenate(tokens),
        reading=settings,
    )
