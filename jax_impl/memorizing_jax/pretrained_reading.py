"""How a pre-trained model reads: its local context, its memory, and full attention."""

import dataclasses
from typing import Annotated, Literal

import tyro

from memorizing_jax.errors import InputError
from memorizing_jax.llama_config import LlamaConfig


def _numbers(arguments: list[str]) -> tuple[int, ...]:
    return tuple(int(part) for text in arguments for part in text.split(",") if part)


Sizes = Annotated[
    tuple[int, ...],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="INT[,INT...]",
        instance_from_str=_numbers,
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: [",".join(map(str, value))],
    ),
]


@dataclasses.dataclass(frozen=True)
class Reading:
    """Settings that need no training; those the model was trained with stay."""

    segment_length: int = 512
    """Tokens of a row per step."""
    cache_length: int = 512
    """Positions kept from earlier segments for local attention; 0 for none (LOC-2)."""
    num_sinks: int = 4
    """First positions of a document that stay visible for ever (PRE-4)."""
    memory_distance: int | None = None
    """How many positions back every stored pair appears to lie (PRE-2); if left out,
    as far as the local context reaches."""
    top_k: int = 32
    """Neighbors that each query retrieves."""
    search: Literal["bucketed", "exact", "approx_max_k", "clustered"] = "bucketed"
    """How neighbors are found."""
    recall_target: float = 0.98
    """Share of the true neighbors that every search but exact aims at."""
    memory_dtype: Literal["float32", "bfloat16"] = "float32"
    """How pairs are stored (MEM-10)."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of parameters and activations; norms and softmaxes stay float32."""

    def local(self, config: LlamaConfig) -> LlamaConfig:
        """Returns the settings of local attention with sinks alone."""
        settings = dataclasses.asdict(self)
        if self.memory_distance is None:
            reach = self.num_sinks + self.cache_length + self.segment_length
            settings["memory_distance"] = min(reach, config.max_positions - 1)
        return config.replace(memory_layers=(), combination="joint", **settings)

    def with_memory(
        self, config: LlamaConfig, layers: tuple[int, ...], memory_size: int
    ) -> LlamaConfig:
        """Returns the same with a memory, which size 0 leaves out."""
        if memory_size == 0 or not layers:
            return self.local(config)
        return self.local(config).replace(memory_layers=layers, memory_size=memory_size)

    def full(self, config: LlamaConfig, num_tokens: int) -> LlamaConfig:
        """Returns the settings of full attention, up to the model's own limit.

        Args:
          config: the model's sizes.
          num_tokens: of the longest document to read.
        """
        reach = min(num_tokens, config.max_positions)
        return self.local(config).replace(
            num_sinks=0, cache_length=max(0, reach - self.segment_length)
        )


def layers_named(text: str, num_layers: int) -> tuple[int, ...]:
    """Returns the layers that a text such as "10-19,25" or "all" names.

    Raises:
      InputError: it is none such.
    """
    if text == "all":
        return tuple(range(num_layers))
    layers: set[int] = set()
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            layers |= set(range(int(first), int(last or first) + 1))
    except ValueError:
        raise InputError(
            f"memory-layers is {text!r}, must be 'all' or layers such as 10-19,25"
        ) from None
    if not layers:
        raise InputError(f"memory-layers {text!r} names no layer")
    return tuple(sorted(layers))
