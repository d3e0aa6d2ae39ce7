"""Exact nearest-neighbor search over the memory (KNN-1 to KNN-3).

Two functions give the same answer. `top_k_slots_numpy` is the definition: one
stable sort. `top_k_slots` is what the rest of the reference calls: a Numba
kernel that never sorts the whole memory. `tests/test_search.py` holds them
equal, bit for bit.
"""

import typing

import numba
import numpy as np
from jaxtyping import Float, Int

from memorizing_reference.memory import Memory

NO_SLOT = -1  # Marks a result that does not exist: fewer valid slots than top_k.


def require_finite(name: str, array: Float[np.ndarray, "*shape"]) -> None:
    """Refuses an array with an infinity or a NaN (KNN-3).

    Raises:
      ValueError: names the array and the index of its first bad element.
    """
    bad = np.argwhere(~np.isfinite(array))
    if bad.size:
        index = tuple(int(i) for i in bad[0])
        raise ValueError(f"{name}[{index}] is {array[index]}, must be finite")


def scores(
    queries: Float[np.ndarray, "batch segment_length num_heads head_dim"],
    memory: Memory,
) -> Float[np.ndarray, "batch segment_length num_heads memory_size"]:
    """Returns the inner product of every query with every slot.

    A slot that is not valid scores minus infinity, whatever lies in it (MEM-3).

    Raises:
      ValueError: if a query or a valid key is not finite, or their product
        overflows (KNN-3).
    """
    slot = np.arange(memory.memory_size)
    valid = slot[None, :] < memory.num_valid[:, None]  # [batch, memory_size]
    require_finite("queries", queries)
    keys = np.where(valid[:, :, None, None], memory.keys, 0)
    require_finite("keys", keys)
    # Each query head searches the memory of its key-value head (PRE-1).
    keys = np.repeat(keys, queries.shape[2] // keys.shape[2], axis=2)
    # b: batch, q: query position, s: slot, h: head, d: head_dim
    with np.errstate(over="ignore", invalid="ignore"):
        score = np.einsum("bqhd,bshd->bqhs", queries, keys, optimize=True)
    require_finite("scores", score)
    return np.where(valid[:, None, None, :], score, -np.inf)


def top_k_slots_numpy(
    queries: Float[np.ndarray, "batch segment_length num_heads head_dim"],
    memory: Memory,
    top_k: int,
) -> Int[np.ndarray, "batch segment_length num_heads top_k"]:
    """Returns the slots of the `top_k` largest scores, best first.

    Only valid slots compete. Equal scores go to the lower slot (KNN-1). Where a
    row has fewer than `top_k` valid slots the tail is `NO_SLOT` (KNN-2).

    Raises:
      ValueError: if a query or a valid key is not finite (KNN-3).
    """
    score = scores(queries, memory)
    best_first = np.argsort(-score, axis=-1, kind="stable")[..., :top_k]
    missing = max(0, top_k - memory.memory_size)
    best_first = np.pad(
        best_first, [(0, 0)] * 3 + [(0, missing)], constant_values=memory.memory_size
    )
    num_valid = memory.num_valid[:, None, None, None]
    return np.where(best_first < num_valid, best_first, NO_SLOT)


def top_k_slots(
    queries: Float[np.ndarray, "batch segment_length num_heads head_dim"],
    memory: Memory,
    top_k: int,
) -> Int[np.ndarray, "batch segment_length num_heads top_k"]:
    """Same result as `top_k_slots_numpy`, in one pass over the memory.

    Raises:
      ValueError: if a query or a valid key is not finite (KNN-3).
    """
    score = scores(queries, memory)
    batch, segment_length, num_heads, memory_size = score.shape
    num_valid = np.repeat(memory.num_valid, segment_length * num_heads)
    slots = _select_top_k(score.reshape(len(num_valid), memory_size), num_valid, top_k)
    return slots.reshape(batch, segment_length, num_heads, top_k)


@numba.njit(cache=True)
@typing.no_type_check  # jaxtyping's test hook would wrap the body numba compiles.
def _select_top_k(score, num_valid, top_k):
    """Selects from `score[row, :num_valid[row]]`, row by row.

    fastmath stays off: it lets the compiler assume there is no infinity, and
    `best_score` starts at -inf.
    """
    num_rows = score.shape[0]
    best_score = np.full((num_rows, top_k), -np.inf, score.dtype)
    best_slot = np.full((num_rows, top_k), NO_SLOT, np.int64)
    for row in range(num_rows):
        for slot in range(num_valid[row]):
            keep_if_better(best_score[row], best_slot[row], score[row, slot], slot)
    return best_slot


@numba.njit(cache=True)
@typing.no_type_check
def keep_if_better(best_score, best_slot, score, slot):
    """Sorts one candidate into a list of the best so far, best first, in place.

    The candidate walks forward from the end, so most cost one comparison and
    nothing else. Slots must come in ascending order.
    """
    rank = len(best_score)
    # Strictly greater: on a tie the lower slot, seen first, stays ahead.
    while rank > 0 and score > best_score[rank - 1]:
        if rank < len(best_score):
            best_score[rank] = best_score[rank - 1]
            best_slot[rank] = best_slot[rank - 1]
        rank -= 1
    if rank < len(best_score):
        best_score[rank] = score
        best_slot[rank] = slot
