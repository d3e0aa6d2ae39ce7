"""Bucketed search: an approximation with an exact definition (BKT-1, BKT-2).

Slots are dealt to buckets like cards, slot `s` to bucket `s % num_buckets`. Each
bucket keeps its best few, and the survivors compete as in exact search. What is
lost are neighbors that share a bucket with too many better ones; how many, on
average, `expected_recall` says before anything is searched.

As in `search`, `top_k_slots_numpy` is the definition and `top_k_slots` its
Numba twin.
"""

import math
import typing

import numba
import numpy as np
from jaxtyping import Float, Int

from memorizing_reference import search
from memorizing_reference.memory import Memory
from memorizing_reference.search import NO_SLOT


def top_k_slots_numpy(
    queries: Float[np.ndarray, "batch segment_length num_heads head_dim"],
    memory: Memory,
    top_k: int,
    *,
    num_buckets: int,
    winners_per_bucket: int,
) -> Int[np.ndarray, "batch segment_length num_heads top_k"]:
    """Returns the best `top_k` of the slots that win in their bucket (BKT-1).

    Order, ties and the tail of `NO_SLOT` are those of exact search (KNN-1, KNN-2).

    Raises:
      ValueError: if a query or a valid key is not finite (KNN-3).
    """
    score = search.scores(queries, memory)
    survives = np.zeros(score.shape, bool)
    for bucket in range(min(num_buckets, memory.memory_size)):
        in_bucket = score[..., bucket::num_buckets]
        best_first = np.argsort(-in_bucket, axis=-1, kind="stable")
        slot = bucket + num_buckets * best_first[..., :winners_per_bucket]
        np.put_along_axis(survives, slot, True, axis=-1)
    score = np.where(survives, score, -np.inf)
    best_first = np.argsort(-score, axis=-1, kind="stable")[..., :top_k]
    found = np.isfinite(np.take_along_axis(score, best_first, axis=-1))
    missing = [(0, 0)] * 3 + [(0, top_k - best_first.shape[-1])]
    return np.pad(
        np.where(found, best_first, NO_SLOT), missing, constant_values=NO_SLOT
    )


def top_k_slots(
    queries: Float[np.ndarray, "batch segment_length num_heads head_dim"],
    memory: Memory,
    top_k: int,
    *,
    num_buckets: int,
    winners_per_bucket: int,
) -> Int[np.ndarray, "batch segment_length num_heads top_k"]:
    """Same result as `top_k_slots_numpy`, in one pass over the memory.

    Raises:
      ValueError: if a query or a valid key is not finite (KNN-3).
    """
    score = search.scores(queries, memory)
    batch, segment_length, num_heads, memory_size = score.shape
    num_valid = np.repeat(memory.num_valid, segment_length * num_heads)
    slots = _select_winners(
        score.reshape(len(num_valid), memory_size),
        num_valid,
        top_k,
        num_buckets,
        winners_per_bucket,
    )
    return slots.reshape(batch, segment_length, num_heads, top_k)


@numba.njit(cache=True)
@typing.no_type_check  # jaxtyping's test hook would wrap the body numba compiles.
def _select_winners(score, num_valid, top_k, num_buckets, winners_per_bucket):
    """Fills the buckets of one row, then selects among the survivors."""
    num_rows = score.shape[0]
    top_score = np.full((num_rows, top_k), -np.inf, score.dtype)
    top_slot = np.full((num_rows, top_k), NO_SLOT, np.int64)
    for row in range(num_rows):
        best_score = np.full((num_buckets, winners_per_bucket), -np.inf, score.dtype)
        best_slot = np.full((num_buckets, winners_per_bucket), NO_SLOT, np.int64)
        for slot in range(num_valid[row]):
            bucket = slot % num_buckets
            search.keep_if_better(
                best_score[bucket], best_slot[bucket], score[row, slot], slot
            )
        # In ascending order, since a tie belongs to the lower slot.
        for slot in np.sort(best_slot.ravel()):
            if slot != NO_SLOT:
                search.keep_if_better(
                    top_score[row], top_slot[row], score[row, slot], slot
                )
    return top_slot


def expected_recall(
    num_buckets: int, winners_per_bucket: int, num_valid: int, top_k: int
) -> float:
    """Returns the share of the true `top_k` that bucketed search finds (BKT-2).

    The expectation is over where the true neighbors lie, every placement among
    the `num_valid` slots being equally likely. A bucket of `size` slots then
    holds `r` of them with hypergeometric probability, and loses `r - w`.
    """
    top_k = min(top_k, num_valid)
    if top_k == 0:
        return 1.0
    small, num_large = divmod(num_valid, num_buckets)
    lost = 0.0
    for size, count in ((small, num_buckets - num_large), (small + 1, num_large)):
        for r in range(winners_per_bucket + 1, min(top_k, size) + 1):
            if size - r <= num_valid - top_k:
                lost += (
                    count
                    * (r - winners_per_bucket)
                    * math.exp(
                        _log_choose(top_k, r)
                        + _log_choose(num_valid - top_k, size - r)
                        - _log_choose(num_valid, size)
                    )
                )
    return 1.0 - lost / top_k


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def choose_buckets(
    recall_target: float, num_valid: int, top_k: int, max_winners: int = 4
) -> tuple[int, int]:
    """Returns the cheapest `(num_buckets, winners_per_bucket)` for a recall (BKT-2).

    Cheapest means fewest survivors `num_buckets * winners_per_bucket`, and among
    equals fewest winners. Buckets are powers of two; as many buckets as slots
    make the search exact, so every target up to 1 can be reached.

    Raises:
      ValueError: if `recall_target` is not in (0, 1].
    """
    if not 0.0 < recall_target <= 1.0:
        raise ValueError(f"recall_target is {recall_target}, must be in (0, 1]")
    choices = []
    for winners in range(1, max_winners + 1):
        num_buckets = 1
        while num_buckets < num_valid and (
            num_buckets * winners < top_k
            or expected_recall(num_buckets, winners, num_valid, top_k) < recall_target
        ):
            num_buckets *= 2
        choices.append((num_buckets * winners, winners, num_buckets))
    _, winners, num_buckets = min(choices)
    return num_buckets, winners
