"""Loss over whole documents (SEG-3, SEG-5)."""

import numpy as np
import pytest
from helpers import SMALL, lively_parameters, replace

from memorizing_reference import parameters, perplexity

DOCUMENTS = [np.arange(n) * 7 % 11 for n in (23, 1, 7, 16)]
FIRST_TOKENS = 4


def test_losses_by_hand():
    # softmax of (0, ln 2, ln 5) is (1/8, 2/8, 5/8)
    logits = np.log(np.array([[[1.0, 2.0, 5.0], [1.0, 2.0, 5.0]]]))
    found = perplexity.token_losses(logits, np.array([[0, 2]]))
    np.testing.assert_allclose(found, [np.log([8, 1.6])], rtol=1e-15)
    # Large logits do not overflow.
    found = perplexity.token_losses(1e4 + logits, np.array([[0, 2]]))
    np.testing.assert_allclose(found, [np.log([8, 1.6])], atol=1e-11)


def test_a_model_that_knows_nothing():
    """Without an embedding all tokens are equally likely: the perplexity is V."""
    params = parameters.init(SMALL, seed=0, dtype=np.float64)
    params["embedding"][...] = 0
    nats, predicted = perplexity.total_loss(params, SMALL, DOCUMENTS, batch=2)
    assert predicted == sum(map(len, DOCUMENTS)) - FIRST_TOKENS
    assert perplexity.perplexity(nats, predicted) == pytest.approx(11, rel=1e-12)
    assert perplexity.bits_per_byte(nats, 100) == pytest.approx(
        predicted * np.log2(11) / 100, rel=1e-12
    )


@pytest.mark.parametrize("batch", [1, 3, 5])
def test_the_number_of_rows_does_not_matter(batch):
    """SEG-5: documents are read from a fresh state, whoever read before."""
    params = lively_parameters(SMALL, seed=2)
    alone = [
        perplexity.total_loss(params, SMALL, [document], batch=1)[0]
        for document in DOCUMENTS
    ]
    nats, _ = perplexity.total_loss(params, SMALL, DOCUMENTS, batch=batch)
    assert nats == pytest.approx(sum(alone), rel=1e-12)


def test_memory_matters():
    params = lively_parameters(SMALL, seed=2)
    with_memory, _ = perplexity.total_loss(params, SMALL, DOCUMENTS, batch=2)
    off = replace(SMALL, memory_size=0)
    without, _ = perplexity.total_loss(params, off, DOCUMENTS, batch=2)
    assert abs(with_memory - without) > 1e-3


def test_refuses_to_divide_by_nothing():
    params = parameters.init(SMALL, seed=0)
    one_token = [np.array([3])]
    counted = perplexity.total_loss(params, SMALL, one_token, batch=2)
    assert counted == (0.0, 0)
    with pytest.raises(ValueError, match="no token was predicted"):
        perplexity.perplexity(*counted)
    with pytest.raises(ValueError, match="num_bytes is 0, must be 1 or more"):
        perplexity.bits_per_byte(1.0, 0)
