"""Nearest-neighbor search over the memory: one interface, several engines.

All engines see the same memory and answer in the same form. None of them is
differentiated: gradient reaches a query through the attention over what it
retrieved, not through which slots those were (MEM-8).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from memorizing_jax import bucketed_search, exact_search
from memorizing_jax.config import SearchEngine
from memorizing_jax.errors import InputError
from memorizing_jax.memory import Memory


class Found(NamedTuple):
    """What a search returns, best first.

    Attributes:
      slots: -1 where there is no neighbor: only at the tail (KNN-2, ANN-1).
      scores: inner product of query and key; minus infinity where slots is -1.
    """

    slots: Int[Array, "batch num_heads segment_length top_k"]
    scores: Float[Array, "batch num_heads segment_length top_k"]


def find(
    queries: Float[Array, "batch segment_length num_heads head_dim"],
    memory: Memory,
    *,
    top_k: int,
    engine: SearchEngine = "bucketed",
    recall_target: float = 0.98,
) -> Found:
    """Returns each query's neighbors among the valid slots of its row and head.

    Args:
      queries: normalized, not scaled (QKN-3).
      memory: reset, and not yet holding the segment (MEM-4).
      top_k: neighbors wanted, which may exceed what the memory holds.
      engine: "exact" finds the best (KNN-1); "bucketed" those that win in their
        bucket (BKT-1); "approx_max_k" is XLA's own.
      recall_target: share of the true neighbors that the last two aim at.
    """
    queries, keys = jax.lax.stop_gradient((queries, memory.keys))
    queries = queries.swapaxes(1, 2)  # Head by head, as the memory is laid out.
    args = (queries, keys, memory.num_valid)
    if engine == "exact":
        scores, slots = exact_search.top_k(*args, top_k=top_k)
    elif engine == "approx_max_k":
        scores, slots = exact_search.approx_max_k(
            *args, top_k=top_k, recall_target=recall_target
        )
    elif engine == "bucketed":
        num_buckets, winners = bucketed_search.choose_buckets(
            recall_target, memory.memory_size, top_k
        )
        scores, slots = bucketed_search.top_k(
            *args, top_k=top_k, num_buckets=num_buckets, winners_per_bucket=winners
        )
    else:
        raise InputError(
            f"search is {engine!r}, must be exact, bucketed or approx_max_k"
        )
    slots = jnp.where(jnp.isneginf(scores), -1, slots)
    tail = [(0, 0)] * 3 + [(0, top_k - slots.shape[-1])]
    return Found(
        jnp.pad(slots, tail, constant_values=-1),
        jnp.pad(scores, tail, constant_values=-jnp.inf),
    )


def require_finite(queries: np.ndarray, memory: Memory) -> None:
    """Refuses queries and retrievable keys with an infinity or a NaN (KNN-3).

    It brings both to the host, so it is for debugging and for tests.

    Args:
      queries: [batch, segment_length, num_heads, head_dim].
      memory: its valid slots are looked at; what a reset hid is not.

    Raises:
      InputError: names the array and the index of its first bad element, keys as
        [batch, slot, num_heads, head_dim].
    """
    keys = np.asarray(memory.keys, np.float32).swapaxes(1, 2)
    slot, num_valid = np.arange(memory.memory_size), np.asarray(memory.num_valid)
    valid = slot[None, :] < num_valid[:, None]
    keys = np.where(valid[:, :, None, None], keys, 0.0)
    for name, array in (("queries", np.asarray(queries, np.float32)), ("keys", keys)):
        bad = np.argwhere(~np.isfinite(array))
        if bad.size:
            index = tuple(int(i) for i in bad[0])
            raise InputError(f"{name}[{index}] is {array[index]}, must be finite")
