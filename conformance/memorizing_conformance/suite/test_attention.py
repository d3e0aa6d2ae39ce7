"""What a query reads from memory, and how the gate mixes it with local context."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memorizing_conformance import strategies
from memorizing_conformance.comparison import assert_close, assert_equal
from memorizing_conformance.reference_adapter import Oracle
from memorizing_conformance.strategies import WRAPPING

pytestmark = [pytest.mark.level("attention"), pytest.mark.needs("attention")]

ONE = np.ones(1, np.float32)


def read(implementation, keys, values, query, scale, top_k):
    """Stores up to three pairs of one head and returns what one query reads."""
    count = len(keys)
    padded = [*keys] + [50.0] * (3 - count), [*values] + [1000.0] * (3 - count)
    pairs = [np.array(part, np.float32).reshape(1, 3, 1, 1) for part in padded]
    state = implementation.init(
        batch=1, memory_size=5, num_heads=1, head_dim=1, top_k=top_k
    )
    state = implementation.insert(state, *pairs, np.array([count]))
    queries = np.full((1, 3, 1, 1), query, np.float32)
    output = implementation.attend_memory(state, queries, np.array([scale], np.float32))
    return float(np.asarray(output)[0, 0, 0, 0])


@pytest.mark.rule("GATE-1")
@pytest.mark.needs("exact_search")
def test_softmax_of_two_neighbors(implementation):
    # Logits 0 and ln 3: weights 1/4 and 3/4 of the values 0 and 8.
    output = read(implementation, [0, 1], [0, 8], math.log(3), 1, top_k=2)
    assert_close(output, 6.0, "memory_output")


@pytest.mark.rule("GATE-1")
@pytest.mark.needs("exact_search")
def test_only_retrieved_neighbors_are_attended(implementation):
    # Three equal keys, two of them retrieved: the mean of 1 and 3, without 1000.
    output = read(implementation, [1, 1, 1], [1, 3, 1000], 1, 1, top_k=2)
    assert_close(output, 2.0, "memory_output")


@pytest.mark.rule("GATE-1")
@pytest.mark.needs("exact_search")
@given(seed=st.integers(0, 9999))
def test_reads_what_the_reference_reads(implementation, seed):
    scale = np.array([0.5, -1.25, 2], np.float32)
    outputs = []
    for one in (implementation, Oracle()):
        rng = np.random.default_rng(seed)
        state = one.init(**WRAPPING.memory)
        for _ in range(2):
            keys, values, queries = (
                strategies.grid_array(rng, WRAPPING.segment) for _ in range(3)
            )
            state = one.insert(state, keys, values, np.array([7, 7]))
        outputs.append(one.attend_memory(state, queries, scale))
    assert_close(*outputs, "memory_output")


@pytest.mark.rule("GATE-1")
@pytest.mark.needs("exact_search")
def test_large_logits_do_not_overflow(implementation):
    # exp(400) is no float32.
    output = read(implementation, [20, 20, -20], [1, 3, 1000], 20, 1, top_k=3)
    assert_close(output, 2.0, "memory_output")
    # Nor do very negative ones vanish: the softmax is relative to the largest.
    output = read(implementation, [-20, -20], [1, 3], 20, 1, top_k=3)
    assert_close(output, 2.0, "memory_output")


@pytest.mark.rule("GATE-1")
@pytest.mark.rule("MEM-10")
@pytest.mark.needs("exact_search")
def test_softmax_is_not_rounded(implementation):
    # The weights differ by 2**-9 of themselves: one, in eight bits.
    output = read(implementation, [0, 2**-9], [-1, 1], 1, 1, top_k=2)
    assert abs(output - math.tanh(2**-10)) < 1e-6, output


@pytest.mark.rule("GATE-2")
@pytest.mark.parametrize("after", ["nothing", "a reset"])
def test_an_empty_memory_reads_zeros(implementation, after):
    state = implementation.init(**WRAPPING.memory)
    ones = np.ones(WRAPPING.segment, np.float32)
    if after == "a reset":
        state = implementation.insert(state, ones, ones, np.array([7, 7]))
        state = implementation.reset(state, np.array([True, True]))
    output = implementation.attend_memory(state, ones, np.ones(3, np.float32))
    assert_equal(output, np.zeros(WRAPPING.segment), "memory_output")


@pytest.mark.rule("GATE-2")
@pytest.mark.rule("MEM-5")
def test_only_the_empty_row_reads_zeros(implementation):
    state = implementation.init(**WRAPPING.memory)
    ones = np.ones(WRAPPING.segment, np.float32)
    state = implementation.insert(state, ones, ones, np.array([0, 7]))
    output = np.asarray(
        implementation.attend_memory(state, ones, np.ones(3, np.float32))
    )
    assert_equal(output[0], np.zeros_like(output[0]), "memory_output of row 0")
    assert_close(output[1], np.ones_like(output[1]), "memory_output of row 1")


@pytest.mark.rule("GATE-2")
@pytest.mark.rule("GATE-3")
def test_the_gate_applies_to_nothing_too(implementation):
    # Nothing in memory, a gate of one half: half of the local output is left.
    zeros = np.zeros((1, 3, 1, 1), np.float32)
    local = np.full((1, 3, 1, 1), 4, np.float32)
    output = implementation.combine(zeros, local, np.zeros(1, np.float32))
    assert_equal(output, np.full((1, 3, 1, 1), 2.0), "output")


@pytest.mark.rule("GATE-3")
def test_the_gate_weighs_memory(implementation):
    # sigmoid(ln 3) = 3/4 of memory's 8, and 1/4 of the local 4.
    memory_output = np.full((1, 3, 1, 1), 8, np.float32)
    local_output = np.full((1, 3, 1, 1), 4, np.float32)
    gate_bias = np.array([math.log(3)], np.float32)
    output = implementation.combine(memory_output, local_output, gate_bias)
    assert_close(output, np.full((1, 3, 1, 1), 7.0), "output")


@pytest.mark.rule("GATE-3")
@given(seed=st.integers(0, 9999))
def test_each_head_has_its_gate(implementation, seed):
    rng = np.random.default_rng(seed)
    memory_output, local_output = (
        strategies.grid_array(rng, WRAPPING.segment) for _ in range(2)
    )
    # The gate is one half, then as good as open, then as good as shut.
    gate_bias = np.array([0, 40, -40], np.float32)
    output = np.asarray(implementation.combine(memory_output, local_output, gate_bias))
    mean = (memory_output[:, :, 0] + local_output[:, :, 0]) / 2
    assert_equal(output[:, :, 0], mean, "output of head 0")
    assert_close(output[:, :, 1], memory_output[:, :, 1], "output of head 1")
    assert_close(output[:, :, 2], local_output[:, :, 2], "output of head 2")


@pytest.mark.rule("GATE-3")
def test_a_gate_may_be_extreme(implementation):
    memory_output = np.full((1, 3, 1, 1), 8, np.float32)
    local_output = np.full((1, 3, 1, 1), 4, np.float32)
    for gate_bias, expected in ((1000, 8), (-1000, 4)):
        output = implementation.combine(
            memory_output, local_output, np.array([gate_bias], np.float32)
        )
        assert_close(output, np.full((1, 3, 1, 1), float(expected)), "output")


@pytest.mark.rule("QKN-3")
@pytest.mark.needs("exact_search")
@pytest.mark.parametrize("scale", [2, -2])
def test_the_size_of_the_scale_multiplies_logits(implementation, scale):
    # Inner products 0 and ln(3)/2, logits 0 and ln 3: weights 1/4 and 3/4.
    output = read(implementation, [0, 1], [0, 8], math.log(3) / 2, scale, top_k=2)
    assert_close(output, 6.0, "memory_output")


@pytest.mark.rule("QKN-3")
@pytest.mark.needs("exact_search or bucketed_search")
@pytest.mark.parametrize("scale", [0.25, -0.25, -3])
def test_the_scale_does_not_touch_the_search(implementation, scale):
    # Scores 1, 3 and 2. Scaled by a negative number the worst would be best.
    output = read(implementation, [1, 3, 2], [10, 30, 20], 1, scale, top_k=1)
    assert output == 30.0


@pytest.mark.rule("QKN-3")
@pytest.mark.needs("exact_search")
def test_a_scale_of_zero_weighs_equally(implementation):
    output = read(implementation, [1, 3, 2], [10, 30, 20], 1, 0, top_k=2)
    # The two best are 3 and 2, found before the scale came into it.
    assert_close(output, 25.0, "memory_output")


@pytest.mark.rule("QKN-3")
@pytest.mark.needs("exact_search")
def test_each_head_has_its_scale(implementation):
    keys = np.array([[0, 0], [1, 1], [0, 0]], np.float32).reshape(1, 3, 2, 1)
    values = np.array([[0, 0], [8, 8], [0, 0]], np.float32).reshape(1, 3, 2, 1)
    state = implementation.init(
        batch=1, memory_size=5, num_heads=2, head_dim=1, top_k=2
    )
    state = implementation.insert(state, keys, values, np.array([2]))
    queries = np.full((1, 3, 2, 1), math.log(3), np.float32)
    scale = np.array([1, 0], np.float32)
    output = np.asarray(implementation.attend_memory(state, queries, scale))
    # Weights 1/4 and 3/4 in head 0, a half each in head 1.
    assert_close(output[0, 0, :, 0], [6.0, 4.0], "memory_output")


@pytest.mark.rule("MEM-7")
@pytest.mark.needs("exact_search")
def test_stored_keys_are_used_as_they_came(implementation):
    """Whatever comes is stored: a second normalization would change these weights."""
    output = read(implementation, [0, 4], [0, 8], math.log(3) / 4, 1, top_k=2)
    assert_close(output, 6.0, "memory_output")


@pytest.mark.rule("MEM-7")
@pytest.mark.needs("exact_search or bucketed_search")
def test_stored_values_are_raw(implementation):
    assert read(implementation, [1, 2], [3, 700], 1, 1, top_k=1) == 700.0


@pytest.mark.rule("MEM-9")
@pytest.mark.needs("exact_search or bucketed_search")
def test_a_pair_may_be_local_and_remembered(implementation):
    """The same pair, in cache and in memory, is read from both."""
    keys = np.ones((1, 3, 1, 1), np.float32)
    values = np.full((1, 3, 1, 1), 8, np.float32)
    state = implementation.init(
        batch=1, memory_size=5, num_heads=1, head_dim=1, top_k=1
    )
    state = implementation.insert(state, keys, values, np.array([3]))
    from_memory = implementation.attend_memory(state, keys, ONE)
    both = np.concatenate([keys, keys], axis=1)
    from_cache = implementation.attend_local(
        keys,
        both,
        np.concatenate([values, np.zeros_like(values)], axis=1),
        np.array([3]),
        local_window=3,
        relative_bias=np.zeros((1, 32), np.float32),
        attention_scale=ONE,
    )
    # The first query sees only the cache.
    assert_close(np.asarray(from_memory)[0, 0], [[8.0]], "memory_output")
    assert_close(np.asarray(from_cache)[0, 0], [[8.0]], "local_output")
