"""Rules of the paper's model that hold for a pre-trained one as well."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memorizing_conformance import models, reference_model
from memorizing_conformance.comparison import (
    GRADIENT_TOLERANCE,
    assert_close,
    assert_equal,
)
from memorizing_conformance.models import read
from memorizing_conformance.pretrained import EVERYTHING, GATED, JOINT
from memorizing_conformance.readings import assert_same_logits, draw, draw_varied

pytestmark = [
    pytest.mark.level("model"),
    pytest.mark.needs("model", "pretrained", "exact_search"),
]
BOTH = pytest.mark.parametrize("config", [JOINT, GATED], ids=["joint", "gate"])


@pytest.mark.rule("MEM-4")
@pytest.mark.rule("PRE-9")
@BOTH
@given(seed=st.integers(0, 9999), place=st.integers(0, 29))
def test_a_token_does_not_change_its_past(implementation, config, seed, place):
    parameters, segments = draw(config, seed, num_segments=5)
    step, position = divmod(place, config["segment_length"])
    before = read(implementation, config, parameters, segments)
    tokens, *rest = segments[step]
    other = tokens.copy()
    other[0, position] = (tokens[0, position] + 1) % config["vocab_size"]
    segments[step] = (other, *rest)
    after = read(implementation, config, parameters, segments)
    for earlier in range(step):
        assert_close(after[earlier], before[earlier], f"logits of segment {earlier}")
    past = slice(0, position)
    assert_close(after[step][0, past], before[step][0, past], "logits before it")
    assert_close(after[step][1], before[step][1], "logits of the other row")


@pytest.mark.rule("SEG-4")
@pytest.mark.rule("MEM-6")
@BOTH
def test_what_stands_in_padding_does_not_matter(implementation, config):
    parameters, segments = draw_varied(config | EVERYTHING, 1)
    rng = np.random.default_rng(1)
    garbage = []
    for tokens, start, num_tokens, *rest in segments:
        real = np.arange(tokens.shape[1])[None, :] < num_tokens[:, None]
        other = np.where(real, tokens, rng.integers(0, 41, tokens.shape))
        garbage.append((other, start, num_tokens, *rest))
    clean = read(implementation, config, parameters, segments)
    assert_same_logits(read(implementation, config, parameters, garbage), clean)


@pytest.mark.rule("MEM-7")
@pytest.mark.needs("replace_parameters")
@BOTH
def test_stored_pairs_go_stale(implementation, config):
    """In sinks, cache and memory, on their way from one to the other too."""
    config = config | EVERYTHING
    old, segments = draw(config, 2, num_segments=5)
    new = models.draw_parameters(config, 3)
    found = []
    for one in (implementation, models.Oracle()):
        state = one.init_model(config, old, models.BATCH)
        for segment in segments[:3]:
            _, state = one.forward(state, *segment[:3])
        state = one.replace_parameters(state, new)
        for segment in segments[3:]:
            logits, state = one.forward(state, *segment[:3])
            found.append(np.array(logits))
    assert_same_logits(found[:2], found[2:])


@pytest.mark.rule("MEM-8")
@pytest.mark.rule("LOC-7")
@pytest.mark.needs("model_gradients")
@BOTH
def test_the_gradient_is_the_slope_with_the_state_held_fixed(implementation, config):
    """Sinks, cache and memory came from these parameters, and are constants."""
    small = {"num_layers": 1, "memory_layers": (0,), "model_dim": 5, "mlp_dim": 3}
    config = config | EVERYTHING | small
    parameters, segments = draw(config, 4, num_segments=4)
    states = []
    for one in (implementation, models.Oracle()):
        state = one.init_model(config, parameters, models.BATCH)
        for segment in segments[:3]:
            _, state = one.forward(state, *segment[:3])
        states.append(state)
    loss, gradients = implementation.model_gradients(states[0], *segments[3])
    state = states[1]
    expected = reference_model.segment_loss(state.parameters, state, *segments[3])
    assert_close(float(loss), expected, "loss")
    rng = np.random.default_rng(4)
    for name, array in state.parameters.items():
        direction = rng.standard_normal(array.shape)
        losses = []
        for size in (1e-5, -1e-5):
            moved = state.parameters | {name: array + size * direction}
            losses.append(reference_model.segment_loss(moved, state, *segments[3]))
        found = (np.asarray(gradients[name], np.float64) * direction).sum()
        slope = (losses[0] - losses[1]) / 2e-5
        assert_close(found, slope, f"slope along {name}", GRADIENT_TOLERANCE)


@pytest.mark.rule("GEN-1")
@pytest.mark.level("generation")
@pytest.mark.needs("generation")
@BOTH
def test_decoding_gives_the_logits_of_segments(implementation, config):
    config = config | EVERYTHING
    parameters = models.draw_parameters(config, 5)
    first, second = models.draw_documents(5, [27, 31])
    # Row 0 begins another document in the middle of row 1's segment.
    rows = [[first, second[:4]], [second]]
    tokens = np.stack([np.concatenate(documents) for documents in rows])
    starts = np.zeros(tokens.shape, bool)
    starts[:, 0] = starts[0, 27] = True
    state = implementation.init_model(config, parameters, 2)
    found = []
    for token, start in zip(tokens.T, starts.T, strict=True):
        logits, state = implementation.decode(state, token, start)
        found.append(np.array(logits))
    for row, documents in enumerate(rows):
        segments = models.cut(config, documents, batch=1)
        logits = read(models.Oracle(), config, parameters, segments)
        expected = [a[0, : s[2][0]] for a, s in zip(logits, segments, strict=True)]
        assert_close(
            np.stack(found, axis=1)[row], np.concatenate(expected), f"row {row}: logits"
        )


@pytest.mark.rule("CKP-1")
@pytest.mark.level("resume")
@pytest.mark.needs("save_restore")
@BOTH
@pytest.mark.parametrize("stop", [1, 4])
def test_a_model_goes_on_bit_for_bit(implementation, tmp_path, config, stop):
    parameters, segments = draw_varied(config, 6)
    expected = read(implementation, config, parameters, segments)
    state = implementation.init_model(config, parameters, models.BATCH)
    for step, segment in enumerate(segments):
        if step == stop:
            implementation.save(state, tmp_path / "state")
            state = implementation.restore(tmp_path / "state")
        logits, state = implementation.forward(state, *segment[:3])
        found = models.without_padding(logits, segment[2])
        assert_equal(found, expected[step], f"segment {step}: logits")


@pytest.mark.rule("SEG-5")
@pytest.mark.level("resume")
@pytest.mark.needs("evaluation")
def test_perplexity_is_of_all_predicted_tokens(implementation):
    config = JOINT | EVERYTHING
    parameters = models.draw_parameters(config, 7)
    documents = models.draw_documents(7, [1, 9, 34, 16])
    expected, count = models.Oracle().evaluate(config, parameters, documents, 2)
    found, predicted = implementation.evaluate(config, parameters, documents, 2)
    assert predicted == count == 8 + 33 + 15
    assert_close(np.log(found), np.log(expected), "nats per token")
