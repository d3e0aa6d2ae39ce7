"""Decoding token by token agrees with reading whole segments."""

import numpy as np
import pytest

from memorizing_conformance import models
from memorizing_conformance.comparison import assert_close
from memorizing_conformance.models import LONG, MAIN, changed

pytestmark = [
    pytest.mark.level("generation"),
    pytest.mark.needs("model", "generation", "exact_search"),
]


def decode_rows(implementation, config, parameters, rows):
    """Reads each row's documents token by token, and returns logits [row][token]."""
    state = implementation.init_model(config, parameters, len(rows))
    tokens = [np.concatenate(documents) for documents in rows]
    starts = [
        np.concatenate([np.arange(len(document)) == 0 for document in documents])
        for documents in rows
    ]
    found = []
    for step in range(len(tokens[0])):
        logits, state = implementation.decode(
            state,
            np.array([row[step] for row in tokens]),
            np.array([row[step] for row in starts]),
        )
        found.append(np.array(logits))
    return np.stack(found, axis=1)


def read_rows(config, parameters, rows):
    """Reads each row's documents by segments with the oracle, row by row."""
    found, gaps = [], []
    for documents in rows:
        segments = models.cut(config, documents, batch=1)
        logits, gap = models.expected(config, parameters, segments)
        found.append(
            np.concatenate(
                [one[0, : s[2][0]] for one, s in zip(logits, segments, strict=True)]
            )
        )
        gaps.append(gap)
    assert min(gaps) > models.MIN_GAP, "another seed is needed"
    return np.stack(found)


@pytest.mark.rule("GEN-1")
@pytest.mark.parametrize(
    ("config", "seed"), [(MAIN, 0), (LONG, 2)], ids=["with cache", "long segments"]
)
def test_decoding_gives_the_logits_of_segments(implementation, config, seed):
    # Rows start documents at different times, and in the middle of segments.
    documents = models.draw_documents(seed, [17, 23, 30, 10])
    rows = [documents[:2], documents[2:]]
    parameters = models.draw_parameters(config, seed)
    assert_close(
        decode_rows(implementation, config, parameters, rows),
        read_rows(config, parameters, rows),
        "logits",
    )


@pytest.mark.rule("GEN-1")
def test_pairs_enter_memory_when_their_segment_is_complete(implementation):
    """With gates open, nothing is read before the first segment is complete."""
    parameters = models.draw_parameters(MAIN, 2)
    parameters = changed(parameters, "gate_bias", 1000.0)
    parameters = changed(parameters, "layers.1.output_kernel", 0)
    rows = [[document] for document in models.draw_documents(2, [9, 9])]
    found = decode_rows(implementation, MAIN, parameters, rows)
    silent = changed(parameters, "output_kernel", 0)
    without = decode_rows(implementation, MAIN, silent, rows)
    assert_close(found[:, :7], without[:, :7], "logits of the first segment")
    assert np.abs(found[:, 7] - without[:, 7]).max() > 0.01, "memory was not read"
