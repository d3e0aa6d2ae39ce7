"""Reading ahead changes neither the segments, nor where a run would continue."""

import numpy as np
import pytest

from memorizing_data.row_reader import RowReader
from memorizing_data.token_files import open_split
from memorizing_jax import input_pipeline


def reader_of(dataset, **settings):
    files = open_split(dataset, "train")
    defaults = {"batch": 3, "segment_length": 8, "seed": 2, "repeat": False}
    return RowReader(files, **defaults | settings)


def test_same_segments_and_positions_as_the_reader(dataset):
    expected = []
    reader = reader_of(dataset)
    for batch in reader:
        expected.append((batch, reader.state()))
    with input_pipeline.read_ahead(reader_of(dataset), depth=2) as reads:
        found = list(reads)
    assert len(found) == len(expected)
    for read, (batch, position) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(read.segments.tokens, batch.tokens)
        np.testing.assert_array_equal(read.segments.num_targets, batch.num_targets)
        assert read.num_tokens == batch.num_tokens.sum()
        assert read.position == position


def test_position_is_that_of_the_segment_not_of_the_thread(dataset):
    with input_pipeline.read_ahead(reader_of(dataset), depth=5) as reads:
        first, second = next(reads), next(reads)
    again = reader_of(dataset)
    again.restore(first.position)
    np.testing.assert_array_equal(next(again).tokens, second.segments.tokens)


def test_may_stop_early_on_an_endless_reader(dataset):
    with input_pipeline.read_ahead(reader_of(dataset, repeat=True)) as reads:
        next(reads)


def test_an_error_of_the_reader_arrives(dataset):
    reader = reader_of(dataset)

    def fail():
        raise OSError("the disk is gone")

    reader._read = fail
    with (
        input_pipeline.read_ahead(reader) as reads,
        pytest.raises(OSError, match="the disk is gone"),
    ):
        next(reads)
