"""Comparisons see differences, and only those."""

import numpy as np
import pytest

from memorizing_conformance import comparison

INF = np.inf


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_equal_means_every_bit(shape):
    array = np.full(shape, 0.1, np.float32)
    comparison.assert_equal(array, array.copy(), "array")
    with pytest.raises(AssertionError, match="array"):
        comparison.assert_equal(array, np.nextafter(array, np.float32(1)), "array")


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
@pytest.mark.parametrize("wrong", [1.001, np.nan, INF])
def test_close_means_within_the_tolerance(shape, wrong):
    array = np.ones(shape)
    comparison.assert_close(array + 1e-6, array, "array")
    with pytest.raises(AssertionError, match="array"):
        comparison.assert_close(array * wrong, array, "array")


def test_shapes_are_compared_too():
    with pytest.raises(AssertionError, match=r"shape \(3, 1\), expected \(3,\)"):
        comparison.assert_close(np.ones((3, 1)), np.ones(3), "array")
    with pytest.raises(AssertionError, match="shape"):
        comparison.assert_equal(np.ones((1, 3)), np.ones(3), "array")


SCORES = np.array([[[[3.0, 1.0, 2.0, -INF]]]])


@pytest.mark.parametrize("slots", [[0, 2, 1], [0, 1, -1], [2, -1, -1], [-1, -1, -1]])
def test_sound_results(slots):
    comparison.assert_sound(np.array([[[slots]]]), SCORES, top_k=3)


@pytest.mark.parametrize(
    ("slots", "why"),
    [
        ([2, 0, 1], "not best first"),
        ([0, 0, 2], "a slot twice"),
        ([0, -1, 2], "-1 amid slots"),
        ([0, 2, 3], "a slot that is not valid"),
        ([0, 2, 4], "there is no slot 4"),
        ([0, 2, -2], "there is no slot -2"),
        ([0, 2], "shape"),
    ],
)
def test_unsound_results(slots, why):
    with pytest.raises(AssertionError, match=why):
        comparison.assert_sound(np.array([[[slots]]]), SCORES, top_k=3)


def test_recall_counts_equals_as_found():
    scores = np.array([2.0, 1.0, 1.0, 0.0])
    expected = np.array([0, 1])
    assert comparison.recall(np.array([0, 1]), expected, scores) == 1.0
    assert comparison.recall(np.array([0, 2]), expected, scores) == 1.0
    assert comparison.recall(np.array([0, 3]), expected, scores) == 0.5
    assert comparison.recall(np.array([-1, -1]), expected, scores) == 0.0
