"""How cases of memory, search and memory attention are put together."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from memorizing_conformance.cases.case import Case
from memorizing_conformance.strategies import grid_array

Step = tuple[bool, Sequence[float]]


def line(
    name: str,
    rule: str,
    says: str,
    steps: Sequence[Step],
    slots: Sequence[Sequence[int]] | None,
    *,
    memory_size: int,
    top_k: int,
    segment_length: int = 2,
    query: float = 1.0,
    scale: float = 1.0,
    output: Sequence[float] | None = None,
    values: Sequence[Sequence[float]] | None = None,
    **settings: Any,
) -> Case:
    """Returns a case of one row, head and dimension.

    Args:
      name: of the folder.
      rule: what it is about.
      says: the case in one sentence.
      steps: for each segment whether it starts a document, and its keys; what is
        missing to `segment_length` is padding, which holds 100.
      slots: what each segment's queries must find, worked by hand.
      memory_size: slots.
      top_k: neighbors.
      segment_length: positions.
      query: of every position.
      scale: attention_scale.
      output: what each segment's queries must read, worked by hand.
      values: if they are not the keys.
      settings: further ones of case.json.
    """
    shape = (len(steps), 1, segment_length, 1, 1)
    keys = np.full(shape, 100, np.float32)
    own_values = keys.copy()
    for step, (_, numbers) in enumerate(steps):
        keys[step, 0, : len(numbers), 0, 0] = numbers
        own_values[step, 0, : len(numbers), 0, 0] = (values or [n for _, n in steps])[
            step
        ]
    by_hand = {}
    if slots is not None:
        each = np.array(slots)[:, None, None, None, :]
        by_hand["slots"] = np.repeat(each, segment_length, axis=2)
    if output is not None:
        each = np.array(output, np.float64)[:, None, None, None, None]
        by_hand["memory_output"] = np.repeat(each, segment_length, axis=2)
    return Case(
        "memory",
        name,
        (rule,),
        says,
        {
            "sizes": {
                "batch": 1,
                "memory_size": memory_size,
                "num_heads": 1,
                "head_dim": 1,
                "top_k": top_k,
            },
            **settings,
        },
        {
            "start_of_document": np.array([[start] for start, _ in steps]),
            "num_tokens": np.array([[len(numbers)] for _, numbers in steps]),
            "queries": np.full(shape, query, np.float32),
            "keys": keys,
            "values": own_values,
            "attention_scale": np.array([scale], np.float32),
        },
        by_hand,
    )


def drawn(
    name: str,
    rule: str,
    says: str,
    seed: int,
    *,
    kind: str = "grid",
    starts: Sequence[Sequence[bool]] = ((True, True), (False,) * 2, (False,) * 2),
    lengths: Sequence[Sequence[int]] = ((5, 5), (5, 5), (5, 5)),
    **settings: Any,
) -> Case:
    """Returns a case of several rows and heads, with numbers on the grid of 1/8."""
    rng = np.random.default_rng(seed)
    shape = (len(starts), 2, 5, 3, 4)
    sizes = {"batch": 2, "memory_size": 8, "num_heads": 3, "head_dim": 4, "top_k": 6}
    return Case(
        "memory",
        name,
        (rule,),
        says,
        {"sizes": sizes, **settings},
        {
            "start_of_document": np.array(starts),
            "num_tokens": np.array(lengths),
            "queries": grid_array(rng, shape),
            "keys": grid_array(rng, shape, kind),
            "values": grid_array(rng, shape),
            "attention_scale": np.array([0.5, -1.0, 2.0], np.float32),
        },
    )
