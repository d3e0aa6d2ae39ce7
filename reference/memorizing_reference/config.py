"""The sizes and settings of a model."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What fixes a model, apart from its parameters.

    `memory_size`, `top_k` and the search settings shape no parameter (MOD-5):
    the same parameters run with any of them.

    Attributes:
      vocab_size: number of token ids, `V`.
      num_layers: number of layers, `L`.
      model_dim: width of the residual stream, `E`.
      num_heads: attention heads per layer, `H`.
      head_dim: width of a head, `D`; `num_heads * head_dim` need not be `E`.
      mlp_dim: width inside the MLP, `F`.
      segment_length: tokens of a row per step, `N`.
      local_window: how far back local attention sees, `W` (LOC-1).
      cache_length: positions kept from earlier segments, `C`; 0 for none (LOC-2).
      memory_layers: 0-based indices of the layers that own a memory (MOD-4).
      memory_size: pairs kept per row and head, `M`; 0 switches the memory off.
      top_k: neighbors each query retrieves, `k`.
      memory_dtype: how pairs are stored (MEM-10). "float32" keeps them as
        computed, so a float64 model has a float64 memory.
      num_buckets: None for exact search, else the buckets of BKT-1.
      winners_per_bucket: slots that survive in each bucket (BKT-1).
      attention_scale_init: initial value of `attention_scale` (MOD-3).
      gate_bias_init: initial value of `gate_bias` (MOD-3).
    """

    vocab_size: int
    num_layers: int
    model_dim: int
    num_heads: int
    head_dim: int
    mlp_dim: int
    segment_length: int
    local_window: int
    cache_length: int = 0
    memory_layers: tuple[int, ...] = ()
    memory_size: int = 0
    top_k: int = 32
    memory_dtype: Literal["float32", "bfloat16"] = "float32"
    num_buckets: int | None = None
    winners_per_bucket: int = 1
    attention_scale_init: float = 1.0
    gate_bias_init: float = 0.0

    def __post_init__(self) -> None:
        """Refuses settings that no model can have, one sentence each."""
        for name in _AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, must be 1 or more")
        for name in ("cache_length", "memory_size"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, must be 0 or more")
        if len(set(self.memory_layers)) < len(self.memory_layers):
            raise ValueError(f"memory_layers {self.memory_layers} repeats a layer")
        for layer in self.memory_layers:
            if not 0 <= layer < self.num_layers:
                raise ValueError(
                    f"memory_layers names layer {layer}, but the model's layers are "
                    f"0 to {self.num_layers - 1}"
                )
        if 0 < self.memory_size < self.top_k:
            raise ValueError(
                f"top_k is {self.top_k}, more than memory_size {self.memory_size}; "
                "lower top_k or enlarge the memory"
            )
        if self.memory_dtype not in ("float32", "bfloat16"):
            raise ValueError(
                f"memory_dtype is {self.memory_dtype!r}, must be float32 or bfloat16"
            )
        if self.num_buckets is not None and self.num_buckets < 1:
            raise ValueError(f"num_buckets is {self.num_buckets}, must be 1 or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainedConfig(ModelConfig):
    """What fixes a decoder of the Llama family, apart from its parameters.

    The settings of `ModelConfig` mean what they mean there, save that
    `attention_scale_init` belongs to no parameter of this family.

    Attributes:
      num_key_value_heads: heads of keys and values, `K`, shared by as many query
        heads each (PRE-1).
      rope_base: base of the rotary angles (PRE-8).
      norm_epsilon: what rms_norm adds to the mean square (PRE-7).
      tied_embedding: whether the embedding also makes the logits (PRE-7).
      num_sinks: first positions that stay visible, `S`; 0 for none (PRE-4).
      memory_distance: how far back a query meets stored pairs (PRE-2).
      combination: how memory and local context are combined (PRE-5).
    """

    num_key_value_heads: int
    rope_base: float
    norm_epsilon: float
    tied_embedding: bool
    num_sinks: int
    memory_distance: int
    combination: Literal["gate", "joint"]

    def __post_init__(self) -> None:
        """Refuses settings that no model can have, one sentence each."""
        super().__post_init__()
        groups = self.num_key_value_heads
        if groups < 1 or self.num_heads % groups:
            raise ValueError(
                f"num_key_value_heads is {groups}, must divide num_heads, which is "
                f"{self.num_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(
                f"head_dim is {self.head_dim}, must be even to be rotated in halves"
            )
        for name in ("num_sinks", "memory_distance"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, must be 0 or more")
        if self.combination not in ("gate", "joint"):
            raise ValueError(
                f"combination is {self.combination!r}, must be gate or joint"
            )
        reach = self.cache_length + self.segment_length - 1
        remembers = bool(self.memory_layers) and self.memory_size > 0
        if self.combination == "joint" and remembers and self.local_window < reach:
            raise ValueError(
                f"local_window is {self.local_window}, but cache and segment reach "
                f"{reach} positions back: what a joint memory has not got yet would "
                "be out of sight; enlarge local_window or shorten the cache"
            )


_AT_LEAST_ONE = (
    "vocab_size",
    "num_layers",
    "model_dim",
    "num_heads",
    "head_dim",
    "mlp_dim",
    "segment_length",
    "local_window",
    "top_k",
    "winners_per_bucket",
)
