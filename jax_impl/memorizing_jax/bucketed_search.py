"""Bucketed search: the best few slots of every bucket, then top-k (BKT-1, BKT-2).

Port of `memorizing_reference.bucketed_search`, streaming over the memory. What a
query keeps while it streams are the winners of its buckets, nothing else.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from memorizing_jax import blocks

Winners = list[tuple[jax.Array, jax.Array]]  # Best first: scores, slots.


# Stripes per block, where buckets are few. Each is written out in the program: 256 of
# them, as for a `top_k` of 4, compiled for 5 s and not 0.7, and ran three times as long
# (8192 slots, two CPU cores).
MAX_STRIPES = 32


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

    Best first, ties to the lower slot (KNN-1). Where fewer survive, the tail
    scores minus infinity and its slots mean nothing.
    """

    def update(winners: Winners, score: jax.Array, first_slot: jax.Array) -> Winners:
        # Blocks start at a multiple of num_buckets, so column c is in bucket
        # c % num_buckets: one stripe of columns holds one slot of every bucket.
        for first in range(0, score.shape[-1], num_buckets):
            stripe = score[..., first : first + num_buckets]
            missing = num_buckets - stripe.shape[-1]
            unused = [(0, 0)] * 3 + [(0, missing)]
            stripe = jnp.pad(stripe, unused, constant_values=-jnp.inf)
            slot = first_slot + first + jnp.arange(num_buckets, dtype=jnp.int32)
            winners = _challenge(winners, stripe, slot[None, None, None, :])
        return winners

    shape = (*queries.shape[:3], num_buckets)
    nobody = jnp.full(shape, -jnp.inf), jnp.full(shape, -1, jnp.int32)
    stripes = min(MAX_STRIPES, max(1, blocks.BLOCK_SIZE // num_buckets))
    winners = blocks.scan_blocks(
        update,
        [nobody] * winners_per_bucket,
        queries,
        keys,
        num_valid,
        stripes * num_buckets,
    )
    score = jnp.concatenate([score for score, _ in winners], axis=-1)
    slot = jnp.concatenate([slot for _, slot in winners], axis=-1)
    return best_survivors(score, slot, min(top_k, score.shape[-1]))


def _challenge(winners: Winners, score: jax.Array, slot: jax.Array) -> Winners:
    """Sorts one slot per bucket into the winners; the last of them drops out."""
    result, shifts, above = [], None, (score, slot)
    for best in winners:
        # Strictly: on a tie the lower slot, seen first, stays ahead.
        better = score > best[0]
        kept = [
            jnp.where(better, new, old)
            for new, old in zip((score, slot), best, strict=True)
        ]
        if shifts is not None:
            # The challenger went in above, so whoever stood there moves down,
            # ahead of an equal score that came later.
            kept = [
                jnp.where(shifts, up, here)
                for up, here in zip(above, kept, strict=True)
            ]
        result.append((kept[0], kept[1]))
        shifts, above = better, best
    return result


def best_survivors(
    score: jax.Array, slot: jax.Array, top_k: int
) -> tuple[jax.Array, jax.Array]:
    """Selects among survivors, which stand in no order of slots.

    `top_k` breaks ties by place, not by slot. Among what it chose a short sort
    mends that. Whether it chose the right ones of several equal in the last
    place, only the sort of all survivors can say: it runs where that occurs.
    """
    num_survivors = score.shape[-1]
    best_score, place = blocks.largest(score, min(top_k + 1, num_survivors))
    last, left_out = best_score[..., top_k - 1], best_score[..., -1]
    undecided = (last == left_out) & jnp.isfinite(last) & (num_survivors > top_k)

    def ordered(score: jax.Array, slot: jax.Array) -> tuple[jax.Array, jax.Array]:
        negative, by_slot = jax.lax.sort((-score, slot), num_keys=2)
        return -negative[..., :top_k], by_slot[..., :top_k]

    chosen = jnp.take_along_axis(slot, place[..., :top_k], axis=-1)
    return jax.lax.cond(
        jnp.any(undecided),
        lambda: ordered(score, slot),
        lambda: ordered(best_score[..., :top_k], chosen),
    )


def expected_recall(
    num_buckets: int, winners_per_bucket: int, num_valid: int, top_k: int
) -> float:
    """Returns the share of the true `top_k` that is found, in expectation (BKT-2).

    Every placement of the true neighbors among the valid slots is equally
    likely. A bucket of `size` slots holds `r` of them with hypergeometric
    probability, and loses `r - winners_per_bucket`.
    """
    top_k = min(top_k, num_valid)
    if top_k == 0:
        return 1.0
    small, num_large = divmod(num_valid, num_buckets)
    lost = 0.0
    for size, count in ((small, num_buckets - num_large), (small + 1, num_large)):
        for r in range(winners_per_bucket + 1, min(top_k, size) + 1):
            # C(size, r) and not C(top_k, r): the same number, but of integers that
            # stay short when the memory is large.
            ways = math.comb(size, r) * math.comb(num_valid - size, top_k - r)
            chance = ways / math.comb(num_valid, top_k)
            lost += count * (r - winners_per_bucket) * chance
    return 1.0 - lost / top_k


def choose_buckets(
    recall_target: float, memory_size: int, top_k: int, max_winners: int = 2
) -> tuple[int, int]:
    """Returns `(num_buckets, winners_per_bucket)` whose expectation reaches a recall.

    The fewest survivors are the cheapest to select among (BKT-2). More than two
    winners make the pass over the memory dearer than they save afterwards:
    measured on a CPU at 8192 slots, 64 x 3 and 32 x 4 are no faster than 128 x 2.
    """
    choices = []
    for winners in range(1, max_winners + 1):
        num_buckets = 1
        while num_buckets < memory_size and (
            num_buckets * winners < min(top_k, memory_size)
            or expected_recall(num_buckets, winners, memory_size, top_k) < recall_target
        ):
            num_buckets *= 2
        choices.append((num_buckets * winners, winners, num_buckets))
    _, winners, num_buckets = min(choices)
    return num_buckets, winners
