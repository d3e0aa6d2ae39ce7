"""Cases of pre-trained models with memory, by segments and token by token."""

import numpy as np

from memorizing_conformance import models
from memorizing_conformance.cases.case import Case
from memorizing_conformance.cases.model import OPEN, gates
from memorizing_conformance.cases.pretrained_case import LENGTH, SMALL, drawn, shown
from memorizing_conformance.models import Config
from memorizing_conformance.pretrained import (
    STILL,
    one_layer_attends,
    without_positions,
)

LOCAL: Config = {"memory_layers": ()}


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
