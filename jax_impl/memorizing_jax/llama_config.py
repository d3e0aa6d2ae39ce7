"""The sizes and settings of a pre-trained model of the Llama family."""

import dataclasses
from typing import Any, Literal

from memorizing_jax.config import ModelConfig
from memorizing_jax.errors import InputError

Combination = Literal["joint", "gate"]


@dataclasses.dataclass(frozen=True)
class LlamaConfig(ModelConfig):
    """What fixes a model with rotary positions, apart from its parameters.

    It has the fields of the paper's model, `attention_scale_init` without effect, and
    those below. From `num_sinks` on they shape no parameter but the gates, and may
    change from one call to the next.
    """

    num_key_value_heads: int = 1
    """Heads of keys and values, each shared by a group of attention heads (PRE-1)."""
    rope_base: float = 10_000.0
    """Base of the rotary positions."""
    norm_epsilon: float = 1e-5
    """What RMS norms add to the mean square."""
    tied_embedding: bool = True
    """Whether the embedding also makes the logits."""
    max_positions: int = 8192
    """Positions that the model was trained on; no rotation goes beyond (PRE-3)."""
    num_sinks: int = 4
    """First positions of a document that stay visible for ever (PRE-4)."""
    memory_distance: int = 0
    """How many positions back every stored pair appears to lie (PRE-2)."""
    combination: Combination = "joint"
    """One softmax over local and retrieved pairs, or a learned gate (PRE-5)."""

    def __post_init__(self) -> None:
        """Refuses settings that no model can have.

        Raises:
          InputError: one sentence with the value and what was expected.
        """
        super().__post_init__()
        if self.num_key_value_heads < 1 or self.num_heads % self.num_key_value_heads:
            raise InputError(
                f"num_key_value_heads is {self.num_key_value_heads}, must divide "
                f"num_heads {self.num_heads}"
            )
        if self.head_dim % 2:
            raise InputError(
                f"head_dim is {self.head_dim}, must be even for rotary positions"
            )
        for name in ("num_sinks", "memory_distance"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}, must be 0 or more")
        for name in ("rope_base", "norm_epsilon"):
            if not 0.0 < getattr(self, name) < float("inf"):
                raise InputError(f"{name} is {getattr(self, name)}, must be above 0")
        if self.combination not in ("joint", "gate"):
            raise InputError(
                f"combination is {self.combination!r}, must be 'joint' or 'gate'"
            )
        self._check_positions()

    def _check_positions(self) -> None:
        if self.context_length > self.max_positions:
            raise InputError(
                f"num_sinks {self.num_sinks}, cache_length {self.cache_length} and "
                f"segment_length {self.segment_length} are {self.context_length} "
                f"positions, and the model was trained on {self.max_positions}; "
                "shorten the cache or the segment"
            )
        reach = self.cache_length + self.segment_length - 1
        if self.combination == "joint" and self.remembers and self.local_window < reach:
            raise InputError(
                f"local_window is {self.local_window}, and a joint softmax needs "
                f"{reach} or more, cache_length and segment_length less 1: what the "
                "window hides is not in the memory yet"
            )
        if self.memory_distance >= self.max_positions:
            raise InputError(
                f"memory_distance is {self.memory_distance}, must be below the "
                f"{self.max_positions} positions that the model was trained on"
            )

    @property
    def context_length(self) -> int:
        """Positions of the local context: sinks, cache, segment (PRE-3)."""
        return self.num_sinks + self.cache_length + self.segment_length

    @property
    def group_size(self) -> int:
        """Attention heads that share a key-value head."""
        return self.num_heads // self.num_key_value_heads

    def replace(self, **changes: Any) -> "LlamaConfig":
        """Returns a copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)


def without_memory(**sizes: Any) -> LlamaConfig:
    """Returns a model's settings before anybody chose layers with a memory.

    The local context is what suits a small computer: two segments of 512, or what the
    model's positions hold, after its sinks.

    Args:
      **sizes: what shapes the parameters, and `max_positions`.
    """
    limit = sizes["max_positions"]
    length = max(1, min(512, (limit - LlamaConfig.num_sinks) // 2))
    return LlamaConfig(
        memory_layers=(),
        segment_length=length,
        cache_length=length,
        local_window=limit,
        **sizes,
    )
