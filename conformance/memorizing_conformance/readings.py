"""Parameters and segments for tests of the whole model, and how logits are judged."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from hypothesis import assume

from memorizing_conformance import models
from memorizing_conformance.comparison import assert_close
from memorizing_conformance.implementation import Arrays, StreamSegment
from memorizing_conformance.models import MAIN, Config

# Values of gate_bias that leave memory alone, and local context alone.
OPEN: Final = 1000.0
SHUT: Final = -1000.0

Reading = tuple[Arrays, list[StreamSegment]]


def draw(config: Config, seed: int, num_segments: int = 3) -> Reading:
    """Returns parameters, and full segments of one document a row.

    Three segments insert no more than the memory holds. Resets, padding and wraps
    are left to the rules that they belong to.
    """
    length = num_segments * config["segment_length"]
    segments = models.cut(config, models.draw_documents(seed, [length] * models.BATCH))
    return models.draw_parameters(config, seed), segments


def draw_varied(config: Config, seed: int) -> Reading:
    """Returns parameters, and documents of all lengths: resets, padding and wraps."""
    segments = models.cut(config, models.draw_documents(seed))
    return models.draw_parameters(config, seed), segments


def assert_as_expected(
    implementation: Any,
    config: Config,
    parameters: Arrays,
    segments: Sequence[StreamSegment],
) -> None:
    """Asserts the oracle's logits."""
    expected, gap = models.expected(config, parameters, segments)
    # Closer than this, float32 may rightly choose another neighbor.
    assume(gap > models.MIN_GAP)
    found = models.read(implementation, config, parameters, segments)
    assert_same_logits(found, expected)


def assert_same_logits(
    found: Sequence[np.ndarray], expected: Sequence[np.ndarray]
) -> None:
    """Asserts the same logits, segment by segment."""
    for step, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert_close(one, other, f"segment {step}: logits")


def logits_without_attention(parameters: Arrays, tokens: np.ndarray) -> np.ndarray:
    """Returns the logits of `models.MAIN` with all output kernels zero.

    Written out here, apart from the reference (MOD-1, MOD-2).
    """
    p = {name: array.astype(np.float64) for name, array in parameters.items()}
    x = p["embedding"][tokens]
    for i in range(MAIN["num_layers"]):
        layer = f"layers.{i}."
        inside = _normed(x, p[layer + "mlp_norm_gain"]) @ p[layer + "mlp_in_kernel"]
        x = x + np.maximum(inside, 0) @ p[layer + "mlp_out_kernel"]
    x = _normed(x, p["final_norm_gain"])
    return np.asarray(x @ p["embedding"].T / np.sqrt(MAIN["model_dim"]))


def _normed(x: np.ndarray, gain: np.ndarray) -> np.ndarray:
    return np.asarray(x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * gain)
