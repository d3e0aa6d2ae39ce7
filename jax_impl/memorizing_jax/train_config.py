"""The settings of a training run."""

import dataclasses
import math
from typing import Any, Final, Literal

from memorizing_jax.config import ModelConfig
from memorizing_jax.errors import InputError
from memorizing_jax.llama_config import LlamaConfig
from memorizing_jax.sharding import MeshConfig


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """How gradients become updates."""

    optimizer: Literal["adafactor", "adamw"] = "adafactor"
    """Adafactor is the paper's; AdamW learns faster in small runs."""
    learning_rate: float = 1.0 / math.sqrt(1000)
    """Peak, reached after the warm-up; the paper's is 1/sqrt(1000) = 0.0316."""
    warmup_steps: int = 1000
    """Steps over which the learning rate rises linearly from 0."""
    schedule: Literal["rsqrt", "cosine"] = "rsqrt"
    """After the warm-up: fall as 1/sqrt(step), or as a cosine to a tenth."""
    decay_steps: int = 0
    """Step at which the cosine arrives, warm-up included; rsqrt has none."""
    momentum: float = 0.9
    """Decay of the mean gradient, per step."""
    second_moment: float = 0.99
    """Decay of AdamW's mean squared gradient, per step; Adafactor has its own."""
    weight_decay: float = 0.0
    """AdamW only: share of a kernel or embedding lost per unit of learning rate."""
    clip: float = 1.0
    """Largest norm of all gradients together; larger ones are scaled down to it."""

    def __post_init__(self) -> None:
        """Refuses settings that cannot train, one sentence each."""
        for name in ("learning_rate", "clip"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}, must be above 0")
        for name in ("momentum", "second_moment"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise InputError(
                    f"{name} is {getattr(self, name)}, must be at least 0 and below 1"
                )
        if self.warmup_steps < 1:
            raise InputError(f"warmup_steps is {self.warmup_steps}, must be 1 or more")
        if self.schedule == "cosine" and self.decay_steps <= self.warmup_steps:
            raise InputError(
                f"decay_steps is {self.decay_steps}, must exceed warmup_steps "
                f"{self.warmup_steps} for the cosine schedule"
            )
        if self.weight_decay < 0.0:
            raise InputError(f"weight_decay is {self.weight_decay}, must be 0 or more")
        if self.weight_decay and self.optimizer != "adamw":
            raise InputError(
                f"weight_decay is {self.weight_decay}, but only adamw decays weights"
            )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """What fixes a run, apart from the data: equal settings give equal losses."""

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    """Its vocab_size is taken from the data set."""
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    """How gradients become updates."""
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    """How devices divide the work."""
    batch: int = 16
    """Rows: documents read side by side, each with its own memory."""
    accumulation: int = 1
    """Parts that a step reads its rows in, one after the other: as many times less
    memory for activations, and nothing else changes."""
    steps: int = 10_000
    """Steps of the whole run; each reads a segment of every row."""
    seed: int = 0
    """Draws the initial parameters and the order of the documents."""
    log_interval: int = 10
    """Steps per line of metrics; a line holds their mean."""
    sample_interval: int = 100
    """Steps between measures of the memory, such as its recall; 0 for none."""
    evaluation_interval: int = 1000
    """Steps between measures of validation perplexity; 0 for none."""
    evaluation_tokens: int = 131_072
    """Most validation tokens read at a time: the first part of a document a row."""
    checkpoint_interval: int = 1000
    """Steps between checkpoints; there is always one at the end."""
    checkpoints_kept: int = 2
    """How many of the newest checkpoints stay."""

    def __post_init__(self) -> None:
        """Refuses settings that no run can have, one sentence each."""
        for name in _AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}, must be 1 or more")
        for name in ("seed", "sample_interval", "evaluation_interval"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}, must be 0 or more")
        if self.evaluation_interval and self.evaluation_tokens < 2 * self.batch:
            raise InputError(
                f"evaluation_tokens is {self.evaluation_tokens}, must be at least "
                f"2 for each of {self.batch} rows"
            )
        self._check_accumulation()

    def _check_accumulation(self) -> None:
        parts = self.accumulation
        if self.batch % parts:
            raise InputError(
                f"accumulation is {parts}, which does not divide the batch of "
                f"{self.batch} rows; choose a divisor"
            )
        for name, refused in (("search", ("clustered", "scann")), ("checked", (True,))):
            if parts > 1 and getattr(self.model, name) in refused:
                raise InputError(
                    f"accumulation is {parts}, but {name} is "
                    f"{getattr(self.model, name)!r}, which needs all rows at once; "
                    "choose another or set accumulation to 1"
                )

    def with_vocabulary(self, vocab_size: int) -> "TrainConfig":
        """Returns these settings for a data set with `vocab_size` tokens."""
        model = self.model.replace(vocab_size=vocab_size)
        return dataclasses.replace(self, model=model)


_AT_LEAST_ONE: Final = (
    "batch",
    "accumulation",
    "steps",
    "log_interval",
    "checkpoint_interval",
    "checkpoints_kept",
)
# Settings that leave the losses of the steps already taken as they were.
_MAY_CHANGE: Final = (
    "accumulation",
    "steps",
    "sample_interval",
    "checkpoint_interval",
    "checkpoints_kept",
    "mesh",
    "model.checked",
    "model.rematerialize",
)


def to_json(config: TrainConfig) -> dict[str, Any]:
    """Returns the settings as a nested dictionary, fit for JSON."""
    settings = dataclasses.asdict(config)
    settings["model"] = model_to_json(config.model)
    return settings


def model_to_json(config: ModelConfig) -> dict[str, Any]:
    """Returns a model's settings as a dictionary, fit for JSON."""
    layers = list(config.memory_layers)
    family = {"family": "llama"} if isinstance(config, LlamaConfig) else {}
    return dataclasses.asdict(config) | {"memory_layers": layers} | family


def from_json(settings: dict[str, Any]) -> TrainConfig:
    """Returns the settings that `to_json` wrote.

    Raises:
      InputError: a setting is unknown, missing or impossible.
    """
    try:
        model = model_from_json(settings["model"])
        optimizer = OptimizerConfig(**settings["optimizer"])
        mesh = MeshConfig(**settings["mesh"])
        parts = {"model": model, "optimizer": optimizer, "mesh": mesh}
        return TrainConfig(**settings | parts)
    except (KeyError, TypeError) as error:
        raise InputError(
            f"the saved settings are not those of a run: {error}"
        ) from None


def model_from_json(settings: dict[str, Any]) -> ModelConfig:
    """Returns the settings that `model_to_json` wrote.

    Raises:
      InputError: a setting is unknown or impossible.
    """
    try:
        settings = settings | {"memory_layers": tuple(settings["memory_layers"])}
        family = settings.pop("family", None)
        return (LlamaConfig if family == "llama" else ModelConfig)(**settings)
    except (KeyError, TypeError) as error:
        raise InputError(
            f"the saved settings are not those of a model: {error}"
        ) from None


def check_same_run(saved: TrainConfig, here: TrainConfig) -> None:
    """Refuses to continue a run under settings that would change its losses.

    Raises:
      InputError: names the first setting that differs.
    """
    before, now = to_json(saved), to_json(here)
    for part in ("model", "optimizer"):
        before |= {f"{part}.{name}": value for name, value in before.pop(part).items()}
        now |= {f"{part}.{name}": value for name, value in now.pop(part).items()}
    for name, value in before.items():
        if name not in _MAY_CHANGE and now[name] != value:
            raise InputError(
                f"the saved run has {name} {value}, and this one {now[name]}; continue "
                "with the settings of the saved run, or choose another --output"
            )
