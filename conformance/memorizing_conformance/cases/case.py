"""One golden vector before it is written."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from memorizing_conformance.implementation import Arrays


@dataclasses.dataclass(frozen=True)
class Case:
    """Inputs, and what must come of them.

    Attributes:
      handler: what is done with the inputs; FORMAT.md has a section for each.
      name: of the folder.
      rules: what the case is about.
      says: the case in one sentence.
      settings: sizes and the like, for case.json.
      arrays: the inputs.
      by_hand: expected results that were worked out on paper, by name. They are
        written as they stand here; the generator stops where the reference differs.
        All other expected results are the reference's, in float64.
    """

    handler: str
    name: str
    rules: tuple[str, ...]
    says: str
    settings: Mapping[str, Any]
    arrays: Arrays
    by_hand: Arrays = dataclasses.field(default_factory=dict)
