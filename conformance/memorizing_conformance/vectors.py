"""Golden vectors: one folder per case, a JSON file and a file of NumPy arrays."""

import dataclasses
import json
import pathlib
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from memorizing_conformance.comparison import (
    GRADIENT_TOLERANCE,
    TOLERANCE,
    assert_close,
    assert_equal,
)
from memorizing_conformance.implementation import Arrays

FOLDER: Final = pathlib.Path(__file__).parent / "vectors"
EXPECTED: Final = "expected_"


@dataclasses.dataclass(frozen=True)
class Vector:
    """A case as it was read.

    Attributes:
      name: handler and case, such as "memory/slots_wrap".
      content: what case.json holds.
      arrays: the inputs.
      expected: the results, by name.
    """

    name: str
    content: dict[str, Any]
    arrays: Arrays
    expected: Arrays


def read_all() -> Iterator[Vector]:
    """Yields every case, in the order of their names."""
    for path in sorted(FOLDER.glob("*/*/case.json")):
        content = json.loads(path.read_text())
        with np.load(path.parent / "arrays.npz") as file:
            arrays = dict(file)
        yield Vector(
            name="/".join(path.parts[-3:-1]),
            content=content,
            arrays={n: a for n, a in arrays.items() if not n.startswith(EXPECTED)},
            expected={
                name.removeprefix(EXPECTED): array
                for name, array in arrays.items()
                if name.startswith(EXPECTED)
            },
        )


def comparison_of(name: str, expected: np.ndarray) -> str | dict[str, float]:
    """Returns how a result is compared, as case.json says it."""
    if expected.dtype.kind != "f":
        return "exact"
    gradient = name.endswith("_gradient")
    return {"tolerance": GRADIENT_TOLERANCE if gradient else TOLERANCE}


def compare(found: Any, expected: np.ndarray, how: Any, name: str) -> None:
    """Asserts that a result is what a vector says, in the way that it says."""
    if how == "exact":
        assert_equal(found, expected, name)
    else:
        assert_close(found, expected, name, how["tolerance"])
