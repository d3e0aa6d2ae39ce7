"""The bucketed search's pass over the memory as one kernel, for NVIDIA GPUs (BKT-1).

Each program takes a tile of one head's queries and a tile of its buckets, and
goes through the memory stripe by stripe: one slot of every bucket. Scores are
made, compared with the winners and forgotten in registers.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jax.lax import DotAlgorithmPreset, Precision
from jaxtyping import Array, Float, Int

from memorizing_jax import bucketed_search

# A tile of either kind is a power of two, and at least 16 for the tensor cores.
QUERY_TILE = 64
BUCKET_TILE = 128


def winners(
    queries: Float[Array, "batch num_heads segment_length head_dim"],
    keys: Float[Array, "batch num_heads memory_size head_dim"],
    num_valid: Int[Array, " batch"],
    *,
    num_buckets: int,
    winners_per_bucket: int,
    query_tile: int = QUERY_TILE,
    bucket_tile: int = BUCKET_TILE,
    num_warps: int = 4,
    num_stages: int = 2,
    algorithm: DotAlgorithmPreset = DotAlgorithmPreset.TF32_TF32_F32_X3,
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
      num_valid: what stands in slots from there on is not looked at.
      num_buckets: a multiple of `bucket_tile`.
      winners_per_bucket: slots kept per bucket.
      query_tile: queries of a program, at most.
      bucket_tile: buckets of a program.
      num_warps: of a program.
      num_stages: blocks of keys on their way while one is worked on.
      algorithm: how float32 products are taken. Each float32 split in two
        TensorFloat-32 numbers is nearly as accurate as float32 itself.
      interpret: runs the kernel as plain JAX, anywhere, for tests.
    """
    batch, num_heads, segment_length, head_dim = queries.shape
    rows = batch * num_heads
    query_tile = min(query_tile, max(16, pl.next_power_of_2(segment_length)))
    padded_dim = max(16, pl.next_power_of_2(head_dim))
    dtype = jnp.promote_types(queries.dtype, keys.dtype)
    survivors = winners_per_bucket * num_buckets
    if dtype != jnp.float32:
        algorithm = None
    elif interpret:
        algorithm = Precision.HIGHEST
    kernel = functools.partial(
        _kernel,
        segment_length=segment_length,
        head_dim=head_dim,
        num_buckets=num_buckets,
        bucket_tile=bucket_tile,
        winners_per_bucket=winners_per_bucket,
        algorithm=algorithm,
    )
    tile_of_survivors = pl.BlockSpec(
        (None, query_tile, survivors), lambda row, bucket, query: (row, query, 0)
    )
    shape = (rows, segment_length, survivors)
    score, slot = pl.pallas_call(
        kernel,
        # Programs of one stripe run side by side and share its keys in the cache.
        grid=(rows, num_buckets // bucket_tile, pl.cdiv(segment_length, query_tile)),
        in_specs=[
            pl.BlockSpec((1,), lambda row, bucket, query: (row,)),
            pl.BlockSpec(
                (None, query_tile, padded_dim), lambda row, bucket, query: (row, query, 0)
            ),
            pl.BlockSpec(
                (None, keys.shape[2], padded_dim), lambda row, bucket, query: (row, 0, 0)
            ),
        ],
        out_specs=[tile_of_survivors, tile_of_survivors],
        out_shape=[
            jax.ShapeDtypeStruct(shape, jnp.float32),
            jax.ShapeDtypeStruct(shape, jnp.int32),
        ],
        compiler_params=triton.CompilerParams(
            num_warps=num_warps, num_stages=num_stages
        ),
        interpret=interpret,
        name="bucketed_search",
    )(
        jnp.repeat(num_valid, num_heads),
        queries.reshape(rows, segment_length, head_dim).astype(dtype),
        keys.reshape(rows, -1, head_dim),
    )
    split = (batch, num_heads, segment_length, survivors)
    return score.reshape(split), slot.reshape(split)


def _kernel(
    num_valid_ref,
    queries_ref,
    keys_ref,
    score_ref,
    slot_ref,
    *,
    segment_length,
    head_dim,
    num_buckets,
    bucket_tile,
    winners_per_bucket,
    algorithm,
):  # type: ignore[no-untyped-def]
    """Finds the winners of one tile of queries in one tile of buckets."""
    query_tile, padded_dim = queries_ref.shape
    num_valid = num_valid_ref[0]
    first_bucket = pl.program_id(1) * bucket_tile
    bucket = first_bucket + jnp.arange(bucket_tile, dtype=jnp.int32)

    query = pl.program_id(2) * query_tile + jnp.arange(query_tile, dtype=jnp.int32)
    in_segment = query[:, None] < segment_length
    in_head = jnp.arange(padded_dim, dtype=jnp.int32)[None, :] < head_dim
    queries = triton.load(queries_ref, mask=in_segment & in_head, other=0.0)

    def step(stripe, winners, *, partly_valid):  # type: ignore[no-untyped-def]
        first = stripe * num_buckets + first_bucket
        valid = stripe * num_buckets + bucket < num_valid
        mask = in_head if padded_dim > head_dim else None
        if partly_valid:
            mask = valid[:, None] & in_head
        keys = triton.load(
            keys_ref.at[pl.ds(first, bucket_tile), :],
            mask=mask,
            other=None if mask is None else 0.0,
        )
        # q: query, s: slot, d: head_dim
        score = jnp.einsum(
            "qd,sd->qs",
            queries,
            keys.astype(queries.dtype),
            precision=algorithm,
            preferred_element_type=jnp.float32,
        )
        if partly_valid:
            score = jnp.where(valid[None, :], score, -jnp.inf)
        return bucketed_search._challenge(winners, score, stripe)

    shape = (query_tile, bucket_tile)
    nobody = jnp.full(shape, -jnp.inf), jnp.full(shape, -1, jnp.int32)
    num_whole = jax.lax.div(num_valid, num_buckets)
    winners = jax.lax.fori_loop(
        0,
        num_whole,
        functools.partial(step, partly_valid=False),
        [nobody] * winners_per_bucket,
    )
    winners = jax.lax.fori_loop(
        num_whole,
        jax.lax.div(num_valid + num_buckets - 1, num_buckets),
        functools.partial(step, partly_valid=True),
        winners,
    )
    for i, (score, stripe) in enumerate(winners):
        columns = pl.ds(i * num_buckets + first_bucket, bucket_tile)
        slot = jnp.where(stripe < 0, -1, stripe * num_buckets + bucket[None, :])
        # Minus zero equals zero, but `top_k` would rank it lower.
        score = jnp.where(score == 0.0, 0.0, score)
        triton.store(score_ref.at[:, columns], score, mask=in_segment)
        triton.store(slot_ref.at[:, columns], slot, mask=in_segment)


def best_survivors(
    score: Float[Array, "batch num_heads segment_length survivors"],
    slot: Int[Array, "batch num_heads segment_length survivors"],
    top_k: int,
    *,
    interpret: bool = False,
) -> tuple[
    Float[Array, "batch num_heads segment_length top_k"],
    Int[Array, "batch num_heads segment_length top_k"],
]:
    """Selects the best `top_k`, best first, ties to the lower slot (KNN-1).

    It takes the best, `top_k` times over. A sort would order all survivors, and
    XLA's top-k, whose ties go by place, would need its result sorted again.
    """
    num_survivors = score.shape[-1]
    width = pl.next_power_of_2(num_survivors)
    # One warp a program: its threads find a maximum without a barrier.
    tile = max(1, 1024 // width)
    num_queries = score.size // num_survivors
    padded_top_k = pl.next_power_of_2(top_k)
    survivors = pl.BlockSpec((tile, width), lambda query: (query, 0))
    chosen = pl.BlockSpec((tile, padded_top_k), lambda query: (query, 0))
    best_score, best_slot = pl.pallas_call(
        functools.partial(
            _select_kernel,
            num_queries=num_queries,
            num_survivors=num_survivors,
            top_k=top_k,
        ),
        grid=(pl.cdiv(num_queries, tile),),
        in_specs=[survivors, survivors],
        out_specs=[chosen, chosen],
        out_shape=[
            jax.ShapeDtypeStruct((num_queries, top_k), jnp.float32),
            jax.ShapeDtypeStruct((num_queries, top_k), jnp.int32),
        ],
        compiler_params=triton.CompilerParams(num_warps=1),
        interpret=interpret,
        name="best_survivors",
    )(score.reshape(-1, num_survivors), slot.reshape(-1, num_survivors))
    shape = (*score.shape[:-1], top_k)
    return best_score.reshape(shape), best_slot.reshape(shape)


def _select_kernel(  # type: ignore[no-untyped-def]
    score_ref,
    slot_ref,
    best_score_ref,
    best_slot_ref,
    *,
    num_queries,
    num_survivors,
    top_k,
):
    """Selects for one tile of queries."""
    tile, width = score_ref.shape
    padded_top_k = best_score_ref.shape[1]
    query = pl.program_id(0) * tile + jnp.arange(tile, dtype=jnp.int32)
    real = query[:, None] < num_queries
    rank = jnp.arange(padded_top_k, dtype=jnp.int32)[None, :]
    mask = real & (jnp.arange(width, dtype=jnp.int32)[None, :] < num_survivors)
    slot = triton.load(slot_ref, mask=mask, other=-1)

    def step(i, carry):  # type: ignore[no-untyped-def]
        score, best_score, best_slot = carry
        best = jnp.max(score, axis=1, keepdims=True)
        ties = jnp.where(score == best, slot, jnp.iinfo(jnp.int32).max)
        first = jnp.min(ties, axis=1, keepdims=True)
        return (
            jnp.where(slot == first, -jnp.inf, score),
            jnp.where(rank == i, best, best_score),
            jnp.where(rank == i, first, best_slot),
        )

    carry = (
        triton.load(score_ref, mask=mask, other=-jnp.inf),
        jnp.full((tile, padded_top_k), -jnp.inf),
        jnp.full((tile, padded_top_k), -1, jnp.int32),
    )
    _, best_score, best_slot = jax.lax.fori_loop(0, top_k, step, carry)
    wanted = real & (rank < top_k)
    triton.store(best_score_ref, best_score, mask=wanted)
    triton.store(best_slot_ref, best_slot, mask=wanted)
