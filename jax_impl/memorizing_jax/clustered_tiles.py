"""Scores of the pairs in lists, the queries that read a list taken together.

Queries that probe the same list stand in tiles of a fixed number of rows: a tile is a
small matrix product with the keys of its list, which are read and widened once for
all its queries. A list with more readers has more tiles; rows left over are wasted.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from memorizing_jax import clustered_lists
from memorizing_jax.clustered_lists import Lists

# Tiles per step: a CPU is busy with one, others with hundreds.
_TILES_AT_ONCE = {"cpu": 1}
_TILES_AT_ONCE_ELSEWHERE = 256


def scores(
    lists: Lists,
    group: Int[Array, ""],
    queries: Float[Array, "segment_length head_dim"],
    probed: Int[Array, "segment_length probes"],
) -> tuple[Float[Array, "rows list_size"], Int[Array, "segment_length probes"]]:
    """Scores every query with the pairs of the lists that it probes, in int8.

    Args:
      lists: of all rows and heads.
      group: the row and head to read.
      queries: of that row and head.
      probed: lists of each query, none twice; `num_lists` for no list.

    Returns:
      Rows of scores, one for each place of a list, minus infinity where it holds no
      pair; and which row belongs to each query and probe.
    """
    num_lists, list_size = lists.slots.shape[1:]
    tile = tile_size(probed.size, num_lists)
    at_once = _TILES_AT_ONCE.get(jax.default_backend(), _TILES_AT_ONCE_ELSEWHERE)
    query_of, list_of, row_of, num_tiles = _tiles(probed, num_lists, tile, at_once)

    def step(i: jax.Array, rows: jax.Array) -> jax.Array:
        some = jax.lax.dynamic_slice_in_dim(list_of, i * at_once, at_once)
        # t: tile, q: query, s: place in the list, d: head_dim
        score = jnp.einsum(
            "tqd,tds->tqs",
            queries[jax.lax.dynamic_slice_in_dim(query_of, i * at_once, at_once)],
            lists.keys[group, some].astype(jnp.float32),
        )
        held = clustered_lists.held_places(
            lists.first[group, some], lists.count[group, some], list_size
        )
        score *= lists.scales[group, some][:, None, :]
        score = jnp.where(held[:, None, :], score, -jnp.inf)
        score = score.reshape(at_once * tile, list_size)
        return jax.lax.dynamic_update_slice_in_dim(rows, score, i * at_once * tile, 0)

    rows = jnp.full((query_of.size, list_size), -jnp.inf)
    steps = (num_tiles + at_once - 1) // at_once
    return jax.lax.fori_loop(0, steps, step, rows), row_of


def tile_size(num_pairs: int, num_lists: int) -> int:
    """Returns the rows of a tile: about as many readers as a list has."""
    readers = num_pairs / num_lists
    return 2 ** min(5, max(2, round(math.log2(readers))))


def _tiles(
    probed: jax.Array, num_lists: int, tile: int, at_once: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Lays out queries and their probes in tiles.

    Returns:
      The query of each row of each tile; the list of each tile; the row of each query
      and probe; how many tiles there are.
    """
    num_pairs = probed.size
    # Every list may leave a tile unfilled. One step more than that stays unwritten:
    # its rows belong to the probes of no list.
    most = num_pairs // tile + min(num_lists, num_pairs)
    most = (math.ceil(most / at_once) + 1) * at_once
    pair = jnp.argsort(probed.reshape(-1)).astype(jnp.int32)
    by_list = probed.reshape(-1)[pair]
    every = jnp.arange(num_lists + 1, dtype=jnp.int32)
    first_pair = jnp.searchsorted(by_list, every).astype(jnp.int32)
    tiles = -(-jnp.diff(first_pair) // tile)
    last_tile = jnp.cumsum(tiles, dtype=jnp.int32)
    first_tile = jnp.pad(last_tile, (1, 0))
    within = jnp.arange(num_pairs, dtype=jnp.int32) - first_pair[by_list]
    row = first_tile[by_list] * tile + within
    row = jnp.where(by_list < num_lists, row, most * tile - 1)
    query = pair // probed.shape[1]
    query_of = jnp.zeros(most * tile, jnp.int32).at[row].set(query)
    number = jnp.arange(most, dtype=jnp.int32)
    list_of = jnp.searchsorted(last_tile, number, side="right").astype(jnp.int32)
    row_of = jnp.zeros(num_pairs, jnp.int32).at[pair].set(row)
    return (
        query_of.reshape(most, tile),
        jnp.minimum(list_of, num_lists - 1),
        row_of.reshape(probed.shape),
        last_tile[-1],
    )
