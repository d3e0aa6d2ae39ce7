"""What the adapter of the reference adds to its models.

The reference reads whole segments and computes no gradients of the whole model.
Decoding and gradients by finite differences are made from that here: slow, and
enough for the tiny models of the suite.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from memorizing_conformance.implementation import Arrays
from memorizing_reference import model, perplexity, pretrained_model
from memorizing_reference import parameters as parameters_module
from memorizing_reference.config import ModelConfig, PretrainedConfig


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
    sizes = {**config, "memory_layers": tuple(config["memory_layers"])}
    family = sizes.pop("family", None)
    return PretrainedConfig(**sizes) if family == "llama" else ModelConfig(**sizes)


def family_of(config: ModelConfig) -> Any:
    """Returns the module of the reference that reads such a model."""
    return pretrained_model if isinstance(config, PretrainedConfig) else model


def init(config: Mapping[str, Any], parameters: Arrays, batch: int) -> ModelState:
    """Returns the state before the first segment."""
    sizes = config_of(config)
    parameters_module.check(parameters, sizes)
    return ModelState(
        config=sizes,
        parameters=parameters,
        state=family_of(sizes).init_state(
            sizes, batch, parameters["embedding"].dtype.type
        ),
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
    family = family_of(config)
    logits, _ = family.forward(
        parameters, model_state.state, tokens, starts, position + 1, config
    )
    # Only rows whose segment is complete move on; num_tokens 0 leaves the others be.
    complete = position + 1 == length
    _, state = family.forward(
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
    logits, _ = family_of(model_state.config).forward(
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

    fields: dict[str, Any] = dict(vars(model_state.state))
    for name, parts in fields.items():
        if isinstance(parts, dict):
            fields[name] = {i: widened(part) for i, part in parts.items()}
        else:
            fields[name] = tuple(widened(part) for part in parts)
    state = dataclasses.replace(model_state.state, **fields)
    parameters = {
        name: array.astype(np.float64) for name, array in model_state.parameters.items()
    }
    return dataclasses.replace(model_state, state=state, parameters=parameters)
