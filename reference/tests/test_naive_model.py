"""The reference against a second forward pass, written from the rules alone."""

import naive_model
import numpy as np
import pytest
from helpers import SMALL, lively_parameters, read, replace

# Three rows over nine segments of seven. Row 0 resets twice, once after a padded
# segment. Row 1 reads 63 tokens in one go: its memory of ten wraps six times. Row 2
# pads in mid-document, stands idle, continues, and resets while idle.
STARTS = [[1, 1, 1], [0, 0, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0], [0, 0, 1], [0, 0, 0]]
STARTS += [[1, 0, 0], [0, 0, 0]]
LENGTHS = [[7, 7, 7], [7, 7, 4], [2, 7, 0], [7, 7, 7], [7, 7, 1], [7, 7, 0], [5, 7, 6]]
LENGTHS += [[7, 7, 7], [7, 7, 3]]

VARIANTS = {
    "as in the paper": {},
    "no cache": {"cache_length": 0},
    "window inside the segment": {"local_window": 3},
    "cache longer than the segment": {"cache_length": 12, "local_window": 16},
    "memory shorter than a segment": {"memory_size": 5},
    "memory never full": {"memory_size": 100},
    "memory off": {"memory_size": 0},
    "memory in the middle": {"memory_layers": (1,)},
    "no memory": {"memory_layers": ()},
    "more neighbors than pairs": {"memory_size": 40, "top_k": 37},
    "bfloat16": {"memory_dtype": "bfloat16"},
    "buckets": {"num_buckets": 4},
    "fewer survivors than neighbors": {"num_buckets": 2},
    "two winners per bucket": {"num_buckets": 2, "winners_per_bucket": 2},
}


def nine_segments(config, seed=3):
    rng = np.random.default_rng(seed)
    shape = (9, 3, config.segment_length)
    tokens = rng.integers(0, config.vocab_size, shape)
    lengths = np.array(LENGTHS)
    tokens[np.arange(config.segment_length) >= lengths[..., None]] = 999  # Padding.
    return list(zip(tokens, np.array(STARTS, bool), lengths, strict=True))


@pytest.mark.parametrize("name", VARIANTS)
def test_nine_segments(name):
    config = replace(SMALL, **VARIANTS[name])
    params = lively_parameters(config, seed=5)
    segments = nine_segments(config)
    rows = [naive_model.Row(params, config) for _ in range(3)]
    found, _ = read(params, segments, config)
    for step, (tokens, start, num_tokens) in enumerate(segments):
        for b, row in enumerate(rows):
            expected = row.read(tokens[b].tolist(), start[b], int(num_tokens[b]))
            real = found[step][b, : num_tokens[b]]
            expected = np.reshape(expected, real.shape)
            # float64 leaves 1e-15 per operation; bfloat16 keys would turn a score
            # that sits on a rounding edge into 1e-3, which no seed here does.
            np.testing.assert_allclose(real, expected, rtol=0, atol=1e-9)


def test_float32_stays_near():
    """No step of the float32 model computes in less, and none in float64."""
    params = lively_parameters(SMALL, seed=5)
    params32 = {name: array.astype(np.float32) for name, array in params.items()}
    segments = nine_segments(SMALL)
    found, state = read(params32, segments, SMALL, dtype=np.float32)
    expected, _ = read(params, segments, SMALL)
    assert {step.dtype for step in found} == {np.dtype(np.float32)}
    assert state.memories[2].keys.dtype == state.caches[1].keys.dtype == np.float32
    for (_, _, num_tokens), a, b in zip(segments, found, expected, strict=True):
        for row, length in enumerate(num_tokens):
            # 1e-7 per operation, three layers, logits of about 1.
            np.testing.assert_allclose(a[row, :length], b[row, :length], atol=1e-5)


def test_the_variants_differ():
    """Each variant changes what the model says, so none is tested in vain."""
    seen = {}
    for name, changes in VARIANTS.items():
        config = replace(SMALL, **changes)
        # The same parameters wherever they fit.
        params = lively_parameters(replace(config, memory_layers=(0, 1, 2)), seed=5)
        kept = {
            key: array
            for key, array in params.items()
            if "gate" not in key or int(key.split(".")[1]) in config.memory_layers
        }
        logits, _ = read(kept, nine_segments(config), config)
        seen[name] = logits[8][1].tobytes()
    assert len(set(seen.values())) == len(VARIANTS)
