"""Operations per token: against the products the program has, and by hand."""

import pytest

from memorizing_jax import flops, presets


def test_a_model_by_hand():
    """The paper's: 12 layers of 12 * 1024^2 parameters in products, 32K tokens."""
    config = presets.base().model.replace(vocab_size=32_000)
    products = 12 * 12 * 1024**2 + 1024 * 32_000
    # A query at position i sees i tokens of its segment and the rest of 512 cached.
    in_segment = 511 / 2
    attention = 12 * 1024 * (12 * in_segment + 8 * (512 - in_segment))
    memory = 8 * 1024 * 32
    assert flops.per_token(config) == 6 * products + attention + memory
    assert flops.of_search(config) == 2 * 1024 * 8192
    without = config.replace(memory_layers=())
    assert flops.per_token(without) == 6 * products + attention
    assert flops.of_search(without) == 0
    assert flops.of_search(config.replace(search="clustered")) is None


def test_a_window_shorter_than_segment_and_cache():
    """Of 4 positions with a window of 2 and a cache of 1: see 0+1, 1+1, 2+0, 2+0."""
    config = presets.tiny().model.replace(
        segment_length=4, local_window=2, cache_length=1
    )
    assert flops._visible(config) == (5 / 4, 2 / 4)


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v4", 275.0),
        ("TPU v5 lite", 197.0),
        ("TPU v5", 459.0),
        ("TPU v5p", 459.0),
        ("TPU v6 lite", 918.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("cpu", None),
        ("TPU v7x", None),
    ],
)
def test_peaks_by_the_names_that_jax_gives(kind, peak):
    assert flops.peak_tflops(kind) == peak
