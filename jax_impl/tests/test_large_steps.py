"""Steps that need less memory or fewer bits compute what the plain step computes."""

import collections
import functools

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import SMALL, draw_parameters, draw_tokens

from memorizing_jax import accumulation, model, parameters, train_step
from memorizing_jax.errors import InputError
from memorizing_jax.train_config import TrainConfig
from memorizing_jax.train_step import Segments

# Two plain layers that are scanned, then one with a memory, then a plain one alone.
CONFIG = SMALL.replace(num_layers=4, memory_layers=(2,))
BATCH = 6
# Two compilations of the same sums, in float32.
SAME = {"rtol": 0, "atol": 1e-5}

loss_and_gradients = jax.jit(train_step.loss_and_gradients, static_argnums=(3, 4))


@pytest.fixture(scope="module")
def given():
    """Returns parameters, a state whose memories are half full, and segments."""
    params = parameters.stack(draw_parameters(CONFIG), CONFIG)
    state = model.init_state(CONFIG, BATCH)
    tokens = jnp.asarray(draw_tokens(CONFIG, 2, BATCH))
    full, start = jnp.full(BATCH, 7, jnp.int32), jnp.zeros(BATCH, bool)
    _, state, _ = jax.jit(model.forward, static_argnums=5)(
        params, state, tokens[0], start, full, CONFIG
    )
    # One row begins a document, one has padding, one nothing to read.
    counts = jnp.array([7, 4, 7, 0, 7, 7], jnp.int32)
    targets = jnp.maximum(counts - 1, 0)
    segments = Segments(tokens[1], tokens[0], start.at[2].set(True), counts, targets)
    return params, state, segments


@pytest.fixture(scope="module")
def plain(given):
    return loss_and_gradients(*given, CONFIG)


def assert_gradients_agree(found, expected):
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        # Relative to the largest, as sums over tokens cancel.
        largest = float(np.abs(gradient).max())
        np.testing.assert_allclose(
            found[name], gradient, rtol=0, atol=2e-5 * largest, err_msg=name
        )


@pytest.mark.parametrize("parts", [2, 3])
def test_a_step_in_parts_is_the_whole_step(given, plain, parts):
    """What memories and counters hold is the same exactly."""
    (nats, predicted, state, *_), gradients = plain
    found, found_gradients = loss_and_gradients(*given, CONFIG, parts)
    assert found[1] == predicted
    np.testing.assert_allclose(found[0], nats, rtol=1e-6)
    assert_gradients_agree(found_gradients, gradients)
    leaves = jax.tree.leaves(state), jax.tree.leaves(found[2])
    for a, b in zip(*leaves, strict=True):
        assert a.shape == b.shape
        np.testing.assert_array_equal(a, b)


def test_rows_come_back_in_their_order():
    """Of every array: those of stacked caches are along the second axis."""
    tree = {n: jnp.arange(6.0).reshape(6, *[1] * n) for n in range(4)}
    tree[4] = jnp.arange(12.0).reshape(2, 6, 1, 1, 1)
    first = accumulation.rows(tree, jnp.int32(1), 3)
    assert first[0].tolist() == [1, 4]
    assert first[4].ravel().tolist() == [1, 4, 7, 10]
    _, parts = accumulation.accumulate(lambda tree: ((), tree), 3, tree)
    back = accumulation.joined(parts)
    for n, array in tree.items():
        np.testing.assert_array_equal(back[n], array)


def test_what_cannot_be_read_in_parts_is_refused():
    with pytest.raises(InputError, match="does not divide the batch of 6 rows"):
        TrainConfig(model=CONFIG, batch=6, accumulation=4)
    clustered = CONFIG.replace(search="clustered")
    with pytest.raises(InputError, match="search is 'clustered', which needs all rows"):
        TrainConfig(model=clustered, batch=6, accumulation=2)


def test_rematerialized_gradients_are_those_that_were_kept(given, plain):
    (nats, _, state, *_), gradients = plain
    config = CONFIG.replace(rematerialize=True)
    found, found_gradients = loss_and_gradients(*given, config)
    np.testing.assert_allclose(found[0], nats, rtol=1e-6)
    assert_gradients_agree(found_gradients, gradients)
    for a, b in zip(*map(jax.tree.leaves, (state, found[2])), strict=True):
        np.testing.assert_allclose(a, b, **SAME)


def test_no_search_is_repeated(given, monkeypatch):
    """The backward pass holds no search, and no second look into the memory."""

    def count(config, *primitives):
        # A function that JAX has not seen, so that it is traced anew.
        step = functools.partial(train_step.loss_and_gradients, config=config)
        found = collections.Counter(operations_in(jax.make_jaxpr(step)(*given).jaxpr))
        return [found[name] for name in primitives]

    # Exact search has one `top_k`; pairs are gathered, and so are embeddings.
    operations = ("top_k", "gather")
    kept = count(CONFIG, *operations)
    assert kept[0] > 0
    config = CONFIG.replace(rematerialize=True)
    assert count(config, *operations) == kept
    # What would be seen if it were: the policy is what prevents it.
    nothing = jax.checkpoint_policies.nothing_saveable
    monkeypatch.setattr(
        jax.checkpoint_policies, "save_only_these_names", lambda *_: nothing
    )
    assert count(config, *operations)[0] > kept[0]


def operations_in(jaxpr):
    """Yields the name of every operation, those of functions within included.

    (In the text of a jaxpr a function that is called twice stands once.)
    """
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for within in jax.extend.core.jaxprs_in_params(equation.params):
            yield from operations_in(within)


@pytest.fixture(scope="module")
def all_found(given):
    """Returns loss and gradients where each query finds all pairs, in float32."""
    config = CONFIG.replace(top_k=CONFIG.memory_size)
    return loss_and_gradients(*given, config)


@pytest.mark.rule("MEM-10")
@pytest.mark.parametrize("memory_dtype", ["float32", "bfloat16"])
def test_bfloat16_activations_over_the_whole_step(given, all_found, memory_dtype):
    """Loss and gradients are near those of float32; what must be float32 is.

    All pairs are found, as rounding may turn a neighbor into another one.
    """
    params, state, segments = given
    config = CONFIG.replace(
        compute_dtype="bfloat16", memory_dtype=memory_dtype, top_k=CONFIG.memory_size
    )
    like = jax.eval_shape(lambda: model.init_state(config, BATCH))
    rounded = jax.tree.map(lambda x, to: x.astype(to.dtype), state, like)
    (nats, _, after, *_), gradients = loss_and_gradients(
        params, rounded, segments, config
    )
    assert after.caches[0].keys.dtype == jnp.bfloat16
    assert after.memories[0].keys.dtype == jnp.dtype(memory_dtype)
    (expected, *_), exact = all_found
    assert nats.dtype == expected.dtype == jnp.float32
    # A rounding moves a number by up to 2**-9 of it. Some hundred follow each other
    # through four layers and back, half up and half down: by ten times that.
    tolerance = 10 * 2**-9
    np.testing.assert_allclose(float(nats), float(expected), rtol=tolerance)
    assert all(gradient.dtype == jnp.float32 for gradient in gradients.values())
    # Of all together, as an update is clipped; twice, for what cancels in sums.
    size = optax.tree.norm(exact)
    error = optax.tree.norm(jax.tree.map(jnp.subtract, gradients, exact))
    assert error < 2 * tolerance * size
