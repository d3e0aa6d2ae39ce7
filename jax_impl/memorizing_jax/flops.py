"""Floating-point operations of a training step, and how many a device could do.

A multiplication and the addition of its result are two operations. Counted are
matrix products alone, each where the mathematics needs it: not what rematerialization
computes again, not padding, not positions that a mask hides.
"""

from collections.abc import Collection
from typing import Final

import jax

from memorizing_jax.config import ModelConfig

# TFLOP/s of bfloat16 products, dense, as the vendors state them; the first name that
# begins the device's kind counts. JAX's device is a chip, also where it has two cores.
_PEAKS: Final = {
    "TPU v4": 275.0,
    "TPU v5 lite": 197.0,
    "TPU v5e": 197.0,
    "TPU v5": 459.0,  # Also v5p.
    "TPU v6": 918.0,  # "TPU v6 lite" and "TPU v6e".
    "NVIDIA A100": 312.0,
    "NVIDIA H100 PCIe": 756.0,
    "NVIDIA H100 NVL": 835.0,
    "NVIDIA H100": 989.0,
    "NVIDIA H200": 989.0,
}


class Utilization:
    """Model FLOP utilization: operations the model needs, of those devices could do.

    Args:
      config: the model.
      peak_tflops: of one device, in 10^12 bfloat16 operations per second; looked up
        if None.
    """

    def __init__(self, config: ModelConfig, peak_tflops: float | None = None):
        self._model, self._search = per_token(config), of_search(config)
        self._peak_tflops = peak_tflops

    def at(
        self, tokens_per_second: float, devices: Collection[jax.Device]
    ) -> dict[str, float]:
        """Returns the utilization without search and, if countable, with it.

        Nothing where nobody wrote down what the devices can do.

        Args:
          tokens_per_second: real tokens, of all devices together.
          devices: those that compute, all of a kind.
        """
        kind = next(iter(devices)).device_kind
        peak = self._peak_tflops or peak_tflops(kind)
        if peak is None:
            return {}
        share = tokens_per_second / (peak * 1e12 * len(devices))
        result = {"utilization": share * self._model}
        if self._search:
            result["utilization_with_search"] = share * (self._model + self._search)
        return result


def peak_tflops(device_kind: str) -> float | None:
    """Returns the TFLOP/s of bfloat16 products, or None where nobody wrote it down.

    Args:
      device_kind: as `jax.Device.device_kind` says it.
    """
    for name, peak in _PEAKS.items():
        if device_kind.startswith(name):
            return peak
    return None


def per_token(config: ModelConfig) -> float:
    """Returns the operations per token of forward and backward pass, without search.

        6 * (L * (4*E*H*D + 2*E*F) + E*V)                    products with parameters
        + H*D * (L * (12 * in_segment + 8 * in_cache) + 8 * k * memory_layers)

    Every product with a parameter is one forward and two backward. So are the two
    products of attention, but that neither cached nor retrieved pairs take a
    gradient, which saves one of them (LOC-7, MEM-8). `in_segment` and `in_cache` are
    how many positions a query sees there, as a mean over the segment and with a full
    cache (LOC-1); `k` is `top_k`, with enough pairs in the memory.
    """
    width = config.num_heads * config.head_dim
    layer = 4 * config.model_dim * width + 2 * config.model_dim * config.mlp_dim
    products = config.num_layers * layer + config.model_dim * config.vocab_size
    in_segment, in_cache = _visible(config)
    local = config.num_layers * (12 * in_segment + 8 * in_cache)
    memory = 8 * config.top_k * len(config.memory_layers) if config.remembers else 0
    return 6 * products + width * (local + memory)


def of_search(config: ModelConfig) -> float | None:
    """Returns the operations per token that scoring a full memory adds.

    `2 * H * D * memory_size` per memory layer, forward alone; None for engines that
    score just a part of it.
    """
    if not config.remembers:
        return 0
    if config.search in ("clustered", "scann"):
        return None
    width = config.num_heads * config.head_dim
    return 2 * width * config.memory_size * len(config.memory_layers)


def _visible(config: ModelConfig) -> tuple[float, float]:
    """Returns how many positions of segment and cache a query sees, on average."""
    length, window = config.segment_length, config.local_window
    in_segment = [min(window, i) for i in range(length)]
    both = [min(window, config.cache_length + i) for i in range(length)]
    return sum(in_segment) / length, (sum(both) - sum(in_segment)) / length
