"""Rows read whole documents in order, and predict every token once."""

import collections
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memorizing_data.row_reader import RowReader
from memorizing_data.token_files import (
    EncodedDocument,
    TokenFileError,
    open_split,
    write_manifest,
    write_split,
)

EXAMPLES = settings(deadline=None, derandomize=True, max_examples=60)
BYTES = {"kind": "bytes", "vocab_size": 256, "file": None, "sha256": None}
LENGTHS = st.lists(st.integers(1, 23), min_size=1, max_size=9)
SIZES = {"batch": st.integers(1, 5), "segment_length": st.integers(1, 11)}
SEEDS = st.none() | st.integers(0, 2**63 - 1)


def in_memory(lengths):
    """Returns the split of documents whose token at offset p is p + 1."""
    with tempfile.TemporaryDirectory() as directory:
        documents = [
            EncodedDocument(str(i), np.arange(1, length + 1), length)
            for i, length in enumerate(lengths)
        ]
        entry = write_split(directory, "train", documents, 256)
        write_manifest(directory, BYTES, {"train": entry})
        return open_split(Path(directory), "train")


def equal(a, b):
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in vars(a))


def test_worked_example():
    """Two rows, segments of 3. Row 0 reads documents 0, 2; row 1 document 1."""
    reader = RowReader(
        in_memory([4, 7, 1]), batch=2, segment_length=3, seed=None, repeat=False
    )
    first, second, third = reader
    assert first.tokens.tolist() == [[1, 2, 3], [1, 2, 3]]
    assert first.targets.tolist() == [[2, 3, 4], [2, 3, 4]]
    assert first.start_of_document.tolist() == [True, True]
    assert first.num_targets.tolist() == [3, 3]
    assert second.tokens.tolist() == [[4, 0, 0], [4, 5, 6]]
    assert second.targets.tolist() == [[0, 0, 0], [5, 6, 7]]
    assert second.start_of_document.tolist() == [False, False]
    assert second.num_tokens.tolist() == [1, 3]
    assert second.num_targets.tolist() == [0, 3]
    assert second.position.tolist() == [3, 3]
    assert third.tokens.tolist() == [[1, 0, 0], [7, 0, 0]]
    assert third.targets.tolist() == [[0, 0, 0], [0, 0, 0]]
    assert third.start_of_document.tolist() == [True, False]
    assert third.num_tokens.tolist() == [1, 1]
    assert third.num_targets.tolist() == [0, 0]
    assert third.document.tolist() == [2, 1]


def test_a_row_without_document_is_empty():
    reader = RowReader(
        in_memory([2, 4]), batch=3, segment_length=2, seed=None, repeat=False
    )
    first, second = reader
    assert first.document.tolist() == [0, 1, -1]
    assert first.num_tokens.tolist() == [2, 2, 0]
    assert second.document.tolist() == [-1, 1, -1]
    assert second.num_tokens.tolist() == [0, 2, 0]
    assert second.start_of_document.tolist() == [False, False, False]
    assert second.tokens.tolist() == [[0, 0], [3, 4], [0, 0]]


@EXAMPLES
@given(lengths=LENGTHS, seed=SEEDS, **SIZES)
def test_every_token_but_the_first_is_predicted_once(
    lengths, seed, batch, segment_length
):
    read, predicted = collections.Counter(), collections.Counter()
    at = {}
    for segments in RowReader(
        in_memory(lengths),
        batch=batch,
        segment_length=segment_length,
        seed=seed,
        repeat=False,
    ):
        assert segments.tokens.shape == (batch, segment_length)
        for row in range(batch):
            document, position = segments.document[row], segments.position[row]
            num_tokens, num_targets = (
                segments.num_tokens[row],
                segments.num_targets[row],
            )
            assert segments.start_of_document[row] == (num_tokens and position == 0)
            if num_tokens and position:
                assert at[row] == (document, position)
            at[row] = (document, position + num_tokens)
            tokens, targets = segments.tokens[row], segments.targets[row]
            places = range(position + 1, position + 1 + num_tokens)
            assert tokens[:num_tokens].tolist() == list(places)
            assert not tokens[num_tokens:].any()
            assert not targets[num_targets:].any()
            read.update((document, token) for token in tokens[:num_tokens])
            predicted.update((document, token) for token in targets[:num_targets])
    every = {(d, p + 1) for d, length in enumerate(lengths) for p in range(length)}
    assert read == collections.Counter(every)
    assert predicted == collections.Counter(each for each in every if each[1] > 1)


@EXAMPLES
@given(lengths=LENGTHS, seed=SEEDS, repeat=st.booleans(), **SIZES)
def test_resuming_anywhere_equals_never_stopping(lengths, repeat, **options):
    files = in_memory(lengths)
    reader = RowReader(files, repeat=repeat, **options)
    states, stream = [], []
    for _ in range(25):
        states.append(json.dumps(reader.state()))
        segments = next(reader, None)
        if segments is None:
            break
        stream.append(segments)
    for start, state in enumerate(states):
        resumed = RowReader(files, repeat=repeat, **options)
        next(resumed)
        resumed.restore(json.loads(state))
        assert json.dumps(resumed.state()) == state
        for expected in stream[start:]:
            assert equal(next(resumed), expected)


@EXAMPLES
@given(lengths=LENGTHS, seed=SEEDS, repeat=st.booleans(), **SIZES)
def test_rows_do_not_depend_on_the_number_of_workers(lengths, batch, **options):
    files = in_memory(lengths)
    whole = RowReader(files, batch=batch, **options)
    parts = [slice(0, 1), slice(1, 3), slice(3, None)]
    parts = [part for part in parts if range(batch)[part]]
    workers = [RowReader(files, batch=batch, rows=part, **options) for part in parts]
    for step in range(15):
        expected = next(whole, None)
        found = [next(worker, None) for worker in workers]
        if expected is None:
            assert found == [None] * len(parts)
            return
        arrays = dict(vars(expected))
        total = arrays.pop("total_tokens")
        assert total == expected.num_tokens.sum()
        assert [part.total_tokens for part in found] == [total] * len(parts)
        for name, value in arrays.items():
            joined = np.concatenate([getattr(part, name) for part in found])
            assert np.array_equal(joined, value)
        if step == 4:  # Go on with as many workers as rows.
            state = workers[0].state()
            assert state == whole.state()
            parts = [slice(row, row + 1) for row in range(batch)]
            workers = [
                RowReader(files, batch=batch, rows=part, **options) for part in parts
            ]
            for worker in workers:
                worker.restore(state)


def test_epochs_follow_without_a_gap():
    files = in_memory([3, 1, 4, 1, 5])
    reader = RowReader(files, batch=2, segment_length=2, seed=11, repeat=True)
    opened = []
    for _ in range(200):
        segments = next(reader)
        assert (segments.num_tokens > 0).all()
        opened += segments.document[segments.start_of_document].tolist()
    epochs = [tuple(opened[i : i + 5]) for i in range(0, len(opened) - 4, 5)]
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs)
    assert len(set(epochs)) > 10


def order(files, **options):
    options = {"batch": 1, "segment_length": 8, "seed": None, "repeat": False} | options
    return [int(segments.document[0]) for segments in RowReader(files, **options)]


def test_the_order_of_a_seed_never_changes():
    """A checkpoint resumed years later must find the same order."""
    files = in_memory([1] * 8)
    assert order(files) == list(range(8))
    assert order(files, seed=0) == [0, 2, 1, 5, 4, 3, 6, 7]
    assert order(files, seed=1) == [3, 5, 2, 7, 0, 6, 1, 4]


def test_reads_only_the_chosen_documents():
    files = in_memory([1] * 8)
    assert order(files, documents=[5, 2, 7]) == [5, 2, 7]
    assert sorted(order(files, seed=3, documents=[5, 2, 7])) == [2, 5, 7]


OPTIONS = {"batch": 3, "segment_length": 4, "seed": 1, "repeat": True}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"batch": 2}, "has batch 2, and this run has 3"),
        ({"segment_length": 5}, "segment_length 5"),
        ({"seed": None}, "seed None"),
        ({"repeat": False}, "repeat False"),
        ({"documents": [0, 1]}, "documents"),
    ],
)
def test_refuses_a_position_of_other_settings(other, message):
    files = in_memory([5, 6, 7])
    state = RowReader(files, **(OPTIONS | other)).state()
    with pytest.raises(TokenFileError, match=message):
        RowReader(files, **OPTIONS).restore(state)


def test_refuses_a_position_in_other_token_files():
    state = RowReader(in_memory([5, 6, 7]), **OPTIONS).state()
    with pytest.raises(TokenFileError, match="fingerprint"):
        RowReader(in_memory([5, 7, 6]), **OPTIONS).restore(state)


@pytest.mark.parametrize(
    "damage",
    [
        {"epoch": -1},
        {"taken": 4},
        {"taken": "2"},
        {"document": [0, 1]},
        {"document": [0, 1, 3]},
        {"document": [0, 1, -2]},
        {"document": None},
        {"position": [5, 0, 0]},
        {"position": [0, -1, 0]},
        {"position": [0.5, 0, 0]},
    ],
)
def test_refuses_a_damaged_position_and_stays_where_it_was(damage):
    reader = RowReader(in_memory([5, 6, 7]), **OPTIONS)
    next(reader)
    before = reader.state()
    with pytest.raises(TokenFileError, match="damaged"):
        reader.restore(before | {"document": [0, 1, 2]} | damage)
    assert reader.state() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "batch=0"),
        ({"segment_length": 0}, "segment_length=0"),
        ({"seed": -1}, "seed=-1"),
        ({"rows": slice(3, 5)}, "selects none of 3 rows"),
        ({"documents": []}, "nothing to read"),
        ({"documents": [1, 1]}, "twice"),
        ({"documents": [0, 3]}, "from 0 to 2"),
    ],
)
def test_refuses_settings_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        RowReader(in_memory([5, 6, 7]), **(OPTIONS | options))
