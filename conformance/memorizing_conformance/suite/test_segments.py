"""Documents become rows of segments, and every token but the first is predicted."""

import collections

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytestmark = [pytest.mark.level("model"), pytest.mark.needs("segments")]

LENGTH = 4
# Documents of every kind of length: one token, just under, at and over a segment.
LENGTHS = st.lists(st.integers(1, 3 * LENGTH + 1), min_size=1, max_size=7)


def make_documents(lengths):
    """Documents whose tokens name the document and the position: 100 d + position."""
    return [
        np.arange(1, length + 1) + 100 * (d + 1) for d, length in enumerate(lengths)
    ]


def run(implementation, documents, batch):
    """Returns the stream, as NumPy; a stream that does not end is cut off."""
    segments = []
    for segment in implementation.stream(documents, batch, LENGTH):
        segments.append(tuple(np.asarray(part) for part in segment))
        assert len(segments) <= 100, "the stream goes on after the last document"
    return segments


def read_back(segments, batch):
    """Returns the documents that each row was given, as lists of tokens."""
    rows = [[] for _ in range(batch)]
    for tokens, start_of_document, num_tokens, _, _ in segments:
        for row in range(batch):
            if start_of_document[row]:
                rows[row].append([])
            if num_tokens[row]:
                assert rows[row], f"row {row} starts in the middle of a document"
                rows[row][-1].extend(tokens[row, : num_tokens[row]].tolist())
    return rows


@pytest.mark.rule("SEG-1")
@pytest.mark.parametrize("batch", [1, 3])
@given(lengths=LENGTHS)
def test_a_segment_is_of_one_document(implementation, batch, lengths):
    documents = make_documents(lengths)
    for tokens, start, num_tokens, targets, num_targets in run(
        implementation, documents, batch
    ):
        assert tokens.shape == targets.shape == (batch, LENGTH)
        assert start.shape == num_tokens.shape == num_targets.shape == (batch,)
        assert (num_tokens >= 0).all()
        assert (num_tokens <= LENGTH).all()
        for row in range(batch):
            real = tokens[row, : num_tokens[row]].tolist()
            assert len({token // 100 for token in real}) <= 1, real
            assert real == list(range(real[0], real[-1] + 1)) if real else True


@pytest.mark.rule("SEG-1")
@pytest.mark.parametrize(
    ("length", "expected"),
    [(1, [1]), (3, [3]), (4, [4]), (5, [4, 1]), (8, [4, 4]), (9, [4, 4, 1])],
)
def test_only_the_last_segment_is_padded(implementation, length, expected):
    segments = run(implementation, make_documents([length]), 1)
    assert [int(n[0]) for _, _, n, _, _ in segments] == expected


@pytest.mark.rule("SEG-2")
@pytest.mark.parametrize("batch", [1, 3])
@given(lengths=LENGTHS)
def test_every_document_is_read_once_in_one_row(implementation, batch, lengths):
    documents = make_documents(lengths)
    rows = read_back(run(implementation, documents, batch), batch)
    found = sorted(document for row in rows for document in row)
    assert found == sorted(document.tolist() for document in documents)


@pytest.mark.rule("SEG-2")
@given(lengths=LENGTHS)
def test_a_start_is_marked_once(implementation, lengths):
    segments = run(implementation, make_documents(lengths), 3)
    starts = sum(int(start.sum()) for _, start, _, _, _ in segments)
    assert starts == len(lengths)
    for tokens, start, num_tokens, _, _ in segments:
        for row in range(3):
            opens = num_tokens[row] > 0 and tokens[row, 0] % 100 == 1
            assert bool(start[row]) == opens, f"row {row} reads {tokens[row]}"


@pytest.mark.rule("SEG-3")
@pytest.mark.parametrize("batch", [1, 3])
@given(lengths=LENGTHS)
def test_every_token_but_the_first_is_predicted_once(implementation, batch, lengths):
    documents = make_documents(lengths)
    predicted = collections.Counter()
    for tokens, _, num_tokens, targets, num_targets in run(
        implementation, documents, batch
    ):
        for row in range(batch):
            assert num_targets[row] <= num_tokens[row]
            of_row = targets[row, : num_targets[row]]
            # A target is the token that follows.
            assert (of_row == tokens[row, : num_targets[row]] + 1).all(), of_row
            predicted.update(of_row.tolist())
    assert predicted == collections.Counter(
        token for document in documents for token in document[1:].tolist()
    )


@pytest.mark.rule("SEG-3")
def test_the_next_segment_begins_with_the_last_target(implementation):
    # 101 102 103 104 | 105 106: the target of 104 is 105.
    (first, second) = run(implementation, make_documents([6]), 1)
    assert first[3][0].tolist() == [102, 103, 104, 105]
    assert first[4].tolist() == [4]
    assert second[3][0, :1].tolist() == [106]
    assert second[4].tolist() == [1]


@pytest.mark.rule("SEG-4")
@given(lengths=LENGTHS)
def test_padding_has_no_target(implementation, lengths):
    documents = make_documents(lengths)
    for tokens, _, num_tokens, _, num_targets in run(implementation, documents, 3):
        for row in range(3):
            real = tokens[row, : num_tokens[row]].tolist()
            last = bool(real) and real[-1] in [int(d[-1]) for d in documents]
            assert num_targets[row] == len(real) - last, f"row {row} reads {real}"
