"""Cross-entropy by hand, and what has no target."""

import math

import jax
import numpy as np
import pytest

from memorizing_jax import loss

per_token = jax.jit(loss.per_token)
value_and_gradient = jax.jit(jax.value_and_grad(loss.total, has_aux=True))


def test_cross_entropy_by_hand():
    # Odds of 1 : 3 and of 1 : 1.
    logits = np.array([[[0, math.log(3)], [5, 5]]], np.float32)
    found = per_token(logits, np.array([[0, 1]]))
    # Two roundings of float32 near 1.
    np.testing.assert_allclose(found, [[math.log(4), math.log(2)]], rtol=1e-6)


def test_large_logits_do_not_overflow():
    logits = np.array([[[1e30, 0], [-1e30, 0]]], np.float32)
    found = per_token(logits, np.array([[0, 1]]))
    assert found.tolist() == [[0.0, 0.0]]


@pytest.mark.rule("SEG-4")
def test_only_real_targets_count():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((3, 5, 7)).astype(np.float32)
    targets = rng.integers(0, 7, (3, 5), np.int32)
    counts = np.array([5, 0, 2], np.int32)
    (nats, predicted), gradient = value_and_gradient(logits, targets, counts)
    assert int(predicted) == 7
    each = np.asarray(per_token(logits, targets))
    # Seven terms near 2, in another order.
    np.testing.assert_allclose(nats, each[0].sum() + each[2, :2].sum(), rtol=1e-6)
    # What stands at padded positions may be anything, in value and in gradient.
    logits[2, 2:] = 1e30
    (spoiled, _), _ = value_and_gradient(logits, targets, counts)
    assert spoiled == nats
    gradient = np.abs(gradient).sum(axis=-1)
    assert ((gradient > 0) == (np.arange(5) < counts[:, None])).all()
