"""The position bias of local attention (LOC-4, LOC-5). Memory has none (GATE-1)."""

import numpy as np
from jaxtyping import Float, Int

NUM_BUCKETS = 32
MAX_DISTANCE = 128


def bucket(distance: Int[np.ndarray, "*shape"]) -> Int[np.ndarray, "*shape"]:
    """Returns the bucket, 0 to 31, of how far back a key lies (LOC-5).

    Near distances have a bucket each; from 16 on buckets widen with the
    logarithm, and all from 113 on share the last.

        distance 1 .. 15   16-18  19-20  ...  99-112  113 and more
        bucket   1 .. 15   16     17     ...  30      31

    Args:
      distance: `i - j`, 0 or more.
    """
    exact = NUM_BUCKETS // 2
    far = np.maximum(distance, exact) / exact
    steps = exact * np.log(far) / np.log(MAX_DISTANCE / exact)
    wide = np.minimum(NUM_BUCKETS - 1, exact + np.floor(steps).astype(np.int64))
    return np.where(distance < exact, distance, wide)


def bias(
    relative_bias: Float[np.ndarray, "num_heads buckets"],
    distance: Int[np.ndarray, "segment_length local_length"],
) -> Float[np.ndarray, "segment_length num_heads local_length"]:
    """Returns the learned bias of every query for every local key, head by head.

    Where `distance` is not positive the key is not visible (LOC-1), and what
    stands there is never used.
    """
    return relative_bias[:, bucket(np.maximum(distance, 0))].swapaxes(0, 1)
