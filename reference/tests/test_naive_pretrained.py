"""The pre-trained model against forward passes written from the rules alone."""

import naive_pretrained
import numpy as np
import pytest
from helpers import PRETRAINED, lively_parameters, replace
from test_naive_model import nine_segments

from memorizing_reference import pretrained_model

VARIANTS = {
    "joint": {},
    "gate": {"combination": "gate"},
    "gate, window inside the segment": {"combination": "gate", "local_window": 3},
    "no sinks": {"num_sinks": 0},
    "more sinks than the cache holds": {"num_sinks": 6},
    "more sinks than a segment holds": {"num_sinks": 9},
    "no cache": {"cache_length": 0},
    "neither sinks nor cache": {"cache_length": 0, "num_sinks": 0},
    "cache longer than the segment": {"cache_length": 12, "local_window": 18},
    "memory shorter than a segment": {"memory_size": 5},
    "memory never full": {"memory_size": 100},
    "memory off": {"memory_size": 0},
    "memory off, window shorter than the cache": {"memory_size": 0, "local_window": 2},
    "gate, memory off": {"memory_size": 0, "combination": "gate"},
    "no memory": {"memory_layers": ()},
    "memory near by": {"memory_distance": 0},
    "one key-value head": {"num_key_value_heads": 1},
    "one key-value head a query head": {"num_key_value_heads": 6},
    "untied": {"tied_embedding": False},
    "another base, another epsilon": {"rope_base": 7.0, "norm_epsilon": 0.3},
    "bfloat16": {"memory_dtype": "bfloat16"},
    "two winners per bucket": {"num_buckets": 2, "winners_per_bucket": 2},
}


def read(params, segments, config, dtype=np.float64):
    state = pretrained_model.init_state(config, len(segments[0][0]), dtype)
    found = []
    for segment in segments:
        logits, state = pretrained_model.forward(params, state, *segment, config)
        found.append(logits)
    return found, state


def read_in_five(params, config, seed):
    """Reads one document of 35 tokens in five segments; returns logits and tokens."""
    tokens = np.random.default_rng(seed).integers(0, config.vocab_size, 35)
    segments = [
        (part[None], np.array([i == 0]), np.array([7]))
        for i, part in enumerate(tokens.reshape(5, 7))
    ]
    found, _ = read(params, segments, config)
    return np.concatenate(found, axis=1)[0], tokens


@pytest.mark.parametrize("name", VARIANTS)
def test_nine_segments(name):
    config = replace(PRETRAINED, **VARIANTS[name])
    params = lively_parameters(config, seed=5)
    segments = nine_segments(config)
    rows = [naive_pretrained.Row(params, config) for _ in range(3)]
    found, _ = read(params, segments, config)
    for step, (tokens, start, num_tokens) in enumerate(segments):
        for b, row in enumerate(rows):
            expected = row.read(tokens[b].tolist(), start[b], int(num_tokens[b]))
            real = found[step][b, : num_tokens[b]]
            # As in test_naive_model.
            expected = np.reshape(expected, real.shape)
            np.testing.assert_allclose(real, expected, rtol=0, atol=1e-9)


def test_the_variants_differ():
    """Each variant changes what the model says, so none is tested in vain."""
    seen = {}
    for name, changes in VARIANTS.items():
        config = replace(PRETRAINED, **changes)
        params = lively_parameters(config, seed=5)
        logits, _ = read(params, nine_segments(config), config)
        seen[name] = logits[8][1].tobytes()
    assert len(set(seen.values())) == len(VARIANTS)


@pytest.mark.parametrize("tied", [True, False])
def test_with_room_for_everything_it_is_an_ordinary_llama(tied):
    """No position is dropped, so places are positions (PRE-3)."""
    config = replace(
        PRETRAINED,
        cache_length=40,
        local_window=40,
        memory_layers=(),
        tied_embedding=tied,
    )
    params = lively_parameters(config, seed=8)
    found, tokens = read_in_five(params, config, seed=8)
    expected = naive_pretrained.plain_llama(params, config, tokens.tolist())
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


# What transformers 5.24's LlamaForCausalLM computes for the model of the test below at
# positions 0, 12 and 34, its weights in float64, its angles and norms in float32.
TRANSFORMERS = """
1.484128 0.776782 2.773877 -2.251625 -3.651737 2.257736 9.172076 2.932781 3.983868
3.387712 1.715079 -0.514225 0.426284 3.167426 0.386023 -2.874745 3.321579 1.892829
-3.425488 -4.252566 5.07345 0.954805 8.505398 -2.847513 3.697213 -2.913692 -1.807709
1.152771 1.040567 -0.968164 -1.626953 -0.355733 0.126968
"""


def test_it_is_the_llama_of_transformers():
    config = replace(
        PRETRAINED,
        model_dim=12,
        head_dim=8,
        num_key_value_heads=3,
        rope_base=10000.0,
        tied_embedding=False,
        cache_length=40,
        local_window=40,
        memory_layers=(),
    )
    params = lively_parameters(config, seed=8)
    found = read_in_five(params, config, seed=8)[0][[0, 12, 34]]
    expected = np.reshape([float(number) for number in TRANSFORMERS.split()], (3, 11))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_a_joint_memory_of_everything_is_full_attention_at_one_distance():
    """With rotation switched off, where a pair stands makes no difference (PRE-5)."""
    config = replace(
        PRETRAINED, memory_layers=(0, 1, 2), memory_size=40, top_k=40, rope_base=1e300
    )
    # The first pair of components turns at any base; it is silenced.
    params = lively_parameters(config, seed=9)
    for i in range(3):
        params[f"layers.{i}.query_kernel"][:, :, [0, 2]] = 0
    found, tokens = read_in_five(params, config, seed=9)
    expected = naive_pretrained.plain_llama(params, config, tokens.tolist())
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


def test_float32_stays_near():
    params = lively_parameters(PRETRAINED, seed=5)
    params32 = {name: array.astype(np.float32) for name, array in params.items()}
    segments = nine_segments(PRETRAINED)
    found, state = read(params32, segments, PRETRAINED, dtype=np.float32)
    expected, _ = read(params, segments, PRETRAINED)
    assert {step.dtype for step in found} == {np.dtype(np.float32)}
    assert state.memories[2].keys.dtype == state.sinks[1].keys.dtype == np.float32
    for (_, _, num_tokens), a, b in zip(segments, found, expected, strict=True):
        for row, length in enumerate(num_tokens):
            # 1e-7 per operation, three layers, logits of up to 10.
            np.testing.assert_allclose(a[row, :length], b[row, :length], atol=1e-4)
