"""Scores of a memory, block by block.

Every engine reads the memory once, a block of slots at a time, and keeps only
what it needs of a block's scores before it goes on. So none ever holds an array
of `[queries, memory_size]`, and what a search allocates does not grow with the
memory.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import Precision
from jaxtyping import Array, Float, Int

Carry = TypeVar("Carry")

# Slots per block: enough for a matrix product to run at full speed, few enough
# that their scores stay near the processor.
BLOCK_SIZE = 2048


def scan_blocks(
    update: Callable[[Carry, jax.Array, jax.Array], Carry],
    carry: Carry,
    queries: Float[Array, "batch num_heads segment_length head_dim"],
    keys: Float[Array, "batch num_heads memory_size head_dim"],
    num_valid: Int[Array, " batch"],
    block_size: int,
) -> Carry:
    """Folds `update(carry, score, first_slot)` over the blocks, in slot order.

    `score` is [batch, num_heads, segment_length, slots] in float32, minus
    infinity where a slot is not valid; `first_slot` is the slot of its first
    column. The last block may be shorter than `block_size`.
    """
    memory_size = keys.shape[2]
    num_whole = memory_size // block_size

    def step(block: jax.Array, carry: Carry) -> Carry:
        first = block * block_size
        some = jax.lax.dynamic_slice_in_dim(keys, first, block_size, axis=2)
        return update(carry, _scores(queries, some, first, num_valid), first)

    if num_whole > 0:
        carry = jax.lax.fori_loop(0, jnp.int32(num_whole), step, carry)
    if rest := memory_size - num_whole * block_size:
        first = jnp.int32(num_whole * block_size)
        some = keys[:, :, memory_size - rest :]
        carry = update(carry, _scores(queries, some, first, num_valid), first)
    return carry


def _scores(
    queries: jax.Array, keys: jax.Array, first_slot: jax.Array, num_valid: jax.Array
) -> jax.Array:
    """Returns the inner products of every query with one block of slots.

    The product is taken at the highest precision, of values as stored, so that
    scores are float32 also where float32 products default to less (MEM-10).
    """
    # NumPy's rule: JAX has none for mixed types where promotion is strict.
    dtype = np.promote_types(queries.dtype, keys.dtype)
    # b: batch, h: head, q: query, s: slot, d: head_dim
    score = jnp.einsum(
        "bhqd,bhsd->bhqs",
        queries.astype(dtype),
        keys.astype(dtype),
        precision=Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
    slot = first_slot + jnp.arange(keys.shape[2], dtype=jnp.int32)
    valid = slot[None, None, None, :] < num_valid[:, None, None, None]
    score = jnp.where(valid, score, -jnp.inf)
    # Minus zero equals zero, but `top_k` would rank it lower.
    return jnp.where(score == 0.0, 0.0, score)


def largest(
    score: Float[Array, "*shape n"], top_k: int
) -> tuple[Float[Array, "*shape top_k"], Int[Array, "*shape top_k"]]:
    """Returns `jax.lax.top_k`, kept apart from what uses it.

    XLA recognizes a top-k by the slice behind its sort. Where another slice
    follows it merges the two, and sorts in full: seven times slower on a CPU.
    """
    score, place = jax.lax.top_k(score, top_k)
    # One by one: of a barrier around both, XLA 0.10.2 makes a pair again when it
    # partitions, and then takes the barrier for a slice and fails.
    return jax.lax.optimization_barrier(score), jax.lax.optimization_barrier(place)
