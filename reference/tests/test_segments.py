"""Documents to segments: every token is read once, and predicted once (SEG-1 to 4)."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memorizing_reference import segments


def documents_of(lengths):
    """Documents whose tokens are all different, so that each can be traced."""
    ends = np.cumsum([0, *lengths])
    return [np.arange(a, b) for a, b in itertools.pairwise(ends)]


@given(
    lengths=st.lists(st.integers(0, 23), max_size=9),
    batch=st.integers(1, 4),
    segment_length=st.integers(1, 8),
)
def test_every_token_once(lengths, batch, segment_length):
    documents = documents_of(lengths)
    first_token = {int(d[0]) for d in documents if len(d)}
    follows = {int(a): int(b) for d in documents for a, b in itertools.pairwise(d)}
    read, predicted = [], []
    for s in segments.stream(documents, batch=batch, segment_length=segment_length):
        assert s.tokens.shape == s.targets.shape == (batch, segment_length)
        for row in range(batch):
            tokens = s.tokens[row, : s.num_tokens[row]].tolist()
            targets = s.targets[row, : s.num_targets[row]].tolist()
            assert s.start_of_document[row] == (
                bool(tokens) and tokens[0] in first_token
            )
            assert not first_token.intersection(tokens[1:])  # One document only.
            assert [follows[t] for t in tokens[: len(targets)]] == targets
            read += tokens
            predicted += targets
    assert sorted(read) == list(range(sum(lengths)))
    assert sorted(predicted) == sorted(set(read) - first_token)


@given(
    lengths=st.lists(st.integers(1, 23), max_size=9), segment_length=st.integers(1, 8)
)
def test_a_row_reads_one_document_after_the_other(lengths, segment_length):
    """SEG-2: a document's segments stay in a row, in order; only the last is short."""
    current = {}
    for s in segments.stream(
        documents_of(lengths), batch=3, segment_length=segment_length
    ):
        for row in range(3):
            tokens = s.tokens[row, : s.num_tokens[row]].tolist()
            if not tokens:
                continue
            if not s.start_of_document[row]:
                last, was_full = current[row]
                assert tokens[0] == last + 1
                assert was_full
            current[row] = (tokens[-1], len(tokens) == segment_length)


def test_by_hand():
    documents = [np.array([1, 2, 3, 4, 5]), np.array([6]), np.array([7, 8, 9])]
    found = list(segments.stream(documents, batch=2, segment_length=3))
    assert [s.tokens.tolist() for s in found] == [
        [[1, 2, 3], [6, 0, 0]],
        [[4, 5, 0], [7, 8, 9]],
    ]
    assert [s.targets.tolist() for s in found] == [
        [[2, 3, 4], [0, 0, 0]],
        [[5, 0, 0], [8, 9, 0]],
    ]
    assert [s.num_tokens.tolist() for s in found] == [[3, 1], [2, 3]]
    assert [s.num_targets.tolist() for s in found] == [[3, 0], [1, 2]]
    assert [s.start_of_document.tolist() for s in found] == [[1, 1], [0, 1]]


def test_a_row_without_work_stands_idle():
    found = list(segments.stream([np.arange(5)], batch=2, segment_length=2))
    assert [s.num_tokens.tolist() for s in found] == [[2, 0], [2, 0], [1, 0]]
    assert not any(s.start_of_document[1] for s in found)


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"segment_length": 0}])
def test_refuses_sizes_that_read_nothing(wrong):
    sizes = {"batch": 2, "segment_length": 3} | wrong
    with pytest.raises(
        ValueError, match=f"{next(iter(wrong))} is 0, must be 1 or more"
    ):
        next(segments.stream([np.arange(5)], **sizes))
