"""Public figures of TPUs: what a chip holds and how fast it is at most."""

import dataclasses
from typing import Final

from memorizing_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Chip:
    """What Google's documentation says of a chip.

    Attributes:
      capacity: bytes of large memory (HBM).
      bandwidth: bytes per second to and from it.
      peak: floating-point operations per second, of bfloat16 products.
      clock: cycles per second, which follow from `peak` and the number of multipliers.
    """

    capacity: int
    bandwidth: float
    peak: float
    clock: float


_GIB: Final = 2**30

# docs.cloud.google.com/tpu: "system architecture", a page for each.
CHIPS: Final = {
    "v4": Chip(32 * _GIB, 1228e9, 275e12, 1.05e9),
    "v5e": Chip(16 * _GIB, 819e9, 197e12, 1.5e9),
    "v5p": Chip(95 * _GIB, 2765e9, 459e12, 1.75e9),
    "v6e": Chip(32 * _GIB, 1640e9, 918e12, 1.75e9),
}


def of_topology(topology: str) -> Chip:
    """Returns the chip that a slice such as `v5e:4x4` is made of.

    Raises:
      InputError: it is none of those that are known here.
    """
    kind = topology.partition(":")[0]
    if kind not in CHIPS:
        raise InputError(
            f"topology {topology!r} names no chip known here; expected one of "
            f"{', '.join(CHIPS)}, a colon and how its chips are laid out, such as "
            "v5e:4x4 or v5p:2x2x4"
        )
    return CHIPS[kind]
