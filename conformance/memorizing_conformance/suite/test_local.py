"""What a query sees of the cache and its own segment, and with which bias.

A bias of -200 leaves a position no weight at all (exp(-200) is 0 in float32), so
biases pick out single distances, and what is read is exactly what stands there.
"""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memorizing_conformance import strategies
from memorizing_conformance.comparison import assert_close, assert_equal
from memorizing_conformance.reference_adapter import Oracle

pytestmark = [pytest.mark.level("attention"), pytest.mark.needs("attention")]
BATCH, LENGTH, CACHE, HEADS, DIM = 2, 7, 5, 3, 4
NO_BIAS = np.zeros((HEADS, 32), np.float32)
ONES = np.ones(HEADS, np.float32)


def values_of(position):
    """Values that say where they stand: the position, in every component."""
    shape = (BATCH, CACHE + LENGTH, HEADS, DIM)
    return np.broadcast_to(
        np.asarray(position, np.float32)[None, :, None, None], shape
    ).copy()


def mean_position(implementation, *, window, num_cached, bias=NO_BIAS):
    """Returns the mean position that each query sees; keys are zero, so all weigh one.

    Positions are 1 to 5 in the cache and 6 to 12 in the segment.
    """
    values = values_of(np.arange(1, CACHE + LENGTH + 1))
    output = np.asarray(
        implementation.attend_local(
            np.ones((BATCH, LENGTH, HEADS, DIM), np.float32),
            np.zeros_like(values),
            values,
            np.array(num_cached),
            local_window=window,
            relative_bias=bias,
            attention_scale=ONES,
        )
    )
    assert output.shape == (BATCH, LENGTH, HEADS, DIM)
    assert_close(output, output[:, :, :1, :1] + 0 * output, "every component")
    return output[:, :, 0, 0]


@pytest.mark.rule("LOC-1")
@pytest.mark.parametrize("window", [1, 2, 3, 7, 12])
def test_sees_its_window_strictly_before_itself(implementation, window):
    found = mean_position(implementation, window=window, num_cached=[5, 5])
    for i in range(LENGTH):
        own = CACHE + 1 + i
        seen = range(max(1, own - window), own)
        assert_close(found[:, i], [sum(seen) / len(seen)] * 2, f"query {i}: mean")


@pytest.mark.rule("LOC-1")
def test_the_window_ends_where_it_should(implementation):
    # Of distances 1 to 3 only one keeps its weight; beyond the window none can.
    for distance in (1, 2, 3, 4):
        bias = np.full((HEADS, 32), -200, np.float32)
        bias[:, distance] = 0
        found = mean_position(implementation, window=3, num_cached=[5, 5], bias=bias)
        for i in range(LENGTH):
            own = CACHE + 1 + i
            # Where distance 4 is out of sight all seen positions weigh the same.
            expected = own - distance if distance <= 3 else own - 2
            assert_close(found[:, i], [expected] * 2, f"distance {distance}, query {i}")


@pytest.mark.rule("LOC-1")
@given(seed=st.integers(0, 9999), position=st.integers(0, LENGTH - 1))
def test_the_future_changes_nothing(implementation, seed, position):
    rng = np.random.default_rng(seed)
    arguments = draw_local(rng)
    before = np.asarray(attend(implementation, **arguments))
    changed = dict(arguments)
    for name in ("local_keys", "local_values"):
        changed[name] = arguments[name].copy()
        later = changed[name][:, CACHE + position :]
        changed[name][:, CACHE + position :] = strategies.grid_array(rng, later.shape)
    after = np.asarray(attend(implementation, **changed))
    # A position is no part of its own past: query `position` is unchanged as well.
    assert_equal(
        after[:, : position + 1], before[:, : position + 1], "what came before"
    )


@pytest.mark.rule("LOC-2")
def test_the_cache_comes_before_the_segment(implementation):
    # The first query's neighbors at distances 1 to 3 are cache positions 5, 4, 3.
    for distance in (1, 2, 3):
        bias = np.full((HEADS, 32), -200, np.float32)
        bias[:, distance] = 0
        found = mean_position(implementation, window=12, num_cached=[5, 5], bias=bias)
        assert_close(found[:, 0], [6 - distance] * 2, f"distance {distance}")


@pytest.mark.rule("LOC-2")
def test_works_without_a_cache(implementation):
    values = values_of(np.arange(1, CACHE + LENGTH + 1))[:, CACHE:]
    output = implementation.attend_local(
        np.ones((BATCH, LENGTH, HEADS, DIM), np.float32),
        np.zeros_like(values),
        values,
        np.array([0, 0]),
        local_window=2,
        relative_bias=NO_BIAS,
        attention_scale=ONES,
    )
    # Nothing; 6; the mean of 6 and 7; of 7 and 8; ...
    expected = [0, 6, 6.5, 7.5, 8.5, 9.5, 10.5]
    assert_close(np.asarray(output)[0, :, 0, 0], expected, "mean position")


@pytest.mark.rule("LOC-3")
@pytest.mark.parametrize("num_cached", [[0, 5], [3, 1], [2, 4]])
def test_what_is_not_cached_takes_no_weight(implementation, num_cached):
    found = mean_position(implementation, window=12, num_cached=num_cached)
    for row in range(BATCH):
        for i in range(LENGTH):
            seen = range(CACHE + 1 - num_cached[row], CACHE + 1 + i)
            expected = sum(seen) / len(seen) if seen else 0.0
            assert_close(found[row, i], expected, f"row {row}, query {i}: mean")


@pytest.mark.rule("LOC-3")
@given(seed=st.integers(0, 9999), cached=st.integers(0, CACHE - 1))
def test_what_stands_in_the_empty_cache_does_not_matter(implementation, seed, cached):
    arguments = draw_local(np.random.default_rng(seed))
    arguments["num_cached"] = np.array([cached, CACHE])
    before = np.asarray(attend(implementation, **arguments))
    for name in ("local_keys", "local_values"):
        arguments[name] = arguments[name].copy()
        arguments[name][0, : CACHE - cached] = 100.0
    after = np.asarray(attend(implementation, **arguments))
    assert_equal(after, before, "local_output")


@pytest.mark.rule("LOC-4")
@given(seed=st.integers(0, 9999), window=st.sampled_from([3, 12]))
def test_reads_what_the_reference_reads(implementation, seed, window):
    arguments = draw_local(np.random.default_rng(seed)) | {"local_window": window}
    found = attend(implementation, **arguments)
    assert_close(found, attend(Oracle(), **arguments), "local_output")


@pytest.mark.rule("LOC-4")
def test_the_scale_multiplies_score_and_bias(implementation):
    # Query 2 sees distance 1 (score 1, bias 0) and 2 (score 0, bias b), scale 2.
    # With b = 1 - ln(3)/2 the logits differ by ln 3: weights 3/4 and 1/4.
    output = attend_to_two(implementation, 1 - math.log(3) / 2, scale=2)
    assert_close(output, 0.75 * 8 + 0.25 * 4, "local_output")


@pytest.mark.rule("LOC-4")
@pytest.mark.rule("QKN-3")
def test_the_scale_may_be_negative(implementation):
    output = attend_to_two(implementation, 1 - math.log(3) / 2, scale=-2)
    assert_close(output, 0.75 * 8 + 0.25 * 4, "local_output")


def attend_to_two(implementation, bias, scale):
    """Query 2 of 3 sees the values 8 at distance 1 and 4 at distance 2."""
    keys = np.array([0, 1, 0], np.float32).reshape(1, 3, 1, 1)
    values = np.array([4, 8, 1000], np.float32).reshape(1, 3, 1, 1)
    relative_bias = np.zeros((1, 32), np.float32)
    relative_bias[0, 2] = bias
    output = implementation.attend_local(
        np.ones((1, 3, 1, 1), np.float32),
        keys,
        values,
        np.array([0]),
        local_window=3,
        relative_bias=relative_bias,
        attention_scale=np.array([scale], np.float32),
    )
    return np.asarray(output)[0, 2, 0, 0]


@pytest.mark.rule("LOC-6")
def test_a_query_that_sees_nothing_reads_zeros(implementation):
    arguments = draw_local(np.random.default_rng(0))
    arguments["num_cached"] = np.array([0, 1])
    output = np.asarray(attend(implementation, **arguments))
    assert_equal(output[0, 0], np.zeros((HEADS, DIM)), "query 0 of an empty row")
    assert np.abs(output[1, 0]).min() > 0, "query 0 of a row with a cache"


def draw_local(rng):
    """Arguments of attend_local: a half-full cache, biases and scales of all kinds."""
    local = (BATCH, CACHE + LENGTH, HEADS, DIM)
    return {
        "queries": strategies.grid_array(rng, (BATCH, LENGTH, HEADS, DIM)),
        "local_keys": strategies.grid_array(rng, local),
        "local_values": strategies.grid_array(rng, local),
        "num_cached": rng.integers(0, CACHE + 1, BATCH),
        "local_window": 12,
        "relative_bias": strategies.grid_array(rng, (HEADS, 32)),
        "attention_scale": np.array([0.5, -0.75, 1], np.float32),
    }


def attend(implementation, queries, local_keys, local_values, num_cached, **rest):
    return implementation.attend_local(
        queries, local_keys, local_values, num_cached, **rest
    )
