"""The last step of a search by approximate scores: true scores of the best (ANN-1)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from memorizing_jax import blocks
from memorizing_jax import memory as memories


def candidates(top_k: int) -> int:
    """Returns how many pairs to score again.

    More than `top_k`, since approximate scores may swap neighbors that nearly tie.
    """
    return top_k + max(8, top_k // 2)


def best_of(
    queries: Float[Array, "batch num_heads segment_length head_dim"],
    keys: Float[Array, "batch num_heads memory_size head_dim"],
    num_valid: Int[Array, " batch"],
    slots: Int[Array, "batch num_heads segment_length candidates"],
    top_k: int,
) -> tuple[jax.Array, jax.Array]:
    """Returns the best `top_k` of some slots by the scores of the keys as stored.

    No slot may come twice. Slots that are not valid score minus infinity.
    """
    found = (slots >= 0) & (slots < num_valid[:, None, None, None])
    # Replaced, not multiplied: what is not valid may be anything (MEM-11).
    chosen = jnp.where(found[..., None], memories.gather(keys, slots), 0)
    # b: batch, h: head, q: query, n: candidate, d: head_dim
    score = blocks.inner_products("bhqd,bhqnd->bhqn", queries, chosen)
    # Minus zero equals zero, but sorts before it.
    score = jnp.where(found, jnp.where(score == 0.0, 0.0, score), -jnp.inf)
    negative, slots = jax.lax.sort((-score, slots), num_keys=2)
    return -negative[..., :top_k], slots[..., :top_k]
