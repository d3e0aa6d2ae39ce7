"""Generation goes on where the prompt ends, and draws what it was told to."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memorizing_jax import parameters
from memorizing_jax.errors import InputError
from memorizing_jax.generate import Sampling, generate, sample


@pytest.fixture(scope="module")
def model(small):
    config = small.model
    return parameters.init(config, jax.random.key(8)), config


@pytest.mark.parametrize("length", [1, 7, 8, 9, 24])  # Around segments of 8.
def test_going_on_equals_having_been_told(model, length):
    """The likeliest continuation of a prompt continues every part of itself."""
    params, config = model
    prompt = np.random.default_rng(length).integers(0, 256, length).astype(np.int32)
    best = Sampling(temperature=0.0)
    whole = list(generate(params, config, prompt, 12, best))
    told = np.concatenate([prompt, whole[:5]]).astype(np.int32)
    assert list(generate(params, config, told, 7, best)) == whole[5:]


def test_equal_seeds_draw_equal_tokens(model):
    params, config = model
    prompt = np.arange(3, dtype=np.int32)
    first = list(generate(params, config, prompt, 10, Sampling(seed=1)))
    assert list(generate(params, config, prompt, 10, Sampling(seed=1))) == first
    assert list(generate(params, config, prompt, 10, Sampling(seed=2))) != first


@pytest.mark.parametrize(
    ("sampling", "allowed"),
    [
        (Sampling(temperature=0.0), {2}),
        (Sampling(likeliest=1), {2}),
        (Sampling(likeliest=2), {0, 2}),
        (Sampling(top_p=0.49), {2}),
        (Sampling(top_p=0.51), {0, 2}),
        (Sampling(top_p=0.51, likeliest=1), {2}),
        # A hot choice is nearly even, so that half of it needs three tokens.
        (Sampling(top_p=0.51, temperature=1e3), {0, 2, 3}),
        (Sampling(), {0, 1, 2, 3}),
    ],
)
def test_draws_from_what_is_allowed(sampling, allowed):
    probability = jnp.array([0.3, 0.05, 0.5, 0.15])
    logits = jnp.tile(jnp.log(probability)[None], (500, 1))
    drawn = sample(logits, jax.random.key(0), sampling)
    assert set(np.asarray(drawn).tolist()) == allowed


def test_draws_in_proportion():
    probability = np.array([0.3, 0.05, 0.5, 0.15])
    logits = jnp.tile(jnp.log(jnp.asarray(probability, jnp.float32))[None], (4000, 1))
    drawn = np.asarray(sample(logits, jax.random.key(0), Sampling()))
    share = np.bincount(drawn, minlength=4) / 4000
    # Four deviations of a share of one half among 4000.
    assert np.abs(share - probability).max() < 4 * 0.5 / 4000**0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1.0, must be 0 or more"),
        ({"likeliest": -1}, "likeliest is -1, must be 0 or more"),
        ({"top_p": 0.0}, "top_p is 0.0, must be above 0"),
    ],
)
def test_refuses_settings(settings, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(Sampling(), **settings)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [([], "the prompt is empty"), ([3, 256], "tokens from 3 to 256, and the model")],
)
def test_refuses_prompts(model, prompt, message):
    params, config = model
    with pytest.raises(InputError, match=message):
        next(generate(params, config, np.array(prompt, np.int32), 1, Sampling()))
