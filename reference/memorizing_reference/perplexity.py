"""Loss, and perplexity over whole documents (SEG-3, SEG-5)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from memorizing_reference import model, pretrained_model, segments
from memorizing_reference.config import ModelConfig, PretrainedConfig
from memorizing_reference.parameters import Parameters


def token_losses(
    logits: Float[np.ndarray, "batch segment_length vocab_size"],
    targets: Int[np.ndarray, "batch segment_length"],
) -> Float[np.ndarray, "batch segment_length"]:
    """Returns the cross-entropy of every target, in nats."""
    peak = logits.max(axis=-1, keepdims=True)
    log_total = np.log(np.exp(logits - peak).sum(axis=-1)) + peak[..., 0]
    of_target = np.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return log_total - of_target


def total_loss(
    parameters: Parameters,
    config: ModelConfig,
    documents: Sequence[Int[np.ndarray, " _"]],
    *,
    batch: int,
) -> tuple[float, int]:
    """Reads documents from a fresh state.

    Returns:
      The total loss in nats, and how many tokens were predicted: every token of
      every document but its first.
    """
    dtype = parameters["embedding"].dtype.type
    kind: Any = pretrained_model if isinstance(config, PretrainedConfig) else model
    state = kind.init_state(config, batch, dtype)
    nats, predicted = 0.0, 0
    for segment in segments.stream(
        documents, batch=batch, segment_length=config.segment_length
    ):
        logits, state = kind.forward(
            parameters,
            state,
            segment.tokens,
            segment.start_of_document,
            segment.num_tokens,
            config,
        )
        position = np.arange(config.segment_length)
        has_target = position[None, :] < segment.num_targets[:, None]
        nats += float(token_losses(logits, segment.targets)[has_target].sum())
        predicted += int(segment.num_targets.sum())
    return nats, predicted


def perplexity(nats: float, predicted: int) -> float:
    """Returns exp(total nats / predicted tokens) (SEG-5).

    Raises:
      ValueError: if no token was predicted.
    """
    if predicted == 0:
        raise ValueError("no token was predicted: every document has just one token")
    return float(np.exp(nats / predicted))


def bits_per_byte(nats: float, num_bytes: int) -> float:
    """Returns the loss per byte of text, which compares tokenizers (SEG-5).

    Raises:
      ValueError: if there is no byte.
    """
    if num_bytes < 1:
        raise ValueError(f"num_bytes is {num_bytes}, must be 1 or more")
    return float(nats / np.log(2.0) / num_bytes)
