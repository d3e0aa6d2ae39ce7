"""The position bias of local attention (LOC-4, LOC-5).

Port of `memorizing_reference.positions`. It differs in one way: the bias of all
pairs of positions is laid out by shifting one row of biases, without a gather,
so that its gradient is a sum and not a scatter.
"""

import jax.numpy as jnp
import numpy as np
from jax.lax import Precision
from jaxtyping import Array, Float, Int

NUM_BUCKETS = 32
MAX_DISTANCE = 128


def bucket(distance: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Returns the bucket, 0 to 31, of how far back a key lies (LOC-5)."""
    exact = NUM_BUCKETS // 2
    far = np.maximum(distance, exact) / exact
    steps = exact * np.log(far) / np.log(MAX_DISTANCE / exact)
    wide = np.minimum(NUM_BUCKETS - 1, exact + np.floor(steps).astype(np.int64))
    return np.where(distance < exact, distance, wide)


def bias(
    relative_bias: Float[Array, "num_heads buckets"],
    segment_length: int,
    local_length: int,
) -> Float[Array, "num_heads segment_length local_length"]:
    """Returns the learned bias of every query for every local key, head by head.

    Keys are `local_length - segment_length` cached positions, then the segment.
    Where a key does not lie before its query the result means nothing.
    """
    num_heads = relative_bias.shape[0]
    # A choice of columns, written as a product: exact at the highest precision.
    distance = np.arange(local_length)
    one_hot = np.eye(NUM_BUCKETS, dtype=np.float32)[:, bucket(distance)]
    by_distance = jnp.matmul(
        relative_bias, jnp.asarray(one_hot), precision=Precision.HIGHEST
    )
    # Query i and key j lie local_length - segment_length + i - j apart, so row i
    # is `by_distance` backwards, shifted right by i. A table whose rows are one
    # entry longer than the stride at which they are cut out shifts like that.
    width = local_length + segment_length
    row = jnp.pad(by_distance[:, ::-1], ((0, 0), (0, segment_length)))
    rows = jnp.broadcast_to(row[:, None, :], (num_heads, segment_length, width))
    flat = rows.reshape(num_heads, segment_length * width)
    first, stride = segment_length - 1, width - 1
    shifted = flat[:, first : first + segment_length * stride]
    shifted = shifted.reshape(num_heads, segment_length, stride)
    return shifted[:, :, :local_length]
