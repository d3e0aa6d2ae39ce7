"""The position bias belongs to distance buckets, and each bucket to its distances."""

import numpy as np
import pytest

from memorizing_conformance.comparison import assert_close

pytestmark = [pytest.mark.level("attention"), pytest.mark.needs("attention")]


# The distances of each bucket, as SPEC.md lists them.
UPPER_BUCKETS = {
    16: (16, 18),
    17: (19, 20),
    18: (21, 23),
    19: (24, 26),
    20: (27, 30),
    21: (31, 34),
    22: (35, 39),
    23: (40, 45),
    24: (46, 51),
    25: (52, 58),
    26: (59, 66),
    27: (67, 76),
    28: (77, 86),
    29: (87, 98),
    30: (99, 112),
    31: (113, 10**9),
}


BUCKETS = {n: (n, n) for n in range(16)} | UPPER_BUCKETS


@pytest.mark.rule("LOC-5")
@pytest.mark.parametrize("bucket", range(1, 32))
def test_the_bucket_holds_its_distances(all_buckets, bucket):
    """Head h leaves weight only to bucket h, so it reads the mean over its distances.

    The last query sees distances 1 to 149. The two components of a value are the
    distance and its square: together they tell one range from any other.
    """
    nearest, farthest = BUCKETS[bucket]
    distance = np.arange(nearest, min(farthest, 149) + 1)
    expected = [distance.mean() / 149, (distance**2).mean() / 149**2]
    assert_close(all_buckets[bucket], expected, f"bucket {bucket}: mean distance")


@pytest.fixture(scope="module")
def all_buckets(implementation):
    """What each of 32 heads reads at the last of 150 positions."""
    length, heads = 150, 32
    distance = (length - 1 - np.arange(length)) / 149
    values = np.stack([distance, distance**2], axis=-1).astype(np.float32)
    values = np.broadcast_to(values[None, :, None, :], (1, length, heads, 2)).copy()
    relative_bias = np.full((heads, 32), -200, np.float32)
    np.fill_diagonal(relative_bias, 0)
    output = implementation.attend_local(
        np.ones_like(values),
        np.zeros_like(values),
        values,
        np.array([0]),
        local_window=length,
        relative_bias=relative_bias,
        attention_scale=np.ones(heads, np.float32),
    )
    return np.asarray(output)[0, -1]
