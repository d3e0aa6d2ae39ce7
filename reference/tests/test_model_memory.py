"""What a model keeps in its memories, and what that does to its answers."""

import numpy as np
from helpers import (
    NEAR,
    SMALL,
    documents,
    lively_parameters,
    read,
    read_documents,
    replace,
)


def test_memory_reaches_beyond_the_local_context():
    """A token 14 to 20 positions back is out of the window of 9, in a memory of 20."""
    config = replace(SMALL, memory_size=20, num_layers=1, memory_layers=(0,), top_k=20)
    params = lively_parameters(config, seed=1)
    (document,) = documents(21)
    other = document.copy()
    other[0] = (other[0] + 1) % SMALL.vocab_size
    for size, reaches in ((20, True), (0, False)):
        sized = replace(config, memory_size=size)
        (a,) = read_documents(params, sized, [document])
        (b,) = read_documents(params, sized, [other])
        assert (np.abs(a[14:] - b[14:]).max() > 1e-9) == reaches


def test_stored_pairs_go_stale():
    """MEM-7: an update of the parameters leaves the memory as it was."""
    params = lively_parameters(SMALL, seed=1)
    (document,) = documents(14)
    _, state = read(
        params, [(document[None, :7], np.array([True]), np.array([7]))], SMALL
    )
    stored = state.memories[2].keys[:, :7].copy()
    updated = {name: array * 1.5 for name, array in params.items()}
    step = (document[None, 7:10], np.array([False]), np.array([3]))
    _, state = read(updated, [step], SMALL, state)
    np.testing.assert_array_equal(state.memories[2].keys[:, :7], stored)


def test_each_memory_layer_has_its_own_memory():
    """MOD-4, MEM-1."""
    params = lively_parameters(SMALL, seed=1)
    step = (documents(7)[0][None], np.array([True]), np.array([7]))
    _, state = read(params, [step], SMALL)
    assert sorted(state.memories) == [0, 2]
    assert (state.memories[0].keys[:, :7] != state.memories[2].keys[:, :7]).all()
    # The cache holds the newest four of the same pairs (MEM-9).
    np.testing.assert_array_equal(state.memories[2].keys[:, 3:7], state.caches[2].keys)


def test_stored_keys_are_normalized_and_values_are_not():
    """MEM-7, QKN-2, QKN-3: no scale reaches what is stored."""
    params = lively_parameters(SMALL, seed=1)
    step = (documents(7)[0][None], np.array([True]), np.array([7]))
    _, state = read(params, [step], SMALL)
    memory_2 = state.memories[2]
    length = np.linalg.norm(memory_2.keys[:, :7], axis=-1)
    np.testing.assert_allclose(length, 1.0, atol=1e-4)
    assert np.abs(np.linalg.norm(memory_2.values[:, :7], axis=-1) - 1).min() > 1e-3
    rescaled = dict(params)
    rescaled["layers.2.attention_scale"] = 10 * params["layers.2.attention_scale"]
    _, state = read(rescaled, [step], SMALL)
    np.testing.assert_array_equal(state.memories[2].keys, memory_2.keys)


def test_the_gate_decides():
    """GATE-3: shut, the memory might as well be off; open, the cache might."""
    params = lively_parameters(SMALL, seed=1)
    docs = documents(34)
    shut = {n: a - 1e4 if "gate" in n else a for n, a in params.items()}
    off = replace(SMALL, memory_size=0)
    (a,) = read_documents(shut, SMALL, docs)
    (b,) = read_documents(shut, off, docs)
    np.testing.assert_allclose(a, b, **NEAR)
    everywhere = replace(SMALL, memory_layers=(0, 1, 2))
    params = lively_parameters(everywhere, seed=1)
    opened = {n: a + 1e4 if "gate" in n else a for n, a in params.items()}
    (a,) = read_documents(opened, everywhere, docs)
    (b,) = read_documents(opened, replace(everywhere, local_window=1), docs)
    np.testing.assert_allclose(a, b, **NEAR)
