"""ScaNN search: the host finds candidates, their true scores decide (ANN-1, ANN-2)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from memorizing_jax import rescoring, scann_index
from memorizing_jax.scann_index import ScannIndex


def top_k(
    queries: Float[Array, "batch num_heads segment_length head_dim"],
    keys: Float[Array, "batch num_heads memory_size head_dim"],
    num_written: Int[Array, " batch"],
    index: ScannIndex,
    *,
    top_k: int,
    recall_target: float,
) -> tuple[jax.Array, jax.Array]:
    """Returns the scores and slots of the best `top_k` pairs that ScaNN names.

    Best first, ties to the lower slot. Where there are fewer, the tail scores minus
    infinity and its slots mean nothing.
    """
    memory_size = keys.shape[2]
    slots = scann_index.find(
        index,
        num_written,
        queries,
        keys,
        wanted=min(rescoring.candidates(top_k), memory_size),
        recall_target=recall_target,
    )
    num_valid = jnp.minimum(num_written, memory_size)
    return rescoring.best_of(queries, keys, num_valid, slots, top_k)
