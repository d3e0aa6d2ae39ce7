"""Clustered search: score the lists with the most promising centers (ANN-1, ANN-2).

Its cost grows as the square root of the memory: first the centers, then some dozens
of lists, in int8, then the best few again from the keys as stored. Queries that read
the same list read it together, `TILE` at a time, as a matrix product.
"""

import math

import jax
import jax.numpy as jnp
from jax.lax import Precision
from jaxtyping import Array, Float, Int

from memorizing_jax import blocks, memory
from memorizing_jax import clustered_lists as lists
from memorizing_jax.clustered_index import ClusteredIndex
from memorizing_jax.clustered_lists import Lists

# Queries that read a list together.
TILE = 16
# How far beyond its center a list is hoped to reach, in mean distances from it. More
# favors wide lists, fewer narrow ones: measured on keys of a trained model.
_REACH = 0.35


def top_k(
    queries: Float[Array, "batch num_heads segment_length head_dim"],
    keys: Float[Array, "batch num_heads memory_size head_dim"],
    num_valid: Int[Array, " batch"],
    index: ClusteredIndex,
    *,
    top_k: int,
    recall_target: float,
) -> tuple[jax.Array, jax.Array]:
    """Returns the scores and slots of the best `top_k` pairs of the lists probed.

    Best first, ties to the lower slot. Where there are fewer, the tail scores minus
    infinity and its slots mean nothing.
    """
    batch, num_heads, segment_length, head_dim = queries.shape
    num_lists, list_size = index.lists.slots.shape[1:]
    probes = num_probes(recall_target, num_lists)
    candidates = min(top_k + max(8, top_k // 2), probes * list_size)
    of_groups = queries.reshape(-1, segment_length, head_dim).astype(jnp.float32)
    probed = _promising(index.lists, of_groups, probes)

    def of_group(x: tuple[jax.Array, ...]) -> jax.Array:
        group, queries, probed = x
        return _candidates(index.lists, group, queries, probed, candidates)

    every = jnp.arange(of_groups.shape[0], dtype=jnp.int32)
    slots = jax.lax.map(of_group, (every, of_groups, probed))
    slots = slots.reshape(batch, num_heads, segment_length, candidates)
    return _rescored(queries, keys, num_valid, slots, min(top_k, candidates))


def num_probes(recall_target: float, num_lists: int) -> int:
    """Returns how many lists to score.

    Measured on keys of a trained model, of memories of 65,536 and 1,048,576 slots.
    All lists are what finds all.
    """
    if recall_target == 1.0:
        return num_lists
    return min(num_lists, math.ceil(0.22 * (1 - recall_target) ** -0.65 * math.sqrt(num_lists)))


def _promising(lists: Lists, queries: jax.Array, probes: int) -> jax.Array:
    """Returns for each query its lists, best first; `num_lists` for none."""
    num_lists = lists.count.shape[1]
    is_open = (lists.count > 0)[:, None, :]
    centers = jnp.where(is_open[:, 0, :, None], lists.centers, 0.0)
    length = jnp.sqrt(jnp.sum(queries * queries, axis=-1, keepdims=True))
    width = lists.squares - jnp.sum(centers * centers, axis=-1)
    width = jnp.sqrt(jnp.maximum(width, 0.0))[:, None, :]
    # g: row and head, q: query, l: list, d: head_dim
    score = jnp.einsum("gqd,gld->gql", queries, centers) + _REACH * length * width
    score, best = blocks.largest(jnp.where(is_open, score, -jnp.inf), probes)
    return jnp.where(jnp.isneginf(score), num_lists, best)


def _candidates(
    lists: Lists,
    group: jax.Array,
    queries: jax.Array,
    probed: jax.Array,
    candidates: int,
) -> jax.Array:
    """Returns the slots of the best pairs by their scores in int8; -1 for none.

    Args:
      lists: of all groups.
      group: the one to search.
      queries: [segment_length, head_dim].
      probed: [segment_length, probes]; lists of each query.
      candidates: how many pairs to return.
    """
    list_size = lists.slots.shape[2]
    row_of, scores = _scores(lists, group, queries, probed)
    # Running best of each place over the probes; two winners, as in bucketed search.
    def challenge(winners, probe):
        p, row = probe
        score = scores[row]
        (b1, p1), (b2, p2) = winners
        better1 = score > b1
        better2 = score > b2
        n2 = jnp.where(better1, b1, jnp.where(better2, score, b2))
        np2 = jnp.where(better1, p1, jnp.where(better2, p, p2))
        return ((jnp.where(better1, score, b1), jnp.where(better1, p, p1)), (n2, np2)), None

    shape = (queries.shape[0], list_size)
    nobody = jnp.full(shape, -jnp.inf), jnp.zeros(shape, jnp.int32)
    probes = jnp.arange(probed.shape[1], dtype=jnp.int32)
    winners, _ = jax.lax.scan(challenge, (nobody, nobody), (probes, row_of.T))
    score = jnp.concatenate([winners[0][0], winners[1][0]], axis=1)
    probe = jnp.concatenate([winners[0][1], winners[1][1]], axis=1)
    score, best = blocks.largest(score, candidates)
    of_list = jnp.take_along_axis(probed, jnp.take_along_axis(probe, best, 1), 1)
    slots = lists.slots[group, of_list, best % list_size]
    return jnp.where(jnp.isneginf(score), -1, slots)


def _scores(lists, group, queries, probed):
    """Scores list by list. Returns rows."""
    num_lists, list_size = lists.slots.shape[1:]
    segment_length, probes = probed.shape
    pairs = segment_length * probes
    flat = probed.reshape(-1)
    order = jnp.argsort(flat)
    sorted_list = flat[order]
    start = jnp.searchsorted(sorted_list, jnp.arange(num_lists + 1)).astype(jnp.int32)
    readers = start[1:] - start[:-1]
    tiles = -(-readers // TILE)
    tile_end = jnp.cumsum(tiles).astype(jnp.int32)
    num_tiles = tile_end[-1]
    max_tiles = pairs // TILE + min(num_lists, pairs)
    rank = jnp.arange(pairs, dtype=jnp.int32) - start[sorted_list]
    first_tile = jnp.concatenate([jnp.zeros(1,jnp.int32), tile_end])[sorted_list]
    row = jnp.where(sorted_list < num_lists, first_tile * TILE + rank, max_tiles * TILE - 1 + TILE)
    row_of = jnp.zeros(pairs, jnp.int32).at[order].set(row).reshape(segment_length, probes)
    list_of_tile = jnp.searchsorted(tile_end, jnp.arange(max_tiles), side='right').astype(jnp.int32)
    query_of = jnp.zeros((max_tiles + 1) * TILE, jnp.int32).at[row].set(order // probes)
    keys = lists.keys
    out = jnp.full(((max_tiles + 1) * TILE, list_size), -jnp.inf)

    def body(i, out):
        l = list_of_tile[i]
        kk = jax.lax.dynamic_slice(keys, (group, l, 0, 0), (1, 1, list_size, keys.shape[3]))[0, 0]
        sc = jax.lax.dynamic_slice(lists.scales, (group, l, 0), (1, 1, list_size))[0, 0]
        q = queries[jax.lax.dynamic_slice(query_of, (i * TILE,), (TILE,))]
        s = jnp.einsum('qd,sd->qs', q, kk.astype(jnp.float32)) * sc[None]
        held = lists_held(lists.first[group, l], lists.count[group, l], list_size)
        s = jnp.where(held[None], s, -jnp.inf)
        return jax.lax.dynamic_update_slice(out, s, (i * TILE, 0))

    return row_of, jax.lax.fori_loop(0, num_tiles, body, out)


lists_held = lists.held_places


def _rescored(queries, keys, num_valid, slots, top_k):
    found = (slots >= 0) & (slots < num_valid[:, None, None, None])
    dtype = jnp.promote_types(queries.dtype, keys.dtype)
    some = jnp.where(found[..., None], memory.gather(keys, slots), 0)
    score = jnp.einsum(
        "bhqd,bhqnd->bhqn",
        queries.astype(dtype),
        some.astype(dtype),
        precision=Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
    score = jnp.where(found, jnp.where(score == 0.0, 0.0, score), -jnp.inf)
    negative, slots = jax.lax.sort((-score, slots), num_keys=2)
    return -negative[..., :top_k], slots[..., :top_k]
