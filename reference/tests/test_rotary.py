"""Rotation: by hand, and what it must leave alone (PRE-8)."""

import numpy as np

from memorizing_reference import rotary


def turned(x, place, base=100.0):
    x = np.array(x, float).reshape(1, 1, 1, -1)
    return rotary.rotate(x, np.array([[place]]), base).ravel()


def test_by_hand():
    """Halves are paired: (1, 3) turns by 1 radian a place, (2, 4) by 1/10."""
    found = turned([1, 2, 3, 4], 2)
    c, s, c2, s2 = np.cos(2), np.sin(2), np.cos(0.2), np.sin(0.2)
    expected = [c - 3 * s, 2 * c2 - 4 * s2, 3 * c + s, 4 * c2 + 2 * s2]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-15)


def test_place_0_is_as_projected():
    assert turned([1, 2, 3, 4], 0).tolist() == [1, 2, 3, 4]


def test_only_the_difference_of_places_matters():
    rng = np.random.default_rng(0)
    query, key = rng.normal(size=(2, 8))
    near = turned(query, 7) @ turned(key, 3)
    for shift in (1, 50, 4000):
        far = turned(query, 7 + shift) @ turned(key, 3 + shift)
        assert abs(near - far) < 1e-11


def test_lengths_stay():
    x = np.random.default_rng(1).normal(size=6)
    assert np.isclose(np.linalg.norm(turned(x, 13)), np.linalg.norm(x))


def test_the_dtype_stays():
    x = np.ones((1, 2, 3, 4), np.float32)
    assert rotary.rotate(x, np.array([[0, 9]]), 1e4).dtype == np.float32
