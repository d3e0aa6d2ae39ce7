"""Bucketed search: the best few slots of every bucket, then top-k (BKT-1, BKT-2).

Port of `memorizing_reference.bucketed_search`, streaming over the memory. What a
query keeps while it streams are the winners of its buckets, nothing else.

Slots come before queries in the arrays here. One slot of every bucket, a stripe, is
then a matrix that is compared row by row with that of the winners, all queries side
by side: on a CPU several times faster than the other way round.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from memorizing_jax import blocks

Winners = list[tuple[jax.Array, jax.Array]]  # Best first: scores, where they are.


class _Plan(NamedTuple):
    """How a kind of device streams best.

    Attributes:
      queries_at_once: heads are searched together up to so many queries.
      max_stripes: stripes per block, where buckets are few. Each is written out in the
        program: 256 of them, as for a `top_k` of 4, compiled for 5 s and not 0.7.
      skip_unused: whether to leave out blocks without a valid slot. A loop whose end
        is not known beforehand makes a GPU wait for its host at every turn.
      most_one_by_one: up to this `top_k` survivors are chosen one by one.
    """

    queries_at_once: int
    max_stripes: int
    skip_unused: bool
    most_one_by_one: int


# The scores of a block and the winners stay near the cores. `top_k` runs on one core
# there: for 32 of 256 survivors it takes three times as long as choosing one by one.
_ON_CPU = _Plan(512, 8, skip_unused=True, most_one_by_one=64)
_ELSEWHERE = _Plan(2**30, 32, skip_unused=False, most_one_by_one=0)


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
    find = functools.partial(
        _top_k,
        top_k=top_k,
        num_buckets=num_buckets,
        winners_per_bucket=winners_per_bucket,
    )
    return jax.lax.platform_dependent(
        queries,
        keys,
        num_valid,
        cpu=functools.partial(find, plan=_ON_CPU),
        default=functools.partial(find, plan=_ELSEWHERE),
    )


def _top_k(
    queries: jax.Array,
    keys: jax.Array,
    num_valid: jax.Array,
    top_k: int,
    num_buckets: int,
    winners_per_bucket: int,
    plan: _Plan,
) -> tuple[jax.Array, jax.Array]:
    """Searches some heads after others, as the plan says."""
    batch, num_heads, segment_length, head_dim = queries.shape
    groups = batch * num_heads
    together = _divisor(groups, plan.queries_at_once // segment_length)
    keys = keys.reshape(groups, -1, head_dim)
    of_groups = jnp.repeat(num_valid, num_heads).reshape(-1, together)

    def of_some(x: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
        first_group, queries, num_valid = x
        winners = _winners(
            queries, keys, first_group, num_valid, num_buckets, winners_per_bucket, plan
        )
        bucket = jnp.arange(num_buckets, dtype=jnp.int32)[None, :, None]
        # A minus zero equals zero, but `top_k` would rank it lower.
        score = jnp.concatenate([jnp.where(s == 0.0, 0.0, s) for s, _ in winners], 1)
        slot = jnp.concatenate([s * num_buckets + bucket for _, s in winners], 1)
        wanted = min(top_k, score.shape[1])
        if wanted <= plan.most_one_by_one:
            return _best_one_by_one(score, slot, wanted)
        return best_survivors(score.swapaxes(1, 2), slot.swapaxes(1, 2), wanted)

    of_queries = queries.reshape(-1, together, segment_length, head_dim)
    first_group = jnp.arange(0, groups, together, dtype=jnp.int32)
    if together == groups:  # A loop of one turn would keep all else waiting.
        found = of_some((first_group[0], of_queries[0], of_groups[0]))
    else:
        found = jax.lax.map(of_some, (first_group, of_queries, of_groups))
    score, slot = (x.reshape(batch, num_heads, segment_length, -1) for x in found)
    return score, slot


def _divisor(number: int, most: int) -> int:
    """Returns the largest divisor that is at most `most`, or 1."""
    return max(i for i in range(1, max(1, min(number, most)) + 1) if number % i == 0)


def _winners(
    queries: Float[Array, "groups segment_length head_dim"],
    keys: Float[Array, "all_groups memory_size head_dim"],
    first_group: Int[Array, ""],
    num_valid: Int[Array, " groups"],
    num_buckets: int,
    winners_per_bucket: int,
    plan: _Plan,
) -> Winners:
    """Streams over the memory of some heads.

    Returns:
      The best scores of each bucket, [groups, num_buckets, segment_length], and the
      stripes that they are in.
    """
    groups, segment_length, head_dim = queries.shape
    memory_size = keys.shape[1]
    stripes = min(plan.max_stripes, max(1, blocks.BLOCK_SIZE // num_buckets))
    block_size = stripes * num_buckets
    num_whole = memory_size // block_size

    def update(first: jax.Array, size: int, winners: Winners) -> Winners:
        some = jax.lax.dynamic_slice(
            keys, (first_group, first, 0), (groups, size, head_dim)
        )
        # g: row and head, s: slot, q: query, d: head_dim
        score = blocks.inner_products("gsd,gqd->gsq", some, queries)
        slot = first + jnp.arange(size, dtype=jnp.int32)
        valid = slot[None, :] < num_valid[:, None]
        score = jnp.where(valid[:, :, None], score, -jnp.inf)
        # Blocks start at a multiple of num_buckets, so row r is in bucket
        # r % num_buckets.
        missing = -size % num_buckets
        score = jnp.pad(score, [(0, 0), (0, missing), (0, 0)], constant_values=-jnp.inf)
        score = score.reshape(groups, -1, num_buckets, segment_length)
        for i in range(score.shape[1]):
            stripe = first // num_buckets + i
            winners = _challenge(winners, score[:, i], stripe)
        return winners

    shape = groups, num_buckets, segment_length
    nobody = jnp.full(shape, -jnp.inf), jnp.zeros(shape, jnp.int32)
    winners = [nobody] * winners_per_bucket
    if num_whole > 0:
        used = (num_valid.max() + block_size - 1) // block_size
        winners = jax.lax.fori_loop(
            0,
            jnp.minimum(used, num_whole) if plan.skip_unused else jnp.int32(num_whole),
            lambda i, winners: update(i * block_size, block_size, winners),
            winners,
        )
    if rest := memory_size - num_whole * block_size:
        winners = update(jnp.int32(num_whole * block_size), rest, winners)
    return winners


def _best_one_by_one(
    score: Float[Array, "groups survivors queries"],
    slot: Int[Array, "groups survivors queries"],
    top_k: int,
) -> tuple[jax.Array, jax.Array]:
    """Takes the best survivor out, `top_k` times.

    Returns:
      Scores and slots, [groups, queries, top_k].
    """
    groups, survivors, queries = score.shape
    # Survivors first: of several axes XLA deals only the first out to the cores.
    score, slot = (
        x.swapaxes(0, 1).reshape(survivors, groups * queries) for x in (score, slot)
    )

    def step(score: jax.Array, _: None) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        best = score.max(axis=0)
        no_slot = jnp.iinfo(jnp.int32).max
        lowest = jnp.where(score == best[None], slot, no_slot).min(axis=0)
        return jnp.where(slot == lowest[None], -jnp.inf, score), (best, lowest)

    _, found = jax.lax.scan(step, score, length=top_k)
    best, lowest = (x.T.reshape(groups, queries, top_k) for x in found)
    return best, lowest


def _challenge(winners: Winners, score: jax.Array, place: jax.Array) -> Winners:
    """Sorts one place per bucket into the winners; the last of them drops out."""
    result, shifts, above = [], None, (score, place)
    for best in winners:
        # Strictly: on a tie the lower slot, seen first, stays ahead.
        better = score > best[0]
        kept = [
            jnp.where(better, new, old)
            for new, old in zip((score, place), best, strict=True)
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
