"""The pre-trained family: equal to a plain model, and never ahead of its tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from llama_helpers import SMALL, Plain, draw_parameters, forward, read

from memorizing_jax import llama_model
from memorizing_jax.errors import InputError

# Sums in float32 against sums in float64; logits are of size 10.
SAME = {"rtol": 0, "atol": 2e-4}
TOKENS = np.random.default_rng(1).integers(0, SMALL.vocab_size, 53).astype(np.int32)


@pytest.mark.parametrize(
    "changes",
    [
        {},  # Wraps: 53 - 7 - 3 pairs leave the cache for a memory of 8.
        {"combination": "gate", "local_window": 6, "memory_size": 13},
        {"cache_length": 0, "num_sinks": 2, "memory_size": 3, "top_k": 2},
        {"num_sinks": 0, "num_key_value_heads": 1, "memory_layers": (1,)},
        {"num_sinks": 6, "cache_length": 2, "num_key_value_heads": 6},
        {"memory_layers": (), "local_window": 4, "tied_embedding": True},
    ],
    ids=["joint", "gate", "no cache", "no sinks", "many sinks", "local"],
)
@pytest.mark.rule("PRE-1")
@pytest.mark.rule("PRE-2")
@pytest.mark.rule("PRE-3")
@pytest.mark.rule("PRE-4")
@pytest.mark.rule("PRE-5")
@pytest.mark.rule("PRE-6")
def test_equals_a_plain_model_position_by_position(changes):
    config = SMALL.replace(**changes)
    params = draw_parameters(config)
    found, _ = read(params, config, TOKENS)
    np.testing.assert_allclose(found, Plain(params, config).logits(TOKENS), **SAME)


def test_a_large_cache_is_full_attention():
    config = SMALL.replace(memory_layers=(), num_sinks=0)
    params = draw_parameters(config)
    whole = config.replace(segment_length=53, cache_length=0, local_window=53)
    pieces = config.replace(segment_length=5, cache_length=53, local_window=53)
    at_once, _ = read(params, whole, TOKENS)
    piecewise, _ = read(params, pieces, TOKENS)
    np.testing.assert_allclose(piecewise, at_once, **SAME)


def test_a_memory_of_everything_differs_from_full_attention_by_distances_alone():
    """With a base so large that nothing turns, joint attention to all is full."""
    still = SMALL.replace(rope_base=1e30, memory_layers=(0, 1, 2))
    config = still.replace(memory_size=64, top_k=53, memory_distance=0)
    params = draw_parameters(config)
    # The first pair of components turns whatever the base: leave it empty.
    for i in range(3):
        for name in ("query_kernel", "key_kernel"):
            kernel = params[f"layers.{i}.{name}"]
            params[f"layers.{i}.{name}"] = kernel.at[..., jnp.array([0, 2])].set(0.0)
    whole = config.replace(
        memory_layers=(),
        segment_length=53,
        cache_length=0,
        num_sinks=0,
        local_window=53,
    )
    found, _ = read(params, config, TOKENS)
    np.testing.assert_allclose(found, read(params, whole, TOKENS)[0], **SAME)


@pytest.mark.rule("GEN-1")
def test_a_segment_gives_the_logits_of_its_beginnings():
    params = draw_parameters(SMALL)
    at_once, _ = read(params, SMALL, TOKENS[:40])
    _, state = read(params, SMALL, TOKENS[:35])
    for n in range(1, 6):
        found, _ = read(params, SMALL, TOKENS[35 : 35 + n], False, state)
        np.testing.assert_allclose(found[-1], at_once[34 + n], rtol=0, atol=1e-6)


@pytest.mark.parametrize("combination", ["joint", "gate"])
def test_a_changed_token_changes_no_earlier_logit(combination):
    config = SMALL.replace(combination=combination)
    params = draw_parameters(config)
    before, _ = read(params, config, TOKENS)
    for place in (2, 24, 37):
        changed = TOKENS.copy()
        changed[place] = (changed[place] + 1) % config.vocab_size
        after, _ = read(params, config, changed)
        assert (after[:place] == before[:place]).all()
        assert (after[place] != before[place]).all()


@pytest.mark.rule("MEM-5")
@pytest.mark.rule("MEM-11")
def test_a_document_knows_nothing_of_the_one_before_or_beside():
    params = draw_parameters(SMALL)
    alone, _ = read(params, SMALL, TOKENS[:24])
    _, state = read(params, SMALL, TOKENS[::-1])
    poisoned = jax.tree.map(
        lambda x: jnp.full_like(x, jnp.nan) if x.dtype == jnp.float32 else x, state
    )
    after, _ = read(params, SMALL, TOKENS[:24], True, poisoned)
    np.testing.assert_array_equal(after, alone)
    # Beside a row that begins anew in every segment, and one that idles.
    state = llama_model.init_state(SMALL, 3)
    for first in range(0, 20, 5):
        rows = np.stack([TOKENS[5:10], TOKENS[first : first + 5], TOKENS[:5]])
        logits, state, _ = forward(
            params,
            state,
            rows,
            np.array([True, first == 0, False]),
            np.array([3, 5, 0], np.int32),
            config=SMALL,
        )
        np.testing.assert_allclose(
            logits[1], alone[first : first + 5], rtol=0, atol=1e-5
        )
    assert state.num_read.tolist() == [3, 20, 0]
    assert [m.num_written.tolist() for m in state.memories] == [[0, 10, 0]] * 2


def test_search_engines_and_stored_types_serve_as_they_are():
    params = draw_parameters(SMALL)
    exact, _ = read(params, SMALL, TOKENS)
    for changes in ({"search": "approx_max_k"}, {"search": "bucketed"}):
        # So few slots that buckets lose none.
        config = SMALL.replace(recall_target=1.0, **changes)
        found, _ = read(params, config, TOKENS)
        np.testing.assert_allclose(found, exact, rtol=0, atol=1e-5)
    half, state = read(params, SMALL.replace(memory_dtype="bfloat16"), TOKENS)
    assert state.memories[0].keys.dtype == jnp.bfloat16
    assert 0 < abs(half - exact).max() < 1.0
    narrow = SMALL.replace(compute_dtype="bfloat16")
    found, _ = read(params, narrow, TOKENS)
    assert found.dtype == np.float32
    assert 0 < abs(found - exact).mean() < 0.5


def test_what_was_retrieved_is_told_by_query_head():
    params = draw_parameters(SMALL)
    _, state = read(params, SMALL, TOKENS[:30])
    _, _, retrieved = forward(
        params,
        state,
        TOKENS[None, 30:35],
        np.array([False]),
        np.array([5], np.int32),
        config=SMALL,
    )
    assert list(retrieved) == [0, 2]
    slots, weights = retrieved[2].slots, retrieved[2].weights
    assert slots.shape == weights.shape == (1, 6, 5, 4)
    assert (slots >= 0).all()
    total = weights.sum(-1)
    assert ((total > 0) & (total < 1)).all()  # The rest is local.


def test_no_gradient_enters_what_is_stored():
    params = draw_parameters(SMALL)
    _, state = read(params, SMALL, TOKENS[:30])

    def loss(params, floats):
        leaves, tree = jax.tree.flatten(state)
        kinds = [leaf.dtype == jnp.float32 for leaf in leaves]
        given = iter(floats)
        leaves = [next(given) if k else x for k, x in zip(kinds, leaves, strict=True)]
        logits, _, _ = llama_model.forward(
            params,
            jax.tree.unflatten(tree, leaves),
            TOKENS[None, 30:35],
            np.array([False]),
            np.array([5], np.int32),
            SMALL,
        )
        return jax.nn.logsumexp(logits, -1).sum()

    floats = [x for x in jax.tree.leaves(state) if x.dtype == jnp.float32]
    of_params, of_state = jax.jit(jax.grad(loss, (0, 1)))(params, floats)
    assert all(jnp.any(x != 0) for x in of_params.values())
    assert all((x == 0).all() for x in of_state)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_key_value_heads": 4}, "must divide"),
        ({"head_dim": 3}, "must be even"),
        ({"num_sinks": -1}, "num_sinks is -1"),
        ({"memory_distance": 64}, "memory_distance is 64"),
        ({"cache_length": 60}, "positions, and the model was trained on 64"),
        ({"local_window": 10}, "a joint softmax needs 11 or more"),
        ({"combination": "sum"}, "combination is 'sum'"),
        ({"rope_base": 0.0}, "rope_base is 0.0"),
        ({"memory_layers": (3,)}, "names layer 3"),
    ],
)
def test_impossible_settings_are_refused(changes, said):
    with pytest.raises(InputError, match=said):
        SMALL.replace(**changes)


@pytest.mark.rule("PRE-10")
def test_only_gated_memory_layers_have_a_gate():
    assert not [name for name in draw_parameters(SMALL) if "gate_bias" in name]
    gated = draw_parameters(SMALL.replace(combination="gate"))
    names = [name for name in gated if "gate_bias" in name]
    assert names == ["layers.0.gate_bias", "layers.2.gate_bias"]
