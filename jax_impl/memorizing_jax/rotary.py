"""Rotary positions: pairs of components turned by an angle that grows with position.

Component `d` is paired with `d + head_dim / 2` (PRE-8), the layout of Hugging Face's
files; those of GGUF, which pair neighbors, are put into this order when they are read.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class Rotation(NamedTuple):
    """Cosines and sines of the angles of some positions.

    Attributes:
      cos: one angle for each pair of components; float32.
      sin: same shape.
    """

    cos: Float[Array, "*positions half_dim"]
    sin: Float[Array, "*positions half_dim"]


def rotation(first: int, last: int, head_dim: int, base: float) -> Rotation:
    """Returns the rotations of positions `first` to `last`, not included.

    Position `i` turns pair `d` by `i / base ** (2 d / head_dim)`. The angles are
    taken in float64, here and not on the device: in float32 those of positions in the
    thousands would be off by as much as 1e-4.
    """
    frequency = base ** -(np.arange(0, head_dim, 2) / head_dim)
    angle = np.arange(first, last)[:, None] * frequency[None, :]
    cos, sin = (f(angle).astype(np.float32) for f in (np.cos, np.sin))
    return Rotation(jnp.asarray(cos), jnp.asarray(sin))


def rotate(
    x: Float[Array, "batch length heads head_dim"], by: Rotation
) -> Float[Array, "batch length heads head_dim"]:
    """Turns queries or keys; their inner products then depend on distances alone.

    Args:
      x: queries or keys.
      by: of their positions, `[length]`, or `[batch, length]` where rows differ; or a
        single one for all.
    """
    cos, sin = (
        part.reshape((1,) * (3 - part.ndim) + part.shape)[:, :, None, :] for part in by
    )
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)
