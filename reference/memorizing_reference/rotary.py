"""Rotary positions: queries and keys turned by angles that grow with their place.

Two rotated vectors meet at the difference of their angles, so their inner product
knows how far apart they are and nothing else about where they stand.
"""

import numpy as np
from jaxtyping import Float, Int


def rotate(
    x: Float[np.ndarray, "batch length heads head_dim"],
    place: Int[np.ndarray, "batch length"],
    rope_base: float,
) -> Float[np.ndarray, "batch length heads head_dim"]:
    """Turns queries or keys by their place (PRE-8).

    Component `d` of the first half forms a pair with component `d` of the second.
    The first pair turns by one radian a place, the others ever more slowly.

    Args:
      x: queries or keys, as projected.
      place: where each position stands.
      rope_base: how much more slowly each pair turns than the one before it; the
        last one of many turns about this many times more slowly than the first.
    """
    half = x.shape[-1] // 2
    frequency = rope_base ** (-np.arange(half) / half)
    # In float64, since a large place leaves few digits of an angle to float32.
    angle = (place[:, :, None] * frequency)[:, :, None, :]
    cos, sin = np.cos(angle).astype(x.dtype), np.sin(angle).astype(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return np.concatenate(
        [first * cos - second * sin, second * cos + first * sin], axis=-1
    )
