"""The whole model over a stream: layers, rules between segments, and order.

Each rule has parameters that leave it alone in view: gates opened or shut, output
kernels set to zero, scales turned around.
"""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from memorizing_conformance import models
from memorizing_conformance.comparison import assert_close, assert_equal
from memorizing_conformance.models import EXHAUSTIVE, LONG, MAIN, changed, read

pytestmark = [
    pytest.mark.level("model"),
    pytest.mark.needs("model", "exact_search"),
]

OPEN, SHUT = 1000.0, -1000.0


def assert_as_expected(implementation, config, parameters, segments):
    expected, gap = models.expected(config, parameters, segments)
    # Closer than this, float32 may rightly choose another neighbor.
    assume(gap > models.MIN_GAP)
    found = read(implementation, config, parameters, segments)
    assert_same_logits(found, expected)


def assert_same_logits(found, expected):
    for step, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert_close(one, other, f"segment {step}: logits")


def draw(config, seed, num_segments=3):
    """Parameters, and full segments of one document a row.

    Three segments insert no more than the memory holds. Resets, padding and wraps
    are left to the rules that they belong to.
    """
    length = num_segments * config["segment_length"]
    segments = models.cut(config, models.draw_documents(seed, [length] * models.BATCH))
    return models.draw_parameters(config, seed), segments


def draw_varied(config, seed):
    """Parameters, and documents of all lengths: resets, padding and wraps."""
    segments = models.cut(config, models.draw_documents(seed))
    return models.draw_parameters(config, seed), segments


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


def logits_without_attention(parameters, tokens):
    p = {name: array.astype(np.float64) for name, array in parameters.items()}
    x = p["embedding"][tokens]
    for i in range(MAIN["num_layers"]):
        layer = f"layers.{i}."
        inside = normed(x, p[layer + "mlp_norm_gain"]) @ p[layer + "mlp_in_kernel"]
        x = x + np.maximum(inside, 0) @ p[layer + "mlp_out_kernel"]
    x = normed(x, p["final_norm_gain"])
    return x @ p["embedding"].T / np.sqrt(MAIN["model_dim"])


def normed(x, gain):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * gain


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


@pytest.mark.rule("GATE-1")
def test_memory_attention_is_its_own_softmax(implementation):
    """With gates open, nothing local counts: no bias of layers 0 and 2 does."""
    parameters, segments = draw(EXHAUSTIVE, 22)
    parameters = changed(parameters, "gate_bias", OPEN)
    parameters = changed(parameters, "layers.1.output_kernel", 0)
    biased = changed(parameters, "relative_bias", lambda bias: 6 * bias + 1)
    found = [
        read(implementation, EXHAUSTIVE, p, segments) for p in (parameters, biased)
    ]
    assert_same_logits(*found)
    silent = changed(parameters, "output_kernel", 0)
    without = read(implementation, EXHAUSTIVE, silent, segments[:2])
    assert np.abs(found[0][1] - without[1]).max() > 0.01, "memory was not read"


@pytest.mark.rule("GATE-2")
def test_the_gate_applies_without_a_memory(implementation):
    """With memory_size 0 a gate of one half leaves half of the local output."""
    off = EXHAUSTIVE | {"memory_size": 0}
    parameters, segments = draw(off, 23)
    half = changed(parameters, "gate_bias", 0)
    shut = changed(parameters, "gate_bias", SHUT)
    for name in ("layers.0.output_kernel", "layers.2.output_kernel"):
        shut = changed(shut, name, lambda kernel: kernel / 2)
    found = [read(implementation, off, p, segments) for p in (half, shut)]
    assert_same_logits(*found)


@pytest.mark.rule("GATE-3")
def test_the_gate_weighs_head_by_head(implementation):
    parameters, segments = draw(MAIN, 24)
    parameters = changed(
        parameters, "gate_bias", lambda bias: np.array([1.5, -1.5]) + 0 * bias
    )
    assert_as_expected(implementation, MAIN, parameters, segments)


@pytest.mark.rule("GATE-3")
def test_a_shut_gate_leaves_local_attention(implementation):
    """What the memory holds then makes no difference: not even how large it is."""
    parameters, segments = draw(EXHAUSTIVE, 25)
    parameters = changed(parameters, "gate_bias", SHUT)
    found = [
        read(implementation, EXHAUSTIVE | sizes, parameters, segments)
        for sizes in ({}, {"memory_size": 0})
    ]
    assert_same_logits(*found)


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
