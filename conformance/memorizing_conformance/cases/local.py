"""Cases of local attention, of the gate, and of gradients."""

import math
from typing import Any

import numpy as np

from memorizing_conformance.cases.case import Case
from memorizing_conformance.implementation import Arrays
from memorizing_conformance.strategies import grid_array

# One of the distances 1 to 3 keeps its weight, so what is read stands there.
_ONLY = -200.0


def positions(
    name: str,
    rule: str,
    says: str,
    output: list[list[float]],
    *,
    window: int,
    num_cached: list[int],
    cache_length: int = 2,
    bias: dict[int, float] | None = None,
) -> Case:
    """Returns a case whose keys are zero and whose values are their positions.

    The cache holds positions 1 and 2, the segment 3 to 6, so that without a bias
    a query reads the mean of the positions that it sees.
    """
    batch, local_length = len(num_cached), cache_length + 4
    values = np.arange(1, local_length + 1, dtype=np.float32)
    values = np.broadcast_to(values[None, :, None, None], (batch, local_length, 1, 1))
    relative_bias = np.zeros((1, 32), np.float32)
    if bias is not None:
        relative_bias[:] = _ONLY
        for bucket, number in bias.items():
            relative_bias[0, bucket] = number
    return Case(
        "local",
        name,
        (rule,),
        says,
        {"local_window": window},
        {
            "queries": np.ones((batch, 4, 1, 1), np.float32),
            "local_keys": np.zeros_like(values),
            "local_values": values.copy(),
            "num_cached": np.array(num_cached),
            "relative_bias": relative_bias,
            "attention_scale": np.ones(1, np.float32),
        },
        {"local_output": np.array(output, np.float64)[..., None, None]},
    )


def one_bucket_a_head() -> Case:
    """Returns a case in which head h reads the mean over bucket h.

    The one query lies 149 positions from the oldest key. Values are distances.
    """
    ranges = [(n, n) for n in range(16)]
    ranges += [(16, 18), (19, 20), (21, 23), (24, 26), (27, 30), (31, 34), (35, 39)]
    ranges += [(40, 45), (46, 51), (52, 58), (59, 66), (67, 76), (77, 86), (87, 98)]
    ranges += [(99, 112), (113, 149)]
    distance = np.arange(149, -1, -1, dtype=np.float32)[None, :, None, None]
    relative_bias = np.full((32, 32), _ONLY, np.float32)
    np.fill_diagonal(relative_bias, 0)
    means = [sum(range(a, b + 1)) / (b - a + 1) for a, b in ranges]
    # Bucket 0 holds distance 0, which is out of sight: all others weigh the same.
    means[0] = sum(range(1, 150)) / 149
    return Case(
        "local",
        "one_bucket_a_head",
        ("LOC-5",),
        "Head h leaves weight to bucket h alone, and reads its mean distance.",
        {"local_window": 150},
        {
            "queries": np.ones((1, 1, 32, 1), np.float32),
            "local_keys": np.zeros((1, 150, 32, 1), np.float32),
            "local_values": np.repeat(distance, 32, axis=2),
            "num_cached": np.array([149]),
            "relative_bias": relative_bias,
            "attention_scale": np.ones(32, np.float32),
        },
        {"local_output": np.array(means).reshape(1, 1, 32, 1)},
    )


def drawn(seed: int) -> Arrays:
    """Returns arguments of a whole memory layer, on the grid of 1/8."""
    rng = np.random.default_rng(seed)
    return {
        "queries": grid_array(rng, (2, 4, 3, 5)),
        "local_keys": grid_array(rng, (2, 6, 3, 5)),
        "local_values": grid_array(rng, (2, 6, 3, 5)),
        "num_cached": np.array([2, 1]),
        "relative_bias": grid_array(rng, (3, 32)),
        "attention_scale": np.array([0.5, -1.0, 0.75], np.float32),
    }


def gradients(seed: int) -> Case:
    """Returns a case of the gradients of a memory layer."""
    arrays = drawn(seed)
    rng = np.random.default_rng(seed + 1)
    shape = (2, 4, 3, 5)
    arrays |= {
        "keys": grid_array(rng, shape),
        "values": grid_array(rng, shape),
        "num_tokens": np.array([4, 3]),
        "gate_bias": np.array([0.5, -0.5, 1.0], np.float32),
        "cotangent": grid_array(rng, shape),
    }
    sizes: dict[str, Any] = {
        "batch": 2,
        "memory_size": 7,
        "num_heads": 3,
        "head_dim": 5,
        "top_k": 2,
    }
    return Case(
        "layer_gradients",
        "a_memory_layer",
        ("MEM-8", "LOC-7"),
        "Gradient stops at stored pairs and cached positions, and flows elsewhere.",
        {"sizes": sizes, "local_window": 4},
        arrays,
    )


CASES = (
    positions(
        "strictly_before",
        "LOC-1",
        "A window of 3, and never the position itself.",
        [[1.5, 2, 3, 4]],
        window=3,
        num_cached=[2],
    ),
    positions(
        "cache_then_segment",
        "LOC-2",
        "One distance alone has weight: each query reads its neighbor.",
        [[2, 3, 4, 5]],
        window=3,
        num_cached=[2],
        bias={1: 0},
    ),
    positions(
        "an_empty_cache",
        "LOC-3",
        "Rows with 0 and 1 cached positions; the first query of row 0 sees nothing.",
        [[0, 3, 3.5, 4], [2, 2.5, 3, 4]],
        window=3,
        num_cached=[0, 1],
    ),
    positions(
        "nothing_is_zero",
        "LOC-6",
        "Without a cache the first query reads zeros.",
        [[0, 1, 1.5, 2]],
        window=3,
        num_cached=[0],
        cache_length=0,
    ),
    positions(
        "a_bias_of_ln_3",
        "LOC-4",
        "Distance 2 weighs three times as much as distance 1.",
        [[1.25, 2.25, 3.25, 4.25]],
        window=2,
        num_cached=[2],
        bias={1: 0, 2: math.log(3)},
    ),
    one_bucket_a_head(),
    Case(
        "local",
        "several_heads",
        ("LOC-4",),
        "Rows, heads, biases and scales of all kinds.",
        {"local_window": 4},
        drawn(7),
    ),
    Case(
        "gate",
        "three_gates",
        ("GATE-3",),
        "Gates of 1/2, 3/4 and 1/4 mix 8 from memory with 4 from local context.",
        {},
        {
            "memory_output": np.full((1, 1, 3, 1), 8, np.float32),
            "local_output": np.full((1, 1, 3, 1), 4, np.float32),
            "gate_bias": np.array([0, math.log(3), -math.log(3)], np.float32),
        },
        {"output": np.array([6, 7, 5], np.float64).reshape(1, 1, 3, 1)},
    ),
    gradients(8),
)
