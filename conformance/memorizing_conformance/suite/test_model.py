"""The whole model over a stream: layers, rules between segments, and order.

Each rule has parameters that leave it alone in view: gates opened or shut, output
kernels set to zero, scales turned around.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memorizing_conformance import models
from memorizing_conformance.comparison import assert_close, assert_equal
from memorizing_conformance.models import EXHAUSTIVE, MAIN, changed, read
from memorizing_conformance.readings import (
    OPEN,
    SHUT,
    assert_as_expected,
    assert_same_logits,
    draw,
    draw_varied,
    logits_without_attention,
)

pytestmark = [
    pytest.mark.level("model"),
    pytest.mark.needs("model", "exact_search"),
]


@pytest.mark.rule("ORD-1")
@given(seed=st.integers(0, 9999))
def test_reads_as_the_reference_does(implementation, seed):
    """Everything together."""
    assert_as_expected(implementation, MAIN, *draw_varied(MAIN, seed))


@pytest.mark.rule("MOD-1")
@given(seed=st.integers(0, 9999))
def test_a_first_segment_reads_as_in_the_reference(implementation, seed):
    """Nothing is cached or remembered yet."""
    assert_as_expected(implementation, MAIN, *draw(MAIN, seed, num_segments=1))


@pytest.mark.rule("MOD-1")
def test_without_attention_it_is_a_stack_of_mlps(implementation):
    """Written out here, apart from the reference."""
    parameters, segments = draw(MAIN, 1)
    parameters = changed(parameters, "output_kernel", 0)
    found = read(implementation, MAIN, parameters, segments[:1])
    tokens, _, num_tokens, _, _ = segments[0]
    logits = logits_without_attention(parameters, tokens)
    assert_close(found[0], models.without_padding(logits, num_tokens), "logits")


@pytest.mark.rule("MOD-2")
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_the_norm_keeps_its_epsilon(implementation, size):
    """An embedding of size 1e-3 has a mean square of 1e-6, as much as epsilon."""
    parameters, segments = draw(MAIN, 2)
    for kind in ("output_kernel", "mlp_out_kernel"):
        parameters = changed(parameters, kind, 0)
    parameters = changed(parameters, "embedding", lambda array: size * array)
    parameters = changed(parameters, "final_norm_gain", lambda gain: gain / size)
    found = read(implementation, MAIN, parameters, segments[:1])
    tokens, _, num_tokens, _, _ = segments[0]
    logits = logits_without_attention(parameters, tokens)
    assert_close(found[0], models.without_padding(logits, num_tokens), "logits")


@pytest.mark.rule("MOD-2")
def test_each_norm_has_its_gain(implementation):
    parameters, segments = draw(MAIN, 3)
    rng = np.random.default_rng(3)
    for kind in ("attention_norm_gain", "mlp_norm_gain", "final_norm_gain"):
        parameters = changed(
            parameters, kind, lambda gain: rng.uniform(-2, 2, gain.shape)
        )
    assert_as_expected(implementation, MAIN, parameters, segments)


@pytest.mark.rule("MOD-4")
@pytest.mark.parametrize("layers", [(0, 2), (1,)], ids=["0 and 2", "1"])
def test_the_named_layers_own_their_memories(implementation, layers):
    """With gates open, memory is all that those layers read."""
    config = MAIN | {"memory_layers": layers}
    parameters, segments = draw(config, 4)
    parameters = changed(parameters, "gate_bias", OPEN)
    assert_as_expected(implementation, config, parameters, segments)


@pytest.mark.rule("MOD-5")
def test_room_to_spare_changes_nothing(implementation):
    """As long as all pairs fit and all are retrieved, M and k do not matter."""
    parameters, segments = draw(EXHAUSTIVE, 5)
    # The memory of 16 has met 14 pairs when the third segment is read.
    found = [
        read(implementation, EXHAUSTIVE | sizes, parameters, segments)
        for sizes in ({}, {"memory_size": 29, "top_k": 19})
    ]
    assert_same_logits(found[1], found[0])


@pytest.mark.rule("QKN-1")
@pytest.mark.rule("MEM-9")
def test_cache_and_memory_hold_the_same_pairs(implementation):
    """At a second segment's first position both hold the first segment's 7 pairs.

    With no position bias both are read alike, and the gate makes no difference
    there. Only layer 0 attends: its keys do not depend on any gate.
    """
    parameters, segments = draw(EXHAUSTIVE, 6)
    parameters = changed(parameters, "relative_bias", 0)
    for name in ("layers.1.output_kernel", "layers.2.output_kernel"):
        parameters = changed(parameters, name, 0)
    shut, opened = (
        read(
            implementation,
            EXHAUSTIVE,
            changed(parameters, "gate_bias", gate_bias),
            segments[:2],
        )[1][0]
        for gate_bias in (SHUT, OPEN)
    )
    assert_close(opened[0], shut[0], "logits of the first position")
    # Later positions also see their own segment, which memory does not hold.
    assert np.abs(opened[-1] - shut[-1]).max() > 0.01, "the gate makes no difference"


@pytest.mark.rule("QKN-2")
@pytest.mark.parametrize("kind", ["query_kernel", "key_kernel"])
def test_the_length_of_queries_and_keys_does_not_matter(implementation, kind):
    parameters, segments = draw(EXHAUSTIVE, 7)
    longer = changed(parameters, kind, lambda kernel: 64 * kernel)
    found = [
        read(implementation, EXHAUSTIVE, p, segments) for p in (parameters, longer)
    ]
    # Epsilon is 1e-6 of a squared length near one, and matters that much.
    for one, other in zip(*found, strict=True):
        assert_close(other, one, "logits", tolerance=1e-4)


@pytest.mark.rule("QKN-2")
@pytest.mark.rule("MEM-7")
def test_values_are_not_normalized(implementation):
    """Doubled values are halved again by the output kernel."""
    parameters, segments = draw(EXHAUSTIVE, 8)
    doubled = changed(parameters, "value_kernel", lambda kernel: 2 * kernel)
    doubled = changed(doubled, "output_kernel", lambda kernel: kernel / 2)
    found = [
        read(implementation, EXHAUSTIVE, p, segments) for p in (parameters, doubled)
    ]
    assert_same_logits(*found)


@pytest.mark.rule("QKN-2")
@pytest.mark.parametrize("kind", ["query_kernel", "key_kernel"])
def test_normalization_keeps_its_epsilon(implementation, kind):
    """Vectors of length 1e-3 have a square of 1e-6, as much as epsilon."""
    parameters, segments = draw(EXHAUSTIVE, 9)
    parameters = changed(parameters, kind, lambda kernel: 1e-3 * kernel)
    assert_as_expected(implementation, EXHAUSTIVE, parameters, segments)


@pytest.mark.rule("QKN-3")
def test_the_sign_of_the_scale_does_not_matter(implementation):
    parameters, segments = draw(EXHAUSTIVE, 10)
    turned = changed(parameters, "attention_scale", lambda scale: -scale)
    found = [
        read(implementation, EXHAUSTIVE, p, segments) for p in (parameters, turned)
    ]
    assert_same_logits(*found)


@pytest.mark.rule("QKN-3")
def test_the_scale_touches_no_stored_key(implementation):
    """With gates open, a scale that is stored as well would count twice."""
    parameters, segments = draw(EXHAUSTIVE, 28)
    parameters = changed(parameters, "gate_bias", OPEN)
    assert_as_expected(implementation, EXHAUSTIVE, parameters, segments)


@pytest.mark.rule("SEG-2")
def test_rows_are_independent(implementation):
    """Exchanging the rows exchanges the logits."""
    parameters, segments = draw_varied(MAIN, 26)
    turned = [tuple(part[::-1].copy() for part in segment) for segment in segments]
    found = read(implementation, MAIN, parameters, segments)
    other = read(implementation, MAIN, parameters, turned)
    assert_same_logits([one[::-1] for one in other], found)


@pytest.mark.rule("SEG-2")
@pytest.mark.parametrize("gate_bias", [OPEN, SHUT], ids=["memory", "cache"])
def test_another_row_does_not_matter(implementation, gate_bias):
    """Row 0 reads the same beside one long document and beside many short ones."""
    parameters = models.draw_parameters(MAIN, 29)
    parameters = changed(parameters, "gate_bias", gate_bias)
    document, long = models.draw_documents(29, [35, 41])
    found = [
        read(
            implementation, MAIN, parameters, models.cut(MAIN, [document, *others])[:5]
        )
        for others in (
            [long],
            [long[:5], long[5:8], long[8:21], long[21:22], long[22:]],
        )
    ]
    assert_same_logits([one[0] for one in found[1]], [one[0] for one in found[0]])


@pytest.mark.rule("SEG-1")
@pytest.mark.rule("SEG-2")
def test_logits_have_the_agreed_shape(implementation):
    parameters, segments = draw(MAIN, 27)
    state = implementation.init_model(MAIN, parameters, models.BATCH)
    logits, _ = implementation.forward(state, *segments[0][:3])
    assert np.asarray(logits).shape == (2, 7, 41)
    assert_equal(np.isfinite(np.asarray(logits)[0]), np.ones((7, 41), bool), "finite")
