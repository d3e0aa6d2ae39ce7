"""Cases of the whole model, over a stream of segments and token by token."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from memorizing_conformance import models
from memorizing_conformance.cases.case import Case
from memorizing_conformance.implementation import Arrays, StreamSegment
from memorizing_conformance.models import TINY, Config, changed

OPEN, SHUT = 30.0, -30.0
FIELDS = ("tokens", "start_of_document", "num_tokens")


def stacked(segments: Sequence[StreamSegment]) -> Arrays:
    """Returns the inputs of `forward`, segment by segment."""
    return {
        name: np.stack([segment[i] for segment in segments])
        for i, name in enumerate(FIELDS)
    }


def stream(
    name: str,
    rules: tuple[str, ...],
    says: str,
    seed: int,
    *,
    lengths: Sequence[int] = (15, 15),
    sizes: Config | None = None,
    prepare: Callable[[Arrays], Arrays] = lambda parameters: parameters,
    replace_before: int | None = None,
) -> Case:
    """Returns a case of the model of `models.TINY`, reading drawn documents.

    Args:
      name: of the folder.
      rules: what it is about.
      says: the case in one sentence.
      seed: of parameters and documents.
      lengths: of the documents.
      sizes: where they are not those of TINY.
      prepare: changes the parameters, so that the rule lies in view.
      replace_before: the segment before which other parameters take over.
    """
    config = {**TINY, **(sizes or {})}
    documents = models.draw_documents(seed, lengths, TINY["vocab_size"])
    parameters = prepare(models.draw_parameters(config, seed))
    arrays = stacked(models.cut(config, documents))
    arrays |= {f"parameters.{name}": array for name, array in parameters.items()}
    settings: dict[str, Any] = {"config": config}
    if replace_before is not None:
        settings["replace_before"] = replace_before
        other = prepare(models.draw_parameters(config, seed + 1000))
        arrays |= {f"later_parameters.{name}": a for name, a in other.items()}
    return Case("model", name, rules, says, settings, arrays)


def gates(bias: float) -> Callable[[Arrays], Arrays]:
    """Returns what sets all gates, and leaves the rest."""
    return lambda parameters: changed(parameters, "gate_bias", bias)


def without_attention(parameters: Arrays) -> Arrays:
    """Returns parameters with which no layer attends."""
    return changed(parameters, "output_kernel", 0)


def small(kind: str) -> Callable[[Arrays], Arrays]:
    """Returns what makes one kind of parameter small, where epsilon matters."""
    return lambda parameters: changed(parameters, kind, lambda array: 1e-3 * array)


def decoding() -> Case:
    """Returns a case that is read token by token, across documents."""
    documents = models.draw_documents(40, [9, 8, 12, 5], TINY["vocab_size"])
    rows = [documents[:2], documents[2:]]
    starts = [np.concatenate([np.arange(len(d)) == 0 for d in row]) for row in rows]
    parameters = models.draw_parameters(TINY, 40)
    arrays = {
        "tokens": np.stack([np.concatenate(row) for row in rows]),
        "start_of_document": np.stack(starts),
    }
    arrays |= {f"parameters.{name}": array for name, array in parameters.items()}
    return Case(
        "decode",
        "token_by_token",
        ("GEN-1",),
        "Two rows of two documents, whose segments end at different times.",
        {"config": TINY},
        arrays,
    )


CASES = (
    stream(
        "no_attention",
        ("MOD-1",),
        "All output kernels are zero: a stack of MLPs is left.",
        30,
        lengths=(5, 5),
        prepare=without_attention,
    ),
    stream("one_segment", ("MOD-1",), "Nothing came before.", 31, lengths=(5, 5)),
    stream(
        "small_embedding",
        ("MOD-2",),
        "The epsilon of rms_norm is as large as the mean square.",
        32,
        lengths=(5, 5),
        prepare=small("embedding"),
    ),
    stream(
        "two_memories",
        ("MOD-4",),
        "Both layers own a memory, and read nothing else.",
        33,
        sizes={"memory_layers": (0, 1)},
        prepare=gates(OPEN),
    ),
    stream(
        "another_memory",
        ("MOD-5",),
        "Parameters of the same shapes, with M = 11 and k = 3.",
        34,
        sizes={"memory_size": 11, "top_k": 3},
    ),
    stream(
        "one_set_of_keys",
        ("QKN-1", "MEM-9"),
        "A cache of 5 and a memory of 8 hold the same pairs, and both are read.",
        35,
        sizes={"cache_length": 5, "top_k": 8},
    ),
    stream(
        "small_keys",
        ("QKN-2",),
        "The epsilon of normalization is as large as the squared length.",
        36,
        prepare=small("key_kernel"),
        sizes={"top_k": 8},
    ),
    stream(
        "documents_in_a_row",
        ("SEG-2", "LOC-3"),
        "With gates shut, only caches could cross documents.",
        37,
        lengths=(8, 11, 9, 6),
        prepare=gates(SHUT),
    ),
    stream(
        "padding",
        ("SEG-4",),
        "Documents whose last segments are padded, then others.",
        38,
        lengths=(7, 3, 8, 11),
    ),
    stream(
        "stale_pairs",
        ("MEM-7",),
        "New parameters read what the old ones stored.",
        39,
        prepare=gates(OPEN),
        replace_before=2,
    ),
    decoding(),
)
