"""From gradients to updates: clipping, Adafactor or AdamW, and the schedule.

Parameters may be in either layout: each layer moves as if it stood alone.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from memorizing_jax import parameters as layouts
from memorizing_jax.parameters import Parameters
from memorizing_jax.train_config import OptimizerConfig


def learning_rate(config: OptimizerConfig, step: jax.Array) -> jax.Array:
    """Returns the learning rate of update number `step`, from 0.

    It rises linearly to its peak. Then `rsqrt` falls as `sqrt(warmup_steps / step)`,
    which from the paper's peak is `1 / sqrt(step)`, and `cosine` falls to a tenth.
    """
    # The first update counts as 1, or it would do nothing.
    number = (step + 1).astype(jnp.float32)
    warmup, peak = float(config.warmup_steps), config.learning_rate
    rise = jnp.minimum(number / warmup, 1.0)
    if config.schedule == "rsqrt":
        return peak * rise * jnp.sqrt(warmup / jnp.maximum(number, warmup))
    progress = jnp.clip((number - warmup) / (config.decay_steps - warmup), 0.0, 1.0)
    return peak * rise * (0.55 + 0.45 * jnp.cos(jnp.pi * progress))


def init(config: OptimizerConfig, parameters: Parameters) -> optax.OptState:
    """Returns the optimizer's state before the first update."""
    return _make(config, parameters).init(parameters)


def update(
    config: OptimizerConfig,
    gradients: Parameters,
    state: optax.OptState,
    parameters: Parameters,
) -> tuple[Parameters, optax.OptState]:
    """Returns the next parameters, and the optimizer's next state."""
    # optax mixes integers and floats; everything of ours runs with strict types.
    with jax.numpy_dtype_promotion("standard"):
        updates, state = _make(config, parameters).update(gradients, state, parameters)
    return optax.apply_updates(parameters, updates), state


def _make(
    config: OptimizerConfig, parameters: Parameters
) -> optax.GradientTransformationExtraArgs:
    clip = optax.clip_by_global_norm(config.clip)

    def rate(step: jax.Array) -> jax.Array:
        return learning_rate(config, step)

    if config.optimizer == "adamw":  # Number by number, so layers cannot mix.
        update = optax.adamw(
            rate,
            b1=config.momentum,
            b2=config.second_moment,
            weight_decay=config.weight_decay,
            mask=_decays,
        )
        return optax.chain(clip, update)
    # Adafactor's steps are proportional to the parameter, so that a gate that starts
    # at 0 would stay there for a hundred thousand steps. It moves as if it were 1.
    gate, other = (
        optax.adafactor(
            rate, momentum=config.momentum, multiply_by_parameter_scale=scales
        )
        for scales in (False, True)
    )
    parts = {name: _part(name) for name in parameters}
    stacked = set(parts.values()) - {"gate", "other"}
    by_part = {"gate": gate, "other": other} | dict.fromkeys(stacked, _per_layer(other))
    return optax.chain(clip, optax.partition(by_part, parts))


def _part(name: str) -> str:
    """Returns which parameters a name moves with: the gates, a group, the others."""
    if name.endswith("gate_bias"):
        return "gate"
    return layouts.group_of(name) or "other"


def _per_layer(
    transformation: optax.GradientTransformationExtraArgs,
) -> optax.GradientTransformation:
    """Returns a transformation of stacked parameters, layer by layer.

    Adafactor looks at an array as a whole: its size, its rows and columns, the
    largest update it takes. That array is a layer's and not a stack's.
    """

    def update(
        gradients: Any, state: optax.OptState, parameters: Any = None
    ) -> tuple[Any, optax.OptState]:
        return jax.vmap(transformation.update)(gradients, state, parameters)

    return optax.GradientTransformation(jax.vmap(transformation.init), update)


def _decays(parameters: Parameters) -> dict[str, bool]:
    """Tells kernels and the embedding from gains, scales and biases."""
    return {name: name.endswith(("_kernel", "embedding")) for name in parameters}
