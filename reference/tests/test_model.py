"""What holds for every model: causality, independence, and what may not matter."""

import numpy as np
import pytest
from helpers import (
    NEAR,
    SMALL,
    documents,
    lively_parameters,
    read,
    read_documents,
    replace,
)

from memorizing_reference import model


@pytest.mark.parametrize("changed", [0, 6, 7, 20, 33])
def test_a_later_token_changes_nothing_before_it(changed):
    """Causality, across segments, cache and memory."""
    params = lively_parameters(SMALL, seed=1)
    (document,) = documents(34)
    other = document.copy()
    other[changed] = (other[changed] + 1) % SMALL.vocab_size
    (before,) = read_documents(params, SMALL, [document])
    (after,) = read_documents(params, SMALL, [other])
    np.testing.assert_allclose(after[:changed], before[:changed], **NEAR)
    assert (np.abs(after[changed:] - before[changed:]).max(axis=-1) > 1e-9).all()


@pytest.mark.parametrize("segment_length", [1, 2, 5, 34])
def test_the_cut_into_segments_does_not_matter_without_memory(segment_length):
    """LOC-2: a cache as long as the window shows the same context at every cut."""
    config = replace(SMALL, memory_layers=(), cache_length=9)
    params = lively_parameters(config, seed=1)
    docs = documents(34)
    expected = read_documents(params, config, docs)
    recut = replace(config, segment_length=segment_length)
    found = read_documents(params, recut, docs)
    np.testing.assert_allclose(found[0], expected[0], **NEAR)


def test_the_cut_matters_with_memory():
    """MEM-4: pairs are retrieved once their segment is over, and no sooner."""
    params = lively_parameters(SMALL, seed=1)
    docs = documents(34)
    recut = replace(SMALL, segment_length=5)
    (a,), (b,) = (read_documents(params, c, docs) for c in (SMALL, recut))
    assert np.abs(a - b).max() > 1e-3


def test_rows_are_independent():
    params = lively_parameters(SMALL, seed=1)
    docs = documents(34, 20, 15)
    together = read_documents(params, SMALL, docs, batch=3)
    for document, found in zip(docs, together, strict=True):
        (alone,) = read_documents(params, SMALL, [document])
        np.testing.assert_allclose(found, alone, **NEAR)


def test_a_document_leaves_nothing_behind():
    """MEM-5, LOC-3: after another document it reads as if it were the first."""
    params = lively_parameters(SMALL, seed=1)
    first, second = documents(30, 17)
    (both,) = read_documents(params, SMALL, [first, second])
    (alone,) = read_documents(params, SMALL, [second])
    np.testing.assert_allclose(both[30:], alone, **NEAR)


def test_what_stands_in_the_padding_does_not_matter():
    """SEG-4: not for this segment, nor for the next."""
    params = lively_parameters(SMALL, seed=1)
    tokens = np.stack(
        [document.reshape(3, 7) for document in documents(21, 21)], axis=1
    )
    lengths = np.array([[7, 4], [3, 0], [7, 7]])
    starts = np.array([[1, 1], [0, 0], [0, 0]], bool)
    expected, _ = read(params, list(zip(tokens, starts, lengths, strict=True)), SMALL)
    for padding in (-1, 5, 10**9):
        padded = np.where(np.arange(7) < lengths[..., None], tokens, padding)
        found, _ = read(params, list(zip(padded, starts, lengths, strict=True)), SMALL)
        np.testing.assert_array_equal(found[2], expected[2])
        np.testing.assert_array_equal(found[0][1, :4], expected[0][1, :4])


def test_an_idle_row_keeps_its_state():
    """MEM-6, also across the cache: a pause of two segments is no pause."""
    params = lively_parameters(SMALL, seed=1)
    first, second, third, fourth = np.split(documents(28)[0], 4)
    yes, no = np.array([True]), np.array([False])
    full, idle = np.array([7]), np.array([0])
    straight = [(first[None], yes, full), (second[None], no, full)]
    pause = [(third[None], no, idle), (fourth[None], no, idle)]
    (*_, expected), _ = read(params, straight, SMALL)
    (*_, found), _ = read(params, [straight[0], *pause, straight[1]], SMALL)
    np.testing.assert_array_equal(found, expected)
    # A start is a start, even without a token.
    reset = [straight[0], (third[None], yes, idle), straight[1]]
    (*_, found), state = read(params, reset, SMALL)
    assert np.abs(found - expected).max() > 1e-3
    assert state.memories[0].num_written.tolist() == [7]


def test_a_padded_segment_may_be_followed_by_more():
    """Cache and memory go on after the last real token, as if there were no padding."""
    config = replace(SMALL, memory_size=50, top_k=50)
    params = lively_parameters(config, seed=1)
    (document,) = documents(10)
    padded = np.r_[document[:5], [0, 0], document[5:], [0, 0]].reshape(2, 1, 7)
    starts = [np.array([True]), np.array([False])]
    steps = [
        (padded[0], starts[0], np.array([5])),
        (padded[1], starts[1], np.array([5])),
    ]
    (_, found), state = read(params, steps, config)
    assert state.memories[2].num_written.tolist() == [10]
    assert state.caches[1].num_cached.tolist() == [4]
    unpadded = [(document[None, :5], starts[0], np.array([5]))]
    unpadded += [(document[None, 5:10], starts[1], np.array([5]))]
    (_, expected), _ = read(params, unpadded, config)
    np.testing.assert_allclose(found[:, :5], expected, **NEAR)


def test_the_given_state_is_not_modified():
    params = lively_parameters(SMALL, seed=1)
    (document,) = documents(14)
    step = (document[None, :7], np.array([True]), np.array([7]))
    _, state = read(params, [step], SMALL)
    step = (document[None, 7:], np.array([False]), np.array([7]))
    (first,), _ = read(params, [step], SMALL, state)
    (again,), _ = read(params, [step], SMALL, state)
    np.testing.assert_array_equal(first, again)


def test_rms_norm():
    """MOD-2: (3, 4) has a mean square of 12.5."""
    found = model.rms_norm(np.array([3.0, 4.0]), np.array([1.0, 2.0]))
    np.testing.assert_allclose(found, [3, 8] / np.sqrt(12.5 + 1e-6), rtol=1e-15)
    # Where 1e-6 matters, and no mean is taken off.
    found = model.rms_norm(np.array([1e-3, 1e-3]), np.ones(2))
    np.testing.assert_allclose(found, np.sqrt([0.5, 0.5]), rtol=1e-15)


class TestRefuses:
    params = lively_parameters(SMALL, seed=1, dtype=np.float32)
    yes, full = np.array([True]), np.array([7])

    @pytest.mark.parametrize("token", [-1, 11])
    def test_an_unknown_token(self, token):
        state = model.init_state(SMALL, 1)
        tokens = np.array([[1, 2, 3, token, 5, 6, 7]])
        with pytest.raises(ValueError, match=f"token {token} is not in 0 to 10"):
            model.forward(self.params, state, tokens, self.yes, self.full, SMALL)

    @pytest.mark.parametrize("num_tokens", [-1, 8])
    def test_a_wrong_number_of_tokens(self, num_tokens):
        config = replace(SMALL, memory_layers=())
        state = model.init_state(config, 1)
        wrong = np.array([num_tokens])
        tokens = np.ones((1, 7), int)
        with pytest.raises(
            ValueError, match=rf"num_tokens is \[{num_tokens}\].*0 to 7"
        ):
            model.forward(self.params, state, tokens, self.yes, wrong, config)

    def test_a_state_of_another_dtype(self):
        state = model.init_state(SMALL, 1, np.float64)
        with pytest.raises(ValueError, match=r"init_state with dtype=np\.float32"):
            model.forward(
                self.params, state, np.ones((1, 7), int), self.yes, self.full, SMALL
            )

    def test_another_number_of_rows(self):
        state = model.init_state(SMALL, 2)
        with pytest.raises(ValueError, match="tokens has 1 rows, the state has 2"):
            model.forward(
                self.params, state, np.ones((1, 7), int), self.yes, self.full, SMALL
            )
