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
    stripes = max(1, blocks.BLOCK_SIZE // num_buckets)
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
    return _best_survivors(score, slot, min(top_k, score.shape[-1]))


def _challenge(winners: Winners, score: jax.Array, slot: jax.Array) -> Winners:
    """Sorts one slot per bucket into the winners; the last of them drops out."""
    result = []
    for best_score, best_slot in winners:
        # Strictly: on a tie the lower slot, seen first, stays ahead.
        better = score > best_score
        result.append(
            (jnp.where(better, score, best_score), jnp.where(better, slot, best_slot))
        )
        score = jnp.where(better, best_score, score)
        slot = jnp.where(better, best_slot, slot)
    return result


def _best_survivors(
    score: jax.Array, slot: jax.Array, top_k: int
) -> tuple[jax.Array, jax.Array]:
    """Selects among survivors, which stand in no order of slots.

    `top_k` breaks ties by place, not by slot. Ties are rare outside tests, so
    the sort by score and slot that settles them runs only where there is one.
    """
    num_survivors = score.shape[-1]
    # One more than asked for: the last place may be tied with what is left out.
    more = min(top_k + 1, num_survivors)
    best_score, place = jax.lax.top_k(score, more)
    tied = (best_score[..., 1:] == best_score[..., :-1]) & jnp.isfinite(
        best_score[..., 1:]
    )

    def by_slot() -> tuple[jax.Array, jax.Array]:
        negative, ordered = jax.lax.sort((-score, slot), num_keys=2)
        return -negative[..., :top_k], ordered[..., :top_k]

    def by_place() -> tuple[jax.Array, jax.Array]:
        chosen = jnp.take_along_axis(slot, place[..., :top_k], axis=-1)
        return best_score[..., :top_k], chosen

    return jax.lax.cond(jnp.any(tied), by_slot, by_place)


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
            if size - r <= num_valid - top_k:
                ways = math.comb(top_k, r) * math.comb(num_valid - top_k, size - r)
                chance = ways / math.comb(num_valid, size)
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
