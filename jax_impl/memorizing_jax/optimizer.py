"""From gradients to updates: clipping, Adafactor or AdamW, and the schedule."""

import jax
import jax.numpy as jnp
import optax

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
    return _make(config).init(parameters)


def update(
    config: OptimizerConfig,
    gradients: Parameters,
    state: optax.OptState,
    parameters: Parameters,
) -> tuple[Parameters, optax.OptState]:
    """Returns the next parameters, and the optimizer's next state."""
    # optax mixes integers and floats; everything of ours runs with strict types.
    with jax.numpy_dtype_promotion("standard"):
        updates, state = _make(config).update(gradients, state, parameters)
    return optax.apply_updates(parameters, updates), state


def _make(config: OptimizerConfig) -> optax.GradientTransformationExtraArgs:
    clip = optax.clip_by_global_norm(config.clip)

    def rate(step: jax.Array) -> jax.Array:
        return learning_rate(config, step)

    if config.optimizer == "adamw":
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
    by_group = {
        group: optax.adafactor(
            rate, momentum=config.momentum, multiply_by_parameter_scale=group == "other"
        )
        for group in ("gate", "other")
    }
    return optax.chain(clip, optax.partition(by_group, _groups))


def _decays(parameters: Parameters) -> dict[str, bool]:
    """Tells kernels and the embedding from gains, scales and biases."""
    return {name: name.endswith(("_kernel", "embedding")) for name in parameters}


def _groups(parameters: Parameters) -> dict[str, str]:
    return {n: "gate" if n.endswith("gate_bias") else "other" for n in parameters}
