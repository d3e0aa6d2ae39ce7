"""Cross-entropy of the next token, in nats (SEG-3)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def per_token(
    logits: Float[Array, "batch segment_length vocab_size"],
    targets: Int[Array, "batch segment_length"],
) -> Float[Array, "batch segment_length"]:
    """Returns the cross-entropy of every target, predicted or not."""
    of_target = jnp.take_along_axis(logits, targets[:, :, None], axis=-1)[:, :, 0]
    return jax.nn.logsumexp(logits, axis=-1) - of_target


def total(
    logits: Float[Array, "batch segment_length vocab_size"],
    targets: Int[Array, "batch segment_length"],
    num_targets: Int[Array, " batch"],
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """Returns the summed cross-entropy, and how many tokens were predicted."""
    position = jnp.arange(targets.shape[1], dtype=jnp.int32)
    has_target = position[None, :] < num_targets[:, None]
    nats = jnp.where(has_target, per_token(logits, targets), 0.0).sum()
    return nats, num_targets.sum()


def finite_rows(
    logits: Float[Array, "batch segment_length vocab_size"],
    targets: Int[Array, "batch segment_length"],
    num_targets: Int[Array, " batch"],
) -> Bool[Array, " batch"]:
    """Returns which rows have a finite loss at every predicted token."""
    position = jnp.arange(targets.shape[1], dtype=jnp.int32)
    has_target = position[None, :] < num_targets[:, None]
    finite = jnp.isfinite(per_token(logits, targets))
    return (finite | ~has_target).all(axis=1)
