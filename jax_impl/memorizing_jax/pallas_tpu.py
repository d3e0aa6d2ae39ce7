"""The bucketed search's pass over the memory as one kernel, for TPU (BKT-1).

The grid goes through the memory block by block, for each tile of one head's
queries. Scores stay in vector memory, and so do the winners until the last block.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu
from jax.lax import Precision
from jaxtyping import Array, Float, Int

from memorizing_jax import bucketed_search

# Columns of a vector register: what is laid side by side is a multiple of it.
LANES = 128
# Rows of a tile, for bfloat16 as well.
SUBLANES = 16
QUERY_TILE = 256
BLOCK_SIZE = 1024


def winners(
    queries: Float[Array, "batch num_heads segment_length head_dim"],
    keys: Float[Array, "batch num_heads memory_size head_dim"],
    num_valid: Int[Array, " batch"],
    *,
    num_buckets: int,
    winners_per_bucket: int,
    query_tile: int = QUERY_TILE,
    block_size: int = BLOCK_SIZE,
    interpret: bool = False,
) -> tuple[
    Float[Array, "batch num_heads segment_length survivors"],
    Int[Array, "batch num_heads segment_length survivors"],
]:
    """Returns scores and slots of the winners of every bucket, in no useful order.

    Where a bucket has fewer valid slots, minus infinity and -1.

    Args:
      queries: float32 or bfloat16.
      keys: float32 or bfloat16.
      num_valid: blocks from there on are neither fetched nor looked at.
      num_buckets: a multiple of 128.
      winners_per_bucket: slots kept per bucket.
      query_tile: queries that meet a block at once, at most; a multiple of 16.
      block_size: slots fetched at once; rounded up to a multiple of `num_buckets`.
      interpret: runs the kernel as plain JAX, anywhere, for tests.
    """
    batch, num_heads, segment_length, head_dim = queries.shape
    rows = batch * num_heads
    query_tile = min(query_tile, pl.cdiv(segment_length, SUBLANES) * SUBLANES)
    block_size = pl.cdiv(block_size, num_buckets) * num_buckets
    dtype = jnp.promote_types(queries.dtype, keys.dtype)
    survivors = winners_per_bucket * num_buckets

    def queries_of(row, query, block, num_valid):  # type: ignore[no-untyped-def]
        del block, num_valid
        return row, query, 0

    def keys_of(row, query, block, num_valid):  # type: ignore[no-untyped-def]
        # A block that was fetched already is not fetched again.
        del query
        last = jnp.maximum(num_valid[row // num_heads] - 1, 0) // block_size
        return row, jnp.minimum(block, last), 0

    tile_of_survivors = pl.BlockSpec((None, query_tile, survivors), queries_of)
    shape = (rows, segment_length, survivors)
    score, slot = pl.pallas_call(
        functools.partial(
            _kernel,
            num_heads=num_heads,
            num_buckets=num_buckets,
            winners_per_bucket=winners_per_bucket,
        ),
        grid_spec=tpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(
                rows,
                pl.cdiv(segment_length, query_tile),
                pl.cdiv(keys.shape[2], block_size),
            ),
            in_specs=[
                pl.BlockSpec((None, query_tile, head_dim), queries_of),
                pl.BlockSpec((None, block_size, head_dim), keys_of),
            ],
            out_specs=[tile_of_survivors, tile_of_survivors],
        ),
        out_shape=[
            jax.ShapeDtypeStruct(shape, jnp.float32),
            jax.ShapeDtypeStruct(shape, jnp.int32),
        ],
        compiler_params=tpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        interpret=interpret,
        name="bucketed_search",
    )(
        num_valid,
        queries.reshape(rows, segment_length, head_dim).astype(dtype),
        keys.reshape(rows, -1, head_dim),
    )
    split = (batch, num_heads, segment_length, survivors)
    return score.reshape(split), slot.reshape(split)


def _kernel(  # type: ignore[no-untyped-def]
    num_valid_ref,
    queries_ref,
    keys_ref,
    score_ref,
    slot_ref,
    *,
    num_heads,
    num_buckets,
    winners_per_bucket,
):
    """Lets one block of slots challenge the winners so far."""
    num_valid = num_valid_ref[pl.program_id(0) // num_heads]
    block_size = keys_ref.shape[0]
    first_slot = pl.program_id(2) * block_size
    columns = [
        pl.ds(i * num_buckets, num_buckets) for i in range(winners_per_bucket)
    ]

    @pl.when(pl.program_id(2) == 0)
    def _():  # type: ignore[no-untyped-def]
        score_ref[...] = jnp.full(score_ref.shape, -jnp.inf)
        slot_ref[...] = jnp.full(slot_ref.shape, -1, jnp.int32)

    @pl.when(first_slot < num_valid)
    def _():  # type: ignore[no-untyped-def]
        queries = queries_ref[...]
        winners = [(score_ref[:, some], slot_ref[:, some]) for some in columns]
        # One stripe holds one slot of every bucket.
        for first in range(0, block_size, num_buckets):
            stripe = keys_ref[pl.ds(first, num_buckets), :]
            # q: query, s: slot, d: head_dim
            score = jnp.einsum(
                "qd,sd->qs",
                queries,
                stripe.astype(queries.dtype),
                precision=Precision.HIGHEST if queries.dtype == jnp.float32 else None,
                preferred_element_type=jnp.float32,
            )
            slot = first_slot + first + jax.lax.broadcasted_iota(
                jnp.int32, score.shape, 1
            )
            score = jnp.where(slot < num_valid, score, -jnp.inf)
            # Minus zero equals zero, but `top_k` would rank it lower.
            score = jnp.where(score == 0.0, 0.0, score)
            winners = bucketed_search._challenge(winners, score, slot)
        for some, (score, slot) in zip(columns, winners, strict=True):
            score_ref[:, some] = score
            slot_ref[:, some] = slot
