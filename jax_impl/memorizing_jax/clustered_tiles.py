"""Scores of the pairs in lists, the queries that read a list taken together.

Queries that probe the same list stand in tiles of a fixed number of rows: a tile is a
small matrix product with the keys of its list, which are read and widened once for
all its queries. A list with more readers has more tiles. Rows stand list by list
without gaps, so that those a tile has too many are the first of the next list.
"""

import math
from typing import NamedTuple

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
    tiles = _tiles(probed, num_lists, tile, at_once)
    # The last row stays that of no list.
    rows = jnp.full((probed.size + tile, list_size), -jnp.inf)

    def step(i: jax.Array, rows: jax.Array) -> jax.Array:
        some, first, end = (
            jax.lax.dynamic_slice_in_dim(x, i * at_once, at_once)
            for x in (tiles.list_of, tiles.first_row, tiles.end_row)
        )
        row = first[:, None] + jnp.arange(tile, dtype=jnp.int32)[None, :]
        # t: tile, q: query, s: place in the list, d: head_dim
        score = jnp.einsum(
            "tqd,tds->tqs",
            queries[tiles.query_of.at[row].get(mode="clip")],
            lists.keys[group, some].astype(jnp.float32),
        )
        held = clustered_lists.held_places(
            lists.first[group, some], lists.count[group, some], list_size
        )
        score *= lists.scales[group, some][:, None, :]
        score = jnp.where(held[:, None, :], score, -jnp.inf)
        if at_once == 1:
            # What spills into the rows of the next list, its own tiles overwrite.
            return jax.lax.dynamic_update_slice_in_dim(rows, score[0], first[0], 0)
        row = jnp.where(row < end[:, None], row, rows.shape[0])
        return rows.at[row].set(score, mode="drop")

    steps = (tiles.number + at_once - 1) // at_once
    return jax.lax.fori_loop(0, steps, step, rows), tiles.row_of


def tile_size(num_pairs: int, num_lists: int) -> int:
    """Returns the rows of a tile: about as many readers as a list has."""
    readers = num_pairs / num_lists
    return 2 ** min(5, max(2, round(math.log2(readers))))


class _Tiles(NamedTuple):
    """Queries and their probes, list by list, cut into tiles.

    Attributes:
      query_of: [rows]; query of each row.
      list_of: [tiles]; list of each tile.
      first_row: [tiles]; where it begins.
      end_row: [tiles]; where the rows of its list end; 0 for tiles beyond the last.
      row_of: [segment_length, probes]; row of each query and probe.
      number: how many tiles there are.
    """

    query_of: jax.Array
    list_of: jax.Array
    first_row: jax.Array
    end_row: jax.Array
    row_of: jax.Array
    number: jax.Array


def _tiles(probed: jax.Array, num_lists: int, tile: int, at_once: int) -> _Tiles:
    num_pairs = probed.size
    # Every list may leave a tile unfilled.
    most = num_pairs // tile + min(num_lists, num_pairs)
    most = math.ceil(most / at_once) * at_once
    pair = jnp.argsort(probed.reshape(-1)).astype(jnp.int32)
    by_list = probed.reshape(-1)[pair]
    every = jnp.arange(num_lists + 1, dtype=jnp.int32)
    edge = jnp.searchsorted(by_list, every).astype(jnp.int32)
    tiles = -(-jnp.diff(edge) // tile)
    last_tile = jnp.cumsum(tiles, dtype=jnp.int32)
    tile_number = jnp.arange(most, dtype=jnp.int32)
    list_of = jnp.searchsorted(last_tile, tile_number, side="right").astype(jnp.int32)
    list_of = jnp.minimum(list_of, num_lists - 1)
    within = tile_number - (last_tile - tiles)[list_of]
    row = jnp.arange(num_pairs, dtype=jnp.int32)
    row = jnp.where(by_list < num_lists, row, num_pairs + tile - 1)
    row_of = jnp.zeros(num_pairs, jnp.int32).at[pair].set(row)
    return _Tiles(
        query_of=pair // probed.shape[1],
        list_of=list_of,
        first_row=edge[list_of] + within * tile,
        end_row=jnp.where(tile_number < last_tile[-1], edge[list_of + 1], 0),
        row_of=row_of.reshape(probed.shape),
        number=last_tile[-1],
    )
