"""Bucketed search by a kernel: scores never leave the chip (BKT-1).

The pass over the memory is a kernel of its own for TPU and for NVIDIA GPU; elsewhere
that for TPU runs in interpret mode, which is slow and meant for tests. What the kernel
leaves, the winners of all buckets, is small; XLA selects among them as in
`bucketed_search`, with the same result.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int

from memorizing_jax import bucketed_search, pallas_gpu, pallas_tpu

Winners = tuple[jax.Array, jax.Array]

# What the kernels lay side by side is a multiple of it.
LANES = 128


def top_k(
    queries: Float[Array, "batch num_heads segment_length head_dim"],
    keys: Float[Array, "batch num_heads memory_size head_dim"],
    num_valid: Int[Array, " batch"],
    *,
    top_k: int,
    num_buckets: int,
    winners_per_bucket: int,
) -> tuple[jax.Array, jax.Array]:
    """Returns the scores and slots of the best `top_k` that win in their bucket.

    The same as `bucketed_search.top_k`, but that `num_buckets` is rounded up to a power
    of two, which can only find more. Best first, ties to the lower slot (KNN-1). Where
    fewer survive, the tail scores minus infinity and its slots mean nothing.
    """
    batch, num_heads, segment_length, head_dim = queries.shape
    num_buckets = pl.next_power_of_2(num_buckets)
    num_columns = max(num_buckets, LANES)

    def of(kernel: Callable[..., Winners], **options: bool) -> Callable[..., Winners]:
        return functools.partial(
            kernel,
            num_columns=num_columns,
            winners_per_column=winners_per_bucket,
            **options,
        )

    score, stripe = jax.lax.platform_dependent(
        queries.reshape(-1, segment_length, head_dim),
        keys.reshape(batch * num_heads, -1, head_dim),
        jnp.repeat(num_valid, num_heads),
        tpu=of(pallas_tpu.winners),
        cuda=of(pallas_gpu.winners),
        default=of(pallas_tpu.winners, interpret=True),
    )
    # Minus zero equals zero, but `top_k` would rank it lower.
    score = jnp.where(score == 0.0, 0.0, score)
    column = jnp.arange(score.shape[-1], dtype=jnp.int32) % num_columns
    slot = stripe * num_columns + column[None, None, :]
    if num_columns > num_buckets:
        score, slot = _of_buckets(score, slot, num_buckets, winners_per_bucket)
    survivors = (batch, num_heads, segment_length, score.shape[-1])
    return bucketed_search.best_survivors(
        score.reshape(survivors),
        slot.reshape(survivors),
        min(top_k, score.shape[-1]),
    )


def _of_buckets(
    score: jax.Array, slot: jax.Array, num_buckets: int, winners_per_bucket: int
) -> tuple[jax.Array, jax.Array]:
    """Reduces winners of columns, several to a bucket, to those of buckets."""
    shape = (*score.shape[:2], -1, num_buckets)
    order = (-score.reshape(shape), slot.reshape(shape))
    score, slot = jax.lax.sort(order, dimension=2, num_keys=2)
    kept = (*score.shape[:2], -1)
    return (
        -score[:, :, :winners_per_bucket].reshape(kept),
        slot[:, :, :winners_per_bucket].reshape(kept),
    )
