"""What the adapter of the reference adds to its model.

The reference reads whole segments and computes no gradients of the whole model.
Decoding, gradients by finite differences and files are made from that here: slow,
and enough for the tiny models of the suite.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from memorizing_conformance.implementation import Arrays
from memorizing_reference import model, perplexity
from memorizing_reference import parameters as parameters_module
from memorizing_reference.cache import Cache
from memorizing_reference.config import ModelConfig
from memorizing_reference.memory import Memory


@dataclasses.dataclass(frozen=True)
class ModelState:
    """A model between two segments, or between two decoded tokens.

    Attributes:
      config: its sizes.
      parameters: named as MOD-6.
      state: caches and memories after the last complete segment.
      tokens: the segment being decoded, per row.
      num_decoded: how many of those are there.
      starts: rows whose segment being decoded opens a document.
    """

    config: ModelConfig
    parameters: Arrays
    state: model.State
    tokens: np.ndarray
    num_decoded: np.ndarray
    starts: np.ndarray


def config_of(config: Mapping[str, Any]) -> ModelConfig:
    """Returns the reference's own form of a plain configuration."""
    return ModelConfig(**{**config, "memory_layers": tuple(config["memory_layers"])})


def init(config: Mapping[str, Any], parameters: Arrays, batch: int) -> ModelState:
    """Returns the state before the first segment."""
    sizes = config_of(config)
    parameters_module.check(parameters, sizes)
    return ModelState(
        config=sizes,
        parameters=parameters,
        state=model.init_state(sizes, batch, parameters["embedding"].dtype.type),
        tokens=np.zeros((batch, sizes.segment_length), np.int64),
        num_decoded=np.zeros(batch, np.int64),
        starts=np.zeros(batch, bool),
    )


def decode(
    model_state: ModelState, token: np.ndarray, start_of_document: np.ndarray
) -> tuple[np.ndarray, ModelState]:
    """Reads the segment so far once more, with one more token (GEN-1)."""
    row = np.arange(len(token))
    starts = model_state.starts | start_of_document
    position = np.where(start_of_document, 0, model_state.num_decoded)
    tokens = model_state.tokens.copy()
    tokens[row, position] = token
    length = tokens.shape[1]

    config, parameters = model_state.config, model_state.parameters
    logits, _ = model.forward(
        parameters, model_state.state, tokens, starts, position + 1, config
    )
    # Only rows whose segment is complete move on; num_tokens 0 leaves the others be.
    complete = position + 1 == length
    _, state = model.forward(
        parameters,
        model_state.state,
        tokens,
        starts & complete,
        np.where(complete, length, 0),
        config,
    )
    return logits[row, position], dataclasses.replace(
        model_state,
        state=state,
        tokens=tokens,
        num_decoded=np.where(complete, 0, position + 1),
        starts=starts & ~complete,
    )


def segment_loss(
    parameters: Arrays,
    model_state: ModelState,
    tokens: np.ndarray,
    start_of_document: np.ndarray,
    num_tokens: np.ndarray,
    targets: np.ndarray,
    num_targets: np.ndarray,
) -> float:
    """Returns the nats of one segment's targets, the state being held fixed."""
    logits, _ = model.forward(
        parameters,
        model_state.state,
        tokens,
        start_of_document,
        num_tokens,
        model_state.config,
    )
    has_target = np.arange(tokens.shape[1])[None, :] < num_targets[:, None]
    losses = perplexity.token_losses(logits, np.where(has_target, targets, 0))
    return float(losses[has_target].sum())


def gradients(model_state: ModelState, *segment: np.ndarray) -> tuple[float, Arrays]:
    """Returns loss and gradient, by central differences in float64."""
    model_state = in_float64(model_state)
    parameters = model_state.parameters
    step = 1e-5
    result: Arrays = {}
    for name, array in parameters.items():
        result[name] = np.zeros(array.shape)
        for index in np.ndindex(*array.shape):
            losses = []
            for sign in (1.0, -1.0):
                moved = array.copy()
                moved[index] += sign * step
                losses.append(
                    segment_loss(parameters | {name: moved}, model_state, *segment)
                )
            result[name][index] = (losses[0] - losses[1]) / (2 * step)
    return segment_loss(parameters, model_state, *segment), result


def in_float64(model_state: ModelState) -> ModelState:
    """Returns the same state in double precision."""

    def widened(part: Any) -> Any:
        return dataclasses.replace(
            part,
            keys=part.keys.astype(np.float64),
            values=part.values.astype(np.float64),
        )

    state = model.State(
        caches=tuple(widened(cache) for cache in model_state.state.caches),
        memories={i: widened(m) for i, m in model_state.state.memories.items()},
    )
    parameters = {
        name: array.astype(np.float64) for name, array in model_state.parameters.items()
    }
    return dataclasses.replace(model_state, state=state, parameters=parameters)


def memory_arrays(memory: Memory, prefix: str = "memory") -> Arrays:
    """Returns a memory as arrays for a file."""
    return {
        f"{prefix}.keys": memory.keys,
        f"{prefix}.values": memory.values,
        f"{prefix}.num_written": memory.num_written,
        f"{prefix}.dtype": np.array(memory.dtype),
    }


def memory_of(arrays: Mapping[str, np.ndarray], prefix: str = "memory") -> Memory:
    """Returns the memory that `memory_arrays` took apart."""
    dtype: Any = str(arrays[f"{prefix}.dtype"])
    return Memory(
        arrays[f"{prefix}.keys"],
        arrays[f"{prefix}.values"],
        arrays[f"{prefix}.num_written"],
        dtype,
    )


def save(model_state: ModelState, path: pathlib.Path) -> None:
    """Writes a model with everything it carries."""
    arrays: Arrays = {
        "config": np.array(json.dumps(dataclasses.asdict(model_state.config))),
        "tokens": model_state.tokens,
        "num_decoded": model_state.num_decoded,
        "starts": model_state.starts,
    }
    for name, array in model_state.parameters.items():
        arrays[f"parameters.{name}"] = array
    for i, cache in enumerate(model_state.state.caches):
        for field in dataclasses.fields(cache):
            arrays[f"caches.{i}.{field.name}"] = getattr(cache, field.name)
    for i, memory in model_state.state.memories.items():
        arrays |= memory_arrays(memory, f"memories.{i}")
    write(arrays, path)


def write(arrays: Arrays, path: pathlib.Path) -> None:
    """Writes arrays to a file of exactly this name."""
    with path.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def restore(arrays: Mapping[str, np.ndarray]) -> ModelState:
    """Returns the model that `save` wrote."""
    config = config_of(json.loads(str(arrays["config"])))
    fields = [field.name for field in dataclasses.fields(Cache)]
    state = model.State(
        caches=tuple(
            Cache(*(arrays[f"caches.{i}.{field}"] for field in fields))
            for i in range(config.num_layers)
        ),
        memories={i: memory_of(arrays, f"memories.{i}") for i in config.memory_layers},
    )
    prefix = "parameters."
    return ModelState(
        config=config,
        parameters={
            name.removeprefix(prefix): arrays[name]
            for name in arrays
            if name.startswith(prefix)
        },
        state=state,
        tokens=arrays["tokens"],
        num_decoded=arrays["num_decoded"],
        starts=arrays["starts"],
    )
