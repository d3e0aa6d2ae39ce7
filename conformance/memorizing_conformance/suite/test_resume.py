"""What is saved goes on as if it had never stopped, and evaluation is apart."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memorizing_conformance import models
from memorizing_conformance.comparison import assert_close, assert_equal
from memorizing_conformance.models import EXHAUSTIVE, MAIN, TINY
from memorizing_conformance.strategies import WRAPPING

pytestmark = pytest.mark.level("resume")


def saved_and_restored(implementation, state, directory):
    path = directory / "state"
    implementation.save(state, path)
    return implementation.restore(path)


@pytest.mark.rule("CKP-1")
@pytest.mark.needs("save_restore", "attention")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_memory_goes_on(implementation, tmp_path, dtype):
    if dtype == "bfloat16" and "bfloat16_memory" not in implementation.features:
        pytest.skip("lacks bfloat16_memory")
    read = [
        read_memory(implementation, dtype, directory) for directory in (None, tmp_path)
    ]
    assert_equal(read[1], read[0], "memory_output")


def read_memory(implementation, dtype, directory):
    """Reads a stream of four segments, and stops after each if there is a directory."""
    rng = np.random.default_rng(0)
    state = implementation.init(**WRAPPING.memory, memory_dtype=dtype)
    found = []
    for step, lengths in enumerate(([7, 3], [7, 7], [5, 7], [7, 0])):
        # Not on the grid: rounding must show.
        queries, keys, values = rng.standard_normal((3, *WRAPPING.segment))
        state = implementation.reset(state, np.array([False, step == 2]))
        state = implementation.insert(
            state,
            keys.astype(np.float32),
            values.astype(np.float32),
            np.array(lengths),
        )
        if directory is not None:
            (directory / str(step)).mkdir()
            state = saved_and_restored(implementation, state, directory / str(step))
        output = implementation.attend_memory(
            state, queries.astype(np.float32), np.ones(3, np.float32)
        )
        found.append(np.array(output))
    return np.stack(found)


@pytest.mark.rule("CKP-1")
@pytest.mark.needs("model", "save_restore")
@pytest.mark.parametrize("stop", [1, 4])
def test_a_model_goes_on_bit_for_bit(implementation, tmp_path, stop):
    parameters = models.draw_parameters(MAIN, 0)
    segments = models.cut(MAIN, models.draw_documents(0))
    assert len(segments) > stop + 3
    expected = models.read(implementation, MAIN, parameters, segments)
    state = implementation.init_model(MAIN, parameters, models.BATCH)
    for step, segment in enumerate(segments):
        if step == stop:
            state = saved_and_restored(implementation, state, tmp_path)
        logits, state = implementation.forward(state, *segment[:3])
        found = models.without_padding(logits, segment[2])
        assert_equal(found, expected[step], f"segment {step}: logits")


@pytest.mark.rule("CKP-1")
@pytest.mark.needs("model", "save_restore", "generation")
@pytest.mark.parametrize("stop", [3, 7, 10])
def test_decoding_goes_on(implementation, tmp_path, stop):
    parameters = models.draw_parameters(MAIN, 1)
    rows = np.stack(models.draw_documents(1, [20, 20]))
    found = []
    for stops in (False, True):
        state = implementation.init_model(MAIN, parameters, models.BATCH)
        logits = []
        for step in range(16):
            if stops and step == stop:
                state = saved_and_restored(implementation, state, tmp_path)
            one, state = implementation.decode(
                state, rows[:, step], np.array([step == 0] * 2)
            )
            logits.append(np.array(one))
        found.append(np.stack(logits))
    assert_equal(found[1], found[0], "logits")


@pytest.mark.rule("CKP-1")
@pytest.mark.needs("model", "save_restore")
def test_saving_changes_nothing(implementation, tmp_path):
    parameters = models.draw_parameters(MAIN, 2)
    segments = models.cut(MAIN, models.draw_documents(2))[:4]
    expected = models.read(implementation, MAIN, parameters, segments)
    state = implementation.init_model(MAIN, parameters, models.BATCH)
    for step, segment in enumerate(segments):
        implementation.save(state, tmp_path / str(step))
        logits, state = implementation.forward(state, *segment[:3])
        found = models.without_padding(logits, segment[2])
        assert_equal(found, expected[step], f"segment {step}: logits")


@pytest.mark.rule("CKP-1")
@pytest.mark.needs(
    "model", "save_restore", "replace_parameters", "model_gradients", "exact_search"
)
def test_training_goes_on(implementation, tmp_path):
    """Three steps of gradient descent, with and without a stop after the first."""
    segments = models.cut(TINY, models.draw_documents(3, [30, 30], vocab_size=13))
    found = [
        train(implementation, segments[:3], tmp_path if stop else None)
        for stop in (False, True)
    ]
    assert_equal(found[1], found[0], "losses")


def train(implementation, segments, directory):
    parameters = models.draw_parameters(TINY, 3)
    state, losses = implementation.init_model(TINY, parameters, models.BATCH), []
    for step, segment in enumerate(segments):
        if step == 1 and directory is not None:
            state = saved_and_restored(implementation, state, directory)
        loss, gradients = implementation.model_gradients(state, *segment)
        losses.append(float(loss))
        parameters = {
            name: (array - 0.01 * np.asarray(gradients[name])).astype(np.float32)
            for name, array in parameters.items()
        }
        # The segment is remembered as the old parameters made it.
        _, state = implementation.forward(state, *segment[:3])
        state = implementation.replace_parameters(state, parameters)
    return losses


@pytest.mark.rule("CKP-2")
@pytest.mark.needs("model", "evaluation")
def test_evaluation_does_not_disturb(implementation):
    parameters = models.draw_parameters(EXHAUSTIVE, 4)
    documents = models.draw_documents(4)
    segments = models.cut(EXHAUSTIVE, documents)
    expected = models.read(implementation, EXHAUSTIVE, parameters, segments)
    state = implementation.init_model(EXHAUSTIVE, parameters, models.BATCH)
    results = []
    for step, segment in enumerate(segments):
        if step in (1, 3):
            results.append(
                implementation.evaluate(
                    EXHAUSTIVE, parameters, documents[1:4], models.BATCH
                )
            )
        logits, state = implementation.forward(state, *segment[:3])
        found = models.without_padding(logits, segment[2])
        assert_equal(found, expected[step], f"segment {step}: logits")
    assert results[0] == results[1], "the second evaluation saw the first"


@pytest.mark.rule("SEG-5")
@pytest.mark.needs("evaluation")
def test_perplexity_by_hand(implementation):
    """A model that tells no token from another has the vocabulary's size."""
    parameters = models.draw_parameters(EXHAUSTIVE, 5)
    parameters = models.changed(parameters, "embedding", 1.0)
    documents = models.draw_documents(5, [1, 9, 16])
    perplexity, predicted = implementation.evaluate(
        EXHAUSTIVE, parameters, documents, models.BATCH
    )
    assert predicted == 0 + 8 + 15
    assert math.isclose(perplexity, 41, rel_tol=1e-4), perplexity


@pytest.mark.rule("SEG-5")
@pytest.mark.needs("evaluation")
@given(seed=st.integers(0, 99))
def test_perplexity_is_of_all_predicted_tokens(implementation, seed):
    """Not a mean over segments or documents, and each from a fresh state."""
    parameters = models.draw_parameters(EXHAUSTIVE, seed)
    documents = models.draw_documents(seed)
    nats = predicted = 0.0
    for document in documents:
        segments = models.cut(EXHAUSTIVE, [document], batch=1)
        logits = models.read(models.Oracle(), EXHAUSTIVE, parameters, segments)
        for one, segment in zip(logits, segments, strict=True):
            _, _, _, targets, num_targets = segment
            for i in range(num_targets[0]):
                row = one[0, i] - one[0, i].max()
                nats += float(np.log(np.exp(row).sum()) - row[targets[0, i]])
                predicted += 1
    found, count = implementation.evaluate(
        EXHAUSTIVE, parameters, documents, models.BATCH
    )
    assert count == predicted
    assert_close(np.log(found), nats / predicted, "nats per token")
