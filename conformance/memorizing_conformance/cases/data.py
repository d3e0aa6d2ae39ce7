"""Cases of segments, of perplexity, and of parameter shapes."""

import numpy as np

from memorizing_conformance import models
from memorizing_conformance.cases.case import Case
from memorizing_conformance.models import TINY


def documents(*lengths: int) -> dict[str, np.ndarray]:
    """Returns documents as one array and their lengths: 101 102 ..., 201 202 ..."""
    tokens = [
        np.arange(1, length + 1) + 100 * (d + 1) for d, length in enumerate(lengths)
    ]
    return {"documents": np.concatenate(tokens), "lengths": np.array(lengths)}


def uniform() -> Case:
    """Returns a case in which every token is as likely as any other."""
    parameters = models.draw_parameters(TINY, 50)
    parameters = models.changed(parameters, "embedding", 1.0)
    texts = models.draw_documents(50, [1, 9, 6], TINY["vocab_size"])
    return Case(
        "perplexity",
        "as_likely_as_any",
        ("SEG-5",),
        "Equal logits: the perplexity is the vocabulary's size, 13.",
        {"config": TINY},
        {
            "documents": np.concatenate(texts),
            "lengths": np.array([1, 9, 6]),
            **{f"parameters.{name}": array for name, array in parameters.items()},
        },
        {"nats_per_token": np.array(np.log(13.0)), "num_predicted": np.array(13)},
    )


CASES = (
    Case(
        "segments",
        "padded_on_the_right",
        ("SEG-1",),
        "5 tokens in segments of 3: one is full, one holds two.",
        {"segment_length": 3},
        documents(5),
        {
            "tokens": np.array([[101, 102, 103], [104, 105, 0]]),
            "num_tokens": np.array([3, 2]),
            "start_of_document": np.array([True, False]),
        },
    ),
    Case(
        "segments",
        "one_document_after_the_other",
        ("SEG-2",),
        "The second document opens a segment of its own.",
        {"segment_length": 3},
        documents(2, 4),
        {
            "tokens": np.array([[101, 102, 0], [201, 202, 203], [204, 0, 0]]),
            "num_tokens": np.array([2, 3, 1]),
            "start_of_document": np.array([True, True, False]),
        },
    ),
    Case(
        "segments",
        "targets_cross_segments",
        ("SEG-3",),
        "The target of 103 is 104, which the next segment begins with.",
        {"segment_length": 3},
        documents(5, 1),
        {
            "targets": np.array([[102, 103, 104], [105, 0, 0], [0, 0, 0]]),
            "num_targets": np.array([3, 1, 0]),
        },
    ),
    uniform(),
    Case(
        "parameters",
        "names_and_shapes",
        ("MOD-6",),
        "A model of two layers, of which layer 1 has a memory.",
        {
            "config": TINY,
            "shapes": {
                "embedding": [13, 6],
                "final_norm_gain": [6],
                **{
                    f"layers.{i}.{name}": shape
                    for i in (0, 1)
                    for name, shape in {
                        "attention_norm_gain": [6],
                        "query_kernel": [6, 2, 3],
                        "key_kernel": [6, 2, 3],
                        "value_kernel": [6, 2, 3],
                        "output_kernel": [2, 3, 6],
                        "attention_scale": [2],
                        "relative_bias": [2, 32],
                        "mlp_norm_gain": [6],
                        "mlp_in_kernel": [6, 7],
                        "mlp_out_kernel": [7, 6],
                    }.items()
                },
                "layers.1.gate_bias": [2],
            },
        },
        {},
    ),
)
