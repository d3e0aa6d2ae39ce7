"""Evaluation predicts every token once, and the same whatever stands beside it."""

import math

import jax
import numpy as np
import pytest

from memorizing_data.token_files import open_split
from memorizing_jax import evaluation_report, model, parameters
from memorizing_jax.errors import InputError
from memorizing_jax.evaluate import Evaluation, evaluate

forward = jax.jit(model.forward, static_argnums=5)
# Two compilations of the same sums, in float32.
SAME = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(scope="module")
def params(small):
    """Returns parameters far from their initial values, gates wide open."""
    drawn = parameters.init(small.model, jax.random.key(3))
    keys = jax.random.split(jax.random.key(4), len(drawn))
    return {
        name: value + 0.5 * jax.random.normal(key, value.shape)
        for key, (name, value) in zip(keys, drawn.items(), strict=True)
    }


@pytest.fixture(scope="module")
def held_out(dataset):
    return open_split(dataset, "test")


@pytest.mark.rule("SEG-3")
def test_every_token_but_a_documents_first_is_predicted_once(params, small, held_out):
    seen = []
    found = evaluate(params, small.model, held_out, 3, on_progress=seen.append)
    assert [len(nats) for nats in found.nats] == [49, 0, 1, 23]
    assert found.num_predicted == 73
    assert sum(seen) == held_out.num_tokens
    assert all((nats > 0).all() for nats in found.nats)


@pytest.mark.rule("SEG-5")
def test_loss_is_that_of_a_document_read_alone(params, small, held_out):
    together = evaluate(params, small.model, held_out, 3)
    for index in (0, 2, 3):
        alone = read_alone(params, small.model, held_out.tokens(index))
        np.testing.assert_allclose(together.nats[index], alone, **SAME)


def read_alone(params, config, tokens):
    state, losses = model.init_state(config, 1), []
    length = config.segment_length
    for first in range(0, len(tokens), length):
        piece = tokens[first : first + length]
        padded = np.zeros((1, length), np.int32)
        padded[0, : len(piece)] = piece
        logits, state, _ = forward(
            params,
            state,
            jax.numpy.asarray(padded),
            jax.numpy.array([first == 0]),
            jax.numpy.array([len(piece)]),
            config,
        )
        log_probability = np.asarray(jax.nn.log_softmax(logits[0]))
        for i, target in enumerate(tokens[first + 1 : first + length + 1]):
            losses.append(-log_probability[i, target])
    return losses


@pytest.mark.rule("MOD-5")
def test_memory_sizes_agree_until_the_smaller_overflows(params, small, held_out):
    by_size = {
        size: evaluate(params, small.model.replace(memory_size=size), held_out, 3)
        for size in (0, 16, 64)
    }
    # A segment sees what was inserted before it: 16 slots hold all of two segments.
    np.testing.assert_allclose(
        by_size[16].nats[0][:24], by_size[64].nats[0][:24], **SAME
    )
    assert np.abs(by_size[16].nats[0][24:] - by_size[64].nats[0][24:]).max() > 1e-3
    # Without memory the first segment is the same, and the second is not.
    np.testing.assert_allclose(by_size[0].nats[0][:8], by_size[64].nats[0][:8], **SAME)
    assert np.abs(by_size[0].nats[0][8:16] - by_size[64].nats[0][8:16]).max() > 1e-3


def test_a_part_of_each_document(params, small, held_out):
    whole = evaluate(params, small.model, held_out, 3)
    part = evaluate(params, small.model, held_out, 3, documents=[0, 3], max_tokens=20)
    assert [len(nats) for nats in part.nats] == [19, 19]
    np.testing.assert_allclose(part.nats[0], whole.nats[0][:19], **SAME)
    assert part.bits_per_byte is None
    # One byte a token, so per byte it is per token, first ones included.
    bits = whole.total_nats / math.log(2) / held_out.num_tokens
    assert whole.bits_per_byte == pytest.approx(bits, rel=1e-12)


def test_figures_by_hand():
    nats = np.ones(600, np.float32)
    nats[:255] = 3.0
    found = Evaluation((0, 1), (nats, np.full(1, 5.0, np.float32)), num_bytes=100)
    assert found.total_nats == 255 * 3 + 345 + 5
    assert found.loss == 1115 / 601
    assert found.perplexity == math.exp(1115 / 601)
    assert found.bits_per_byte == 1115 / math.log(2) / 100
    assert found.by_position() == [
        (1, 256, (255 * 3 + 5) / 256, 256),
        (256, 512, 1.0, 256),
        (512, 1024, 1.0, 89),
    ]


def test_report(params, small, held_out, tmp_path):
    configs = [small.model.replace(memory_size=size) for size in (0, 19)]
    measured = evaluation_report.measure(params, configs, held_out, 3, quiet=True)
    lines = [evaluation_report.to_json(found, held_out) for found in measured]
    for line, found in zip(lines, measured, strict=True):
        assert line["perplexity"] == found.evaluation.perplexity
        assert sum(d["num_predicted"] for d in line["by_document"]) == 73
        assert line["by_document"][3]["name"] == "test/3"
    table = evaluation_report.table(lines)
    assert f"{lines[1]['perplexity']:.4f}" in table
    picture = tmp_path / "results.png"
    evaluation_report.plot(picture, lines)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_refuses(params, small, held_out):
    with pytest.raises(InputError, match="hold no token to predict"):
        evaluate(params, small.model, held_out, 3, documents=[1])
    with pytest.raises(InputError, match="max_tokens is 1, must be 2 or more"):
        evaluate(params, small.model, held_out, 3, max_tokens=1)
    other = small.model.replace(vocab_size=11)
    with pytest.raises(InputError, match="the model knows 11 tokens, and those of"):
        evaluate(params, other, held_out, 3)
