"""What the model carries from segment to segment, and what it leaves behind."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memorizing_conformance import models
from memorizing_conformance.comparison import assert_close
from memorizing_conformance.models import EXHAUSTIVE, LONG, MAIN, changed, read
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


@pytest.mark.rule("LOC-1")
@pytest.mark.rule("MEM-4")
@given(seed=st.integers(0, 9999), place=st.integers(0, 20))
def test_a_token_does_not_change_its_past(implementation, seed, place):
    parameters, segments = draw(MAIN, seed)
    step, position = divmod(place, MAIN["segment_length"])
    before = read(implementation, MAIN, parameters, segments)
    tokens, *rest = segments[step]
    other = tokens.copy()
    other[0, position] = (tokens[0, position] + 1) % MAIN["vocab_size"]
    segments[step] = (other, *rest)
    after = read(implementation, MAIN, parameters, segments)
    for earlier in range(step):
        assert_close(after[earlier], before[earlier], f"logits of segment {earlier}")
    past = slice(0, position)
    assert_close(after[step][0, past], before[step][0, past], "logits before it")
    assert_close(after[step][1], before[step][1], "logits of the other row")
    now = np.abs(after[step][0, position] - before[step][0, position]).max()
    assert now > 0.01, "the token itself makes no difference"


@pytest.mark.rule("LOC-1")
def test_local_attention_is_as_deep_as_its_window(implementation):
    """With memory shut and one layer attending, 10 back is out of a window of 9."""
    parameters, segments = draw(MAIN, 11)
    parameters = changed(parameters, "gate_bias", SHUT)
    for name in ("layers.1.output_kernel", "layers.2.output_kernel"):
        parameters = changed(parameters, name, 0)
    assert_as_expected(implementation, MAIN, parameters, segments)


@pytest.mark.rule("LOC-2")
@pytest.mark.rule("SEG-1")
def test_where_a_document_is_cut_does_not_matter(implementation):
    """With memory shut and a cache as long as the window, only the past counts."""
    parameters = models.draw_parameters(EXHAUSTIVE, 12)
    parameters = changed(parameters, "gate_bias", SHUT)
    document = models.draw_documents(12, [40])[0]
    found = []
    for lengths in ([7] * 5 + [5], [7, 3, 1, 7, 6, 7, 2, 7]):
        assert sum(lengths) == len(document)
        segments = cut_at(document, lengths)
        logits = read(implementation, EXHAUSTIVE, parameters, segments)
        found.append(
            np.concatenate([one[0, :n] for one, n in zip(logits, lengths, strict=True)])
        )
    assert_close(found[1], found[0], "logits")


def cut_at(document, lengths):
    """One document in row 0, in segments of the given lengths; row 1 stays idle."""
    segments, first = [], 0
    for length in lengths:
        tokens = np.zeros((models.BATCH, EXHAUSTIVE["segment_length"]), np.int64)
        tokens[0, :length] = document[first : first + length]
        start, num_tokens = np.array([first == 0, False]), np.array([length, 0])
        segments.append((tokens, start, num_tokens, tokens, num_tokens))
        first += length
    return segments


@pytest.mark.rule("LOC-3")
def test_the_cache_does_not_cross_documents(implementation):
    """With memory shut, a document reads as it would alone."""
    assert_reads_as_alone(implementation, SHUT, 13)


@pytest.mark.rule("MEM-5")
@pytest.mark.rule("ORD-1")
def test_memory_does_not_cross_documents(implementation):
    """With gates open, a document reads as it would alone."""
    assert_reads_as_alone(implementation, OPEN, 14)


def assert_reads_as_alone(implementation, gate_bias, seed):
    parameters = models.draw_parameters(EXHAUSTIVE, seed)
    parameters = changed(parameters, "gate_bias", gate_bias)
    first, second, other = models.draw_documents(seed, [17, 20, 40])
    after_first = models.cut(EXHAUSTIVE, [first, other, second])
    alone = models.cut(EXHAUSTIVE, [second, other])
    found = read(implementation, EXHAUSTIVE, parameters, after_first)
    expected = read(implementation, EXHAUSTIVE, parameters, alone)
    for step in range(3):
        assert_close(found[3 + step][0], expected[step][0], f"logits of segment {step}")
        # The other row went on all the while.
        assert_close(found[step][1], expected[step][1], f"row 1, segment {step}")


@pytest.mark.rule("MEM-1")
@pytest.mark.rule("MEM-2")
@pytest.mark.needs("long_segments")
def test_long_segments_overflow_the_memory(implementation):
    parameters, segments = draw(LONG, 15)
    assert_as_expected(implementation, LONG, parameters, segments)


@pytest.mark.rule("MEM-4")
@pytest.mark.rule("ORD-1")
@pytest.mark.rule("GATE-2")
def test_a_first_segment_has_nothing_to_remember(implementation):
    """With gates open the memory layers read an empty memory: zeros.

    Layer 1 is silenced, so that no layer attends at all.
    """
    parameters, segments = draw(MAIN, 16)
    silent = changed(parameters, "layers.1.output_kernel", 0)
    found = read(implementation, MAIN, changed(silent, "gate_bias", OPEN), segments[:1])
    tokens, _, num_tokens, _, _ = segments[0]
    expected = logits_without_attention(parameters, tokens)
    assert_close(found[0], models.without_padding(expected, num_tokens), "logits")


@pytest.mark.rule("MEM-6")
@pytest.mark.rule("SEG-4")
@given(seed=st.integers(0, 9999))
def test_what_stands_in_padding_does_not_matter(implementation, seed):
    parameters, segments = draw_varied(EXHAUSTIVE, 17)
    rng = np.random.default_rng(seed)
    garbage = []
    for tokens, start, num_tokens, *rest in segments:
        real = np.arange(tokens.shape[1])[None, :] < num_tokens[:, None]
        other = np.where(real, tokens, rng.integers(0, 41, tokens.shape))
        garbage.append((other, start, num_tokens, *rest))
    clean = read(implementation, EXHAUSTIVE, parameters, segments)
    assert_same_logits(read(implementation, EXHAUSTIVE, parameters, garbage), clean)


@pytest.mark.rule("MEM-6")
@pytest.mark.rule("SEG-4")
def test_an_idle_segment_changes_nothing(implementation):
    parameters, segments = draw_varied(EXHAUSTIVE, 18)
    nobody = np.zeros(models.BATCH, np.int64)
    tokens = np.full_like(segments[0][0], 3)
    idle = (tokens, nobody.astype(bool), nobody, tokens, nobody)
    found = read(
        implementation, EXHAUSTIVE, parameters, [*segments[:3], idle, *segments[3:]]
    )
    del found[3]
    assert_same_logits(found, read(implementation, EXHAUSTIVE, parameters, segments))


@pytest.mark.rule("MEM-7")
@pytest.mark.needs("replace_parameters")
def test_stored_pairs_go_stale(implementation):
    """Other parameters read what the old ones stored, as it was stored."""
    old, segments = draw(EXHAUSTIVE, 19)
    new = models.draw_parameters(EXHAUSTIVE, 20)
    found = []
    for one in (implementation, models.Oracle()):
        state = one.init_model(EXHAUSTIVE, old, models.BATCH)
        for segment in segments[:2]:
            _, state = one.forward(state, *segment[:3])
        state = one.replace_parameters(state, new)
        for segment in segments[2:]:
            logits, state = one.forward(state, *segment[:3])
            found.append(models.without_padding(logits, segment[2]))
    assert_same_logits(found[:1], found[1:])


@pytest.mark.rule("MEM-10")
@pytest.mark.needs("bfloat16_memory")
def test_a_bfloat16_memory_is_close(implementation):
    """Rounding moves logits, by about as much as eight bits allow."""
    parameters, segments = draw(EXHAUSTIVE, 21)
    found = [
        read(implementation, EXHAUSTIVE | dtype, parameters, segments)
        for dtype in ({"memory_dtype": "float32"}, {"memory_dtype": "bfloat16"})
    ]
    differences = [np.abs(a - b).max() for a, b in zip(*found, strict=True)]
    assert differences[0] == 0, "the first segments read no memory"
    assert 1e-5 < max(differences) < 0.2, differences
