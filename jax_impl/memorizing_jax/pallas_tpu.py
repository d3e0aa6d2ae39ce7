"""The bucketed search's pass over the memory as one kernel for TPU (BKT-1).

For each tile of one head's queries, the grid goes through the memory block by block.
The scores of a block stay in vector memory, and so do the winners until the last one.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu
from jax.lax import Precision
from jaxtyping import Array, Float, Int

from memorizing_jax import bucketed_search

# A vector register is 8 rows of 128 numbers; a tile of bfloat16 has 16 rows.
LANES, ROWS = 128, 16
# Queries that meet a block at once. Keys come from HBM once for every tile, to 2 * 512
# operations each number: twice as many as v5e does while it comes (197 TFLOP/s in bf16
# and 819 GB/s), so that the pass does not wait for memory.
MAX_QUERY_TILE = 512
# Slots per block, whose scores for a whole tile take 2 MiB.
MIN_BLOCK_SIZE = 1024
# Rows whose winners stand in registers, of which there are 64, while the stripes of a
# block pass. By the compiler's schedule for v5e, 8 rows of scores then take 2.6
# cycles; 4.3 with 32 rows and 5.2 with 64, where registers no longer suffice.
ROWS_AT_ONCE = 16
# Half of what the compiler allows a kernel on v5e; it needs some for itself.
VECTOR_MEMORY = 8 * 2**20


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
    """Returns scores of the winners of every column, and how often it came round.

    Column `c` holds the slots `i * num_columns + c`; what is returned is `i`. The best
    of all columns come first, then the second best. A column with fewer valid slots
    than winners scores minus infinity.

    Args:
      queries: float32 or bfloat16; of every row and head.
      keys: float32 or bfloat16.
      num_valid: blocks from there on are neither fetched nor looked at.
      num_columns: a multiple of 128.
      winners_per_column: kept.
      interpret: runs the kernel as plain JAX, anywhere, for tests.
    """
    heads, segment_length, head_dim = queries.shape
    memory_size, survivors = keys.shape[1], winners_per_column * num_columns
    query_tile, block_size = _tiles(segment_length, head_dim, num_columns, survivors)
    # A TPU lays out narrow heads with the slots side by side, so as not to waste lanes.
    # The kernel has to take them so, or all keys are copied first.
    slots_last = head_dim % LANES != 0

    def query_block(head: Any, query: Any, block: Any, num_valid: Any) -> Any:
        del block, num_valid
        return head, query, 0

    def key_block(head: Any, query: Any, block: Any, num_valid: Any) -> Any:
        # Past the valid slots the block at hand stays, for none to be fetched.
        del query
        last = jax.lax.div(jnp.maximum(num_valid[head] - 1, 0), block_size)
        block = jnp.minimum(block, last)
        return (head, 0, block) if slots_last else (head, block, 0)

    block_shape = (head_dim, block_size) if slots_last else (block_size, head_dim)
    of_queries = pl.BlockSpec((None, query_tile, survivors), query_block)
    shape = (heads, segment_length, survivors)
    call = pl.pallas_call(
        functools.partial(_kernel, num_columns=num_columns, slots_last=slots_last),
        grid_spec=tpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(
                heads,
                pl.cdiv(segment_length, query_tile),
                pl.cdiv(memory_size, block_size),
            ),
            in_specs=[
                pl.BlockSpec((None, query_tile, head_dim), query_block),
                pl.BlockSpec((None, *block_shape), key_block),
            ],
            out_specs=[of_queries, of_queries],
            scratch_shapes=[tpu.VMEM((query_tile, block_size), jnp.float32)],
        ),
        out_shape=[
            jax.ShapeDtypeStruct(shape, dtype) for dtype in (jnp.float32, jnp.int32)
        ],
        compiler_params=tpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        interpret=interpret,
        name="bucketed_search",
    )
    keys = keys.swapaxes(1, 2) if slots_last else keys
    score, stripe = call(num_valid, queries, keys)
    return score, stripe


def _tiles(
    segment_length: int, head_dim: int, num_columns: int, survivors: int
) -> tuple[int, int]:
    """Returns `(query_tile, block_size)` that fit into the vector memory."""
    block_size = pl.cdiv(MIN_BLOCK_SIZE, num_columns) * num_columns
    query_tile = min(MAX_QUERY_TILE, pl.cdiv(segment_length, ROWS) * ROWS)
    lanes = pl.cdiv(head_dim, LANES) * LANES
    while query_tile > ROWS:
        # All but the scores are there twice: one is at work, one on its way.
        numbers = 2 * (query_tile + block_size) * lanes
        numbers += query_tile * (block_size + 4 * survivors)
        if 4 * numbers <= VECTOR_MEMORY:
            break
        query_tile = pl.cdiv(query_tile // 2, ROWS) * ROWS
    return query_tile, block_size


def _kernel(  # type: ignore[no-untyped-def]
    num_valid_ref,
    queries_ref,
    keys_ref,
    best_ref,
    stripe_ref,
    scores_ref,
    *,
    num_columns: int,
    slots_last: bool,
):
    """Lets one block of slots challenge the winners so far."""
    num_valid = num_valid_ref[pl.program_id(0)]
    block = pl.program_id(2)
    query_tile, block_size = scores_ref.shape
    stripes = block_size // num_columns
    winners = best_ref.shape[1] // num_columns
    first_slot = block * block_size
    rows_at_once = min(query_tile, ROWS_AT_ONCE)

    @pl.when(block == 0)
    def _():  # type: ignore[no-untyped-def]
        best_ref[...] = jnp.full(best_ref.shape, -jnp.inf, jnp.float32)
        stripe_ref[...] = jnp.zeros(stripe_ref.shape, jnp.int32)

    @pl.when(first_slot < num_valid)
    def _():  # type: ignore[no-untyped-def]
        queries, keys = queries_ref[...], keys_ref[...]
        # NumPy's rule: JAX has none for mixed types where promotion is strict.
        dtype = np.promote_types(queries.dtype, keys.dtype)
        # q: query, s: slot, d: head_dim
        scores_ref[...] = jnp.einsum(
            "qd,ds->qs" if slots_last else "qd,sd->qs",
            queries.astype(dtype),
            keys.astype(dtype),
            precision=Precision.HIGHEST if dtype == jnp.float32 else None,
            preferred_element_type=jnp.float32,
        )

        # The only block that is valid in part; the others are spared the comparison.
        @pl.when(first_slot + block_size > num_valid)
        def _():  # type: ignore[no-untyped-def]
            slot = jax.lax.broadcasted_iota(jnp.int32, scores_ref.shape, 1)
            valid = slot < num_valid - first_slot
            scores_ref[...] = jnp.where(valid, scores_ref[...], -jnp.inf)

        @pl.loop(0, query_tile, step=rows_at_once)
        def _(first_row):  # type: ignore[no-untyped-def]
            rows = pl.ds(pl.multiple_of(first_row, rows_at_once), rows_at_once)
            for column in range(0, num_columns, LANES):
                places = [
                    (rows, pl.ds(i * num_columns + column, LANES))
                    for i in range(winners)
                ]
                best = [(best_ref[place], stripe_ref[place]) for place in places]
                for i in range(stripes):
                    score = scores_ref[rows, pl.ds(i * num_columns + column, LANES)]
                    stripe = block * stripes + i
                    best = bucketed_search._challenge(best, score, stripe)
                for place, (score, stripe) in zip(places, best, strict=True):
                    best_ref[place] = score
                    stripe_ref[place] = stripe
