"""Cases of pre-trained models with memory.

Results by hand come from two models that need no reference: one that shows what it
sees (`showing`), and full attention over the local context alone (`pretrained`).
"""

from collections.abc import Callable, Sequence

import numpy as np

from memorizing_conformance import models, showing
from memorizing_conformance.cases.case import Case
from memorizing_conformance.cases.model import OPEN, gates, stacked
from memorizing_conformance.implementation import Arrays
from memorizing_conformance.models import Config
from memorizing_conformance.pretrained import (
    JOINT,
    STILL,
    local_positions,
    logits_of_llama,
    one_layer_attends,
    without_positions,
)

# Of one document of 13 tokens without repetition: 4 + 4 + 4 + 1.
SMALL: Config = {
    **JOINT,
    "vocab_size": 13,
    "num_layers": 2,
    "model_dim": 6,
    "num_heads": 4,
    "mlp_dim": 7,
    "memory_layers": (1,),
    "memory_size": 6,
    "top_k": 3,
    "num_sinks": 2,
    "local_window": 8,
    "cache_length": 3,
    "segment_length": 4,
}
LENGTH = 13
LOCAL: Config = {"memory_layers": ()}


def drawn(
    name: str,
    rules: tuple[str, ...],
    says: str,
    seed: int,
    *,
    lengths: Sequence[int] = (LENGTH, LENGTH),
    prepare: Callable[[Arrays], Arrays] = lambda parameters: parameters,
    by_hand: int | None = None,
    **sizes: object,
) -> Case:
    """Returns a case of the model of SMALL, reading drawn documents.

    Args:
      name: of the folder.
      rules: what it is about.
      says: the case in one sentence.
      seed: of parameters and documents.
      lengths: of the documents.
      prepare: changes the parameters, so that the rule lies in view.
      by_hand: if each segment reads as full attention over sinks, so many positions
        before it and itself does, how many that are.
      sizes: where they are not those of SMALL.
    """
    config = {**SMALL, **sizes}
    documents = models.draw_documents(seed, lengths, SMALL["vocab_size"])
    parameters = prepare(models.draw_parameters(config, seed))
    arrays = stacked(models.cut(config, documents))
    results = {}
    if by_hand is not None:
        reach = {**config, "cache_length": by_hand}
        results["logits"] = _over_local_contexts(reach, parameters, documents)
    arrays |= {f"parameters.{name}": array for name, array in parameters.items()}
    return Case("model", name, rules, says, {"config": config}, arrays, results)


def _over_local_contexts(
    config: Config, parameters: Arrays, documents: Sequence[np.ndarray]
) -> np.ndarray:
    length = config["segment_length"]
    num_segments = -(-LENGTH // length)
    logits = np.zeros((num_segments, len(documents), length, config["vocab_size"]))
    for row, document in enumerate(documents):
        for step in range(num_segments):
            first = step * length
            count = min(length, LENGTH - first)
            context = document[local_positions(config, first, count)]
            found = logits_of_llama(config, parameters, context)[-count:]
            logits[step, row, :count] = found
    return logits


def shown(
    name: str,
    rules: tuple[str, ...],
    says: str,
    seen: Callable[[int, int], Sequence[int]],
    **sizes: object,
) -> Case:
    """Returns a case in which each position reads the mean of what it sees.

    Args:
      name: of the folder.
      rules: what it is about.
      says: the case in one sentence.
      seen: the positions that one sees, by the number of tokens before its segment
        and its own number.
      sizes: where they are not those of SMALL.
    """
    own = {"cache_length": 3, "segment_length": 4, "num_sinks": 2, "local_window": 8}
    # One token more than the document has, since half a head must be a whole number.
    config = showing.config_of(LENGTH + 1, **(own | {"memory_size": 0} | sizes))
    document = models.draw_documents(1, [LENGTH], LENGTH)[0]
    length = config["segment_length"]
    logits = np.zeros((-(-LENGTH // length), 1, length, LENGTH + 1))
    for i in range(LENGTH):
        step, place = divmod(i, length)
        positions = seen(step * length, i)
        weights = np.zeros((1, LENGTH + 1))
        weights[0, document[list(positions)]] = 1 / len(positions)
        logits[step, 0, place] = showing.logits_of(config, weights)[0]
    arrays = stacked(models.cut(config, [document], batch=1))
    for parameter, array in showing.parameters_of(config).items():
        arrays[f"parameters.{parameter}"] = array
    settings = {"config": config}
    return Case("model", name, rules, says, settings, arrays, {"logits": logits})


def decoding() -> Case:
    """Returns a case that is read token by token, across documents."""
    documents = models.draw_documents(60, [9, 8, 12, 5], SMALL["vocab_size"])
    rows = [documents[:2], documents[2:]]
    starts = [np.concatenate([np.arange(len(d)) == 0 for d in row]) for row in rows]
    arrays = {
        "tokens": np.stack([np.concatenate(row) for row in rows]),
        "start_of_document": np.stack(starts),
    }
    for name, array in models.draw_parameters(SMALL, 60).items():
        arrays[f"parameters.{name}"] = array
    return Case(
        "decode",
        "a_joint_memory_grows",
        ("GEN-1", "PRE-6"),
        "Pairs leave the cache when their segment is complete, not token by token.",
        {"config": SMALL},
        arrays,
    )


CASES = (
    drawn(
        "grouped_heads",
        ("PRE-1",),
        "Two query heads search each of two memories; gates are open.",
        61,
        prepare=gates(OPEN),
        combination="gate",
    ),
    drawn(
        "memory_at_one_distance",
        ("PRE-2",),
        "Stored pairs are met 2 positions back; gates are open, one neighbor is found.",
        62,
        prepare=gates(OPEN),
        combination="gate",
        memory_distance=2,
        top_k=1,
    ),
    drawn(
        "places_close_up",
        ("PRE-3",),
        "Each segment reads as if what was dropped had never been.",
        63,
        prepare=one_layer_attends,
        by_hand=3,
        **LOCAL,
    ),
    shown(
        "sinks_stay",
        ("PRE-4",),
        "A window of 3, which 2 sinks outlast, in the cache and without it.",
        lambda num_read, i: [
            t for t in range(i + 1) if t < 2 or (t >= num_read - 3 and i - t <= 3)
        ],
        local_window=3,
    ),
    drawn(
        "joint",
        ("PRE-5",),
        "One softmax over local context and neighbors, in rows of several documents.",
        64,
        lengths=(13, 5, 11, 3, 9),
    ),
    drawn(
        "gated",
        ("PRE-5",),
        "Two softmaxes and a gate, in rows of several documents.",
        65,
        lengths=(13, 5, 11, 3, 9),
        combination="gate",
        local_window=4,
    ),
    drawn(
        "joint_without_positions",
        ("PRE-5", "PRE-6"),
        "Nothing is turned or lost: full attention, as over the whole document.",
        66,
        prepare=lambda parameters: without_positions(parameters, SMALL),
        by_hand=LENGTH,
        rope_base=STILL,
        memory_layers=(0, 1),
        memory_size=13,
        top_k=13,
    ),
    shown(
        "each_position_once",
        ("PRE-6",),
        "A joint memory of 13 has what cache and sinks have not.",
        lambda _, i: range(i + 1),
        memory_size=13,
        top_k=13,
    ),
    shown(
        "the_newest_that_left",
        ("PRE-6",),
        "A joint memory of 4 behind a cache of 3.",
        lambda num_read, i: [
            t for t in range(i + 1) if t < 2 or t >= max(2, num_read - 3) - 4
        ],
        memory_size=4,
        top_k=4,
    ),
    drawn(
        "an_ordinary_llama",
        ("PRE-7", "PRE-8"),
        "The cache holds the whole document; the embedding is not tied.",
        67,
        by_hand=LENGTH,
        cache_length=13,
        local_window=13,
        tied_embedding=False,
        **LOCAL,
    ),
    drawn(
        "a_tied_llama",
        ("PRE-7",),
        "One segment; the embedding makes the logits.",
        68,
        lengths=(4, 4),
        **LOCAL,
    ),
    shown(
        "itself_and_the_window",
        ("PRE-9",),
        "A window of 2 shows three positions, the query's own among them.",
        lambda _, i: range(max(0, i - 2), i + 1),
        local_window=2,
        num_sinks=0,
    ),
    decoding(),
    Case(
        "parameters",
        "of_the_llama_family",
        ("PRE-10",),
        "Two layers, of which layer 1 has a memory and a gate; not tied.",
        {
            "config": {**SMALL, "combination": "gate", "tied_embedding": False},
            "shapes": {
                "embedding": [13, 6],
                "final_norm_gain": [6],
                "output_embedding": [13, 6],
                **{
                    f"layers.{i}.{name}": shape
                    for i in (0, 1)
                    for name, shape in {
                        "attention_norm_gain": [6],
                        "query_kernel": [6, 4, 4],
                        "key_kernel": [6, 2, 4],
                        "value_kernel": [6, 2, 4],
                        "output_kernel": [4, 4, 6],
                        "mlp_norm_gain": [6],
                        "mlp_gate_kernel": [6, 7],
                        "mlp_up_kernel": [6, 7],
                        "mlp_out_kernel": [7, 6],
                    }.items()
                },
                "layers.1.gate_bias": [4],
            },
        },
        {},
    ),
)
