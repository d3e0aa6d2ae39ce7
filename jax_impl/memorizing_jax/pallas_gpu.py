"""The bucketed search's pass over the memory as one kernel for NVIDIA GPUs (BKT-1).

Each program takes a tile of one head's queries and a tile of the columns, and goes
through the memory stripe by stripe: one slot of every column. Scores are made, compared
with the winners and forgotten in registers. It is written for Triton, which serves all
cards from Ampere on. It has run in interpret mode only, never on a GPU.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jax.lax import Precision
from jaxtyping import Array, Float, Int

from memorizing_jax import bucketed_search

# Tiles are powers of two, and at least 16 for the tensor cores. Two winners of these
# take half of the registers that a program of 256 threads can have.
QUERY_TILE, COLUMN_TILE, LEAST_TILE = 64, 128, 16
NUM_WARPS = 8


def winners(
    queries: Float[Array, "heads segment_length head_dim"],
    keys: Float[Array, "heads memory_size head_dim"],
    num_valid: Int[Array, " heads"],
    *,
    num_columns: int,
    winners_per_column: int,
    interpret: bool = False,
) -> tuple[
    Float[Array, "heads segment_length survivors"],
    Int[Array, "heads segment_length survivors"],
]:
    """Returns what `pallas_tpu.winners` does, of the same arguments."""
    heads, segment_length, head_dim = queries.shape
    query_tile = pl.next_power_of_2(segment_length)
    query_tile = min(QUERY_TILE, max(LEAST_TILE, query_tile))
    padded_dim = max(LEAST_TILE, pl.next_power_of_2(head_dim))
    survivors = winners_per_column * num_columns
    shape = (heads, segment_length, survivors)

    def of_queries(width: int) -> pl.BlockSpec:
        return pl.BlockSpec(
            (None, query_tile, width), lambda head, _, query: (head, query, 0)
        )

    call = pl.pallas_call(
        functools.partial(
            _kernel,
            segment_length=segment_length,
            head_dim=head_dim,
            num_columns=num_columns,
            winners_per_column=winners_per_column,
        ),
        # Programs of one stripe run side by side and share its keys in the cache.
        grid=(heads, num_columns // COLUMN_TILE, pl.cdiv(segment_length, query_tile)),
        in_specs=[
            pl.BlockSpec((1,), lambda head, *_: (head,)),
            of_queries(padded_dim),
            pl.BlockSpec(
                (None, keys.shape[1], padded_dim), lambda head, *_: (head, 0, 0)
            ),
        ],
        out_specs=[of_queries(survivors), of_queries(survivors)],
        out_shape=[
            jax.ShapeDtypeStruct(shape, jnp.float32),
            jax.ShapeDtypeStruct(shape, jnp.int32),
        ],
        compiler_params=triton.CompilerParams(num_warps=NUM_WARPS),
        interpret=interpret,
        name="bucketed_search",
    )
    score, stripe = call(num_valid, queries, keys)
    return score, stripe


def _kernel(  # type: ignore[no-untyped-def]
    num_valid_ref,
    queries_ref,
    keys_ref,
    best_ref,
    stripe_ref,
    *,
    segment_length: int,
    head_dim: int,
    num_columns: int,
    winners_per_column: int,
):
    """Finds the winners of one tile of queries in one tile of columns."""
    query_tile, padded_dim = queries_ref.shape
    # NumPy's rule: JAX has none for mixed types where promotion is strict.
    dtype = np.promote_types(queries_ref.dtype, keys_ref.dtype)
    num_valid = num_valid_ref[0]
    first_column = pl.program_id(1) * COLUMN_TILE
    column = first_column + jnp.arange(COLUMN_TILE, dtype=jnp.int32)
    query = pl.program_id(2) * query_tile + jnp.arange(query_tile, dtype=jnp.int32)
    in_segment = query[:, None] < segment_length
    in_head = jnp.arange(padded_dim, dtype=jnp.int32)[None, :] < head_dim
    queries = triton.load(queries_ref, mask=in_segment & in_head, other=0.0)

    def step(stripe, winners):  # type: ignore[no-untyped-def]
        slots = pl.ds(stripe * num_columns + first_column, COLUMN_TILE)
        valid = stripe * num_columns + column < num_valid
        keys = triton.load(
            keys_ref.at[slots, :], mask=valid[:, None] & in_head, other=0.0
        )
        # q: query, s: slot, d: head_dim
        score = jnp.einsum(
            "qd,sd->qs",
            queries.astype(dtype),
            keys.astype(dtype),
            precision=Precision.HIGHEST if dtype == jnp.float32 else None,
            preferred_element_type=jnp.float32,
        )
        score = jnp.where(valid[None, :], score, -jnp.inf)
        return bucketed_search._challenge(winners, score, stripe)

    shape = (query_tile, COLUMN_TILE)
    nobody = jnp.full(shape, -jnp.inf, jnp.float32), jnp.zeros(shape, jnp.int32)
    num_stripes = jax.lax.div(num_valid + num_columns - 1, num_columns)
    winners = jax.lax.fori_loop(0, num_stripes, step, [nobody] * winners_per_column)
    for i, (score, stripe) in enumerate(winners):
        places = pl.ds(i * num_columns + first_column, COLUMN_TILE)
        triton.store(best_ref.at[:, places], score, mask=in_segment)
        triton.store(stripe_ref.at[:, places], stripe, mask=in_segment)
