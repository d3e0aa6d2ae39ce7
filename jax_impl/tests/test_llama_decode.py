"""Token by token, a pre-trained model gives the logits of whole segments (GEN-1)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from llama_helpers import SMALL, draw_parameters, read

from memorizing_jax import llama_decode
from memorizing_jax.generate import Sampling, generate

TOKENS = np.random.default_rng(2).integers(0, SMALL.vocab_size, 41).astype(np.int32)
step = jax.jit(llama_decode.decode_step, static_argnames="config")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"combination": "gate", "local_window": 6},
        {"cache_length": 0, "num_sinks": 7},
    ],
    ids=["joint", "gate", "no cache"],
)
@pytest.mark.rule("GEN-1")
def test_decoding_gives_the_logits_of_segments(changes):
    config = SMALL.replace(**changes)
    params = draw_parameters(config)
    expected, _ = read(params, config, TOKENS)
    state = llama_decode.init_decode_state(config, 1)
    found = []
    for i, token in enumerate(TOKENS):
        start = jnp.array([i == 0])
        logits, state = step(params, state, token[None], start, config=config)
        found.append(np.asarray(logits[0]))
    np.testing.assert_allclose(np.array(found), expected, rtol=0, atol=1e-4)


@pytest.mark.rule("GEN-1")
def test_decoding_goes_on_from_segments_and_with_a_new_document():
    params = draw_parameters(SMALL)
    expected, _ = read(params, SMALL, TOKENS)
    _, state = read(params, SMALL, TOKENS[:30])
    decoding = llama_decode.from_segments(state, SMALL)
    for place in (*range(30, 41), *range(12)):
        start = jnp.array([place == 0])
        token = TOKENS[place][None]
        logits, decoding = step(params, decoding, token, start, config=SMALL)
        np.testing.assert_allclose(logits[0], expected[place], rtol=0, atol=1e-4)


def test_text_is_generated_past_the_local_context():
    params = draw_parameters(SMALL)
    greedy = Sampling(temperature=0.0)
    found = list(generate(params, SMALL, TOKENS[:23], 9, greedy))
    prompt = TOKENS[:23]
    for token in found:
        logits, _ = read(params, SMALL, prompt)
        assert token == logits[-1].argmax()
        prompt = np.append(prompt, np.int32(token))
    assert len(prompt) == 32
