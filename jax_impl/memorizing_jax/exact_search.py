"""Exact search: a running top-k over the blocks of the memory (KNN-1, KNN-2)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from memorizing_jax import blocks

BlockTopK = tuple[jax.Array, jax.Array]


def top_k(
    queries: Float[Array, "batch num_heads segment_length head_dim"],
    keys: Float[Array, "batch num_heads memory_size head_dim"],
    num_valid: Int[Array, " batch"],
    *,
    top_k: int,
) -> BlockTopK:
    """Returns the scores and slots of the `top_k` best valid slots, best first.

    Where a row has fewer, the tail scores minus infinity and its slots mean
    nothing. Port of `memorizing_reference.search.top_k_slots`.
    """
    return running_top_k(queries, keys, num_valid, blocks.largest, top_k=top_k)


def approx_max_k(
    queries: Float[Array, "batch num_heads segment_length head_dim"],
    keys: Float[Array, "batch num_heads memory_size head_dim"],
    num_valid: Int[Array, " batch"],
    *,
    top_k: int,
    recall_target: float,
) -> BlockTopK:
    """Same, with XLA's own approximation inside each block (ANN-1, ANN-2).

    It approximates on TPU only; elsewhere XLA sorts, and the result is exact.
    """

    def of_block(score: jax.Array, k: int) -> BlockTopK:
        found = jax.lax.approx_max_k(score, k, recall_target=recall_target)
        return found[0], found[1]

    return running_top_k(queries, keys, num_valid, of_block, top_k=top_k)


def running_top_k(queries, keys, num_valid, of_block, *, top_k):  # type: ignore[no-untyped-def]
    """Keeps the best `top_k` so far; `of_block(score, k)` picks those of a block."""

    def update(best: BlockTopK, score: jax.Array, first_slot: jax.Array) -> BlockTopK:
        block_score, column = of_block(score, min(top_k, score.shape[-1]))
        # The best so far come first and have the lower slots; `top_k` prefers
        # what comes first, so a tie goes to the lower slot.
        score = jnp.concatenate([best[0], block_score], axis=-1)
        slot = jnp.concatenate([best[1], first_slot + column], axis=-1)
        score, winner = blocks.largest(score, top_k)
        return score, jnp.take_along_axis(slot, winner, axis=-1)

    shape = (*queries.shape[:3], top_k)
    nothing = jnp.full(shape, -jnp.inf), jnp.full(shape, -1, jnp.int32)
    return blocks.scan_blocks(
        update, nothing, queries, keys, num_valid, blocks.BLOCK_SIZE
    )
