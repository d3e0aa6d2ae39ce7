"""The sizes and settings of a model."""

import dataclasses
from typing import Any, Literal, get_args

from memorizing_jax.errors import InputError

SearchEngine = Literal["bucketed", "exact", "approx_max_k", "clustered", "scann"]


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What fixes a model, apart from its parameters.

    Everything from `memory_size` on shapes no parameter (MOD-5): parameters
    trained with one choice run with any other.
    """

    vocab_size: int = 256
    """Number of token ids."""
    num_layers: int = 4
    """Layers."""
    model_dim: int = 256
    """Width of the residual stream."""
    num_heads: int = 4
    """Attention heads per layer."""
    head_dim: int = 64
    """Width of a head; heads times width need not be model_dim."""
    mlp_dim: int = 1024
    """Width inside the MLP."""
    memory_layers: tuple[int, ...] = (2,)
    """0-based layers that own a memory; none for a model without (MOD-4)."""
    segment_length: int = 512
    """Tokens of a row per step."""
    local_window: int = 512
    """How many positions back local attention sees (LOC-1)."""
    cache_length: int = 512
    """Positions kept from earlier segments for local attention; 0 for none (LOC-2)."""
    attention_scale_init: float = 1.0
    """Initial value of attention_scale (MOD-3)."""
    gate_bias_init: float = 0.0
    """Initial value of gate_bias; 0 starts the gate at one half (MOD-3)."""
    memory_size: int = 8192
    """Pairs kept per row, head and memory layer; 0 switches the memory off."""
    top_k: int = 32
    """Neighbors that each query retrieves."""
    memory_dtype: Literal["float32", "bfloat16"] = "float32"
    """How pairs are stored (MEM-10)."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of activations; parameters, norms and softmaxes stay float32."""
    rematerialize: bool = False
    """Keep only the input of each layer for the backward pass, and what was retrieved;
    compute the rest again: about a third more time, for far less memory."""
    search: SearchEngine = "bucketed"
    """How neighbors are found."""
    recall_target: float = 0.98
    """Share of the true neighbors that every search but exact aims at."""
    checked: bool = False
    """Refuse keys and queries that are not finite, as the reference does (KNN-3); costs
    a pass over the memory, a copy of it and a wait for the device per segment."""

    def __post_init__(self) -> None:
        """Refuses settings that no model can have.

        Raises:
          InputError: one sentence with the value and what was expected.
        """
        layers = tuple(sorted(self.memory_layers))
        object.__setattr__(self, "memory_layers", layers)
        for name in _AT_LEAST_ONE + _AT_LEAST_ZERO:
            least = 1 if name in _AT_LEAST_ONE else 0
            if getattr(self, name) < least:
                raise InputError(
                    f"{name} is {getattr(self, name)}, must be {least} or more"
                )
        if len(set(layers)) < len(layers):
            raise InputError(f"memory_layers {layers} names a layer twice")
        for layer in layers:
            if not 0 <= layer < self.num_layers:
                raise InputError(
                    f"memory_layers names layer {layer}, but the model's layers "
                    f"are 0 to {self.num_layers - 1}"
                )
        if layers and 0 < self.memory_size < self.top_k:
            raise InputError(
                f"top_k is {self.top_k}, more than memory_size {self.memory_size}; "
                "lower top_k or enlarge the memory"
            )
        if not 0.0 < self.recall_target <= 1.0:
            raise InputError(
                f"recall_target is {self.recall_target}, must be above 0 and at most 1"
            )
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise InputError(
                    f"{name} is {getattr(self, name)!r}, must be one of {choices}"
                )

    def replace(self, **changes: Any) -> "ModelConfig":
        """Returns a copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)

    @property
    def remembers(self) -> bool:
        """Whether the model keeps any pair at all."""
        return bool(self.memory_layers) and self.memory_size > 0


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
)
_AT_LEAST_ZERO = ("cache_length", "memory_size")
_CHOICES = {
    "memory_dtype": ("float32", "bfloat16"),
    "compute_dtype": ("float32", "bfloat16"),
    "search": get_args(SearchEngine),
}
