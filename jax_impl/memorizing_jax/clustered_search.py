"""Clustered search: score the lists with the most promising centers (ANN-1, ANN-2).

A query first scores the centers of all lists, then, from the keys in int8, the pairs
of some dozens of lists, then the best of those again from the keys as they are
stored. It never sees the rest, so its cost grows more slowly than the memory.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from memorizing_jax import (
    blocks,
    bucketed_search,
    clustered_tiles,
    exact_search,
    rescoring,
)
from memorizing_jax.clustered_index import ClusteredIndex
from memorizing_jax.clustered_lists import Lists

# How far beyond its center a list is hoped to reach, in root mean square distances
# of its keys. Measured on keys of a trained model: 0.35 finds more than 0.25 and 0.45.
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
    infinity and its slots mean nothing. One row and head is searched at a time, so
    that what it allocates does not grow with their number.
    """
    batch, num_heads, segment_length, head_dim = queries.shape
    num_lists, list_size = index.lists.slots.shape[1:]
    probes = num_probes(recall_target, num_lists)
    together = lists_together(list_size, top_k)
    if probes == num_lists > together:
        # To read all lists is dearer than to read the memory.
        return exact_search.top_k(queries, keys, num_valid, top_k=top_k)
    of_groups = queries.reshape(-1, segment_length, head_dim).astype(jnp.float32)

    def of_group(x: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        return _candidates(index.lists, *x, together, rescoring.candidates(top_k))

    group = jnp.arange(of_groups.shape[0], dtype=jnp.int32)
    probed = _promising(index.lists, of_groups, probes)
    slots = jax.lax.map(of_group, (group, of_groups, probed))
    slots = slots.reshape(batch, num_heads, segment_length, -1)
    return rescoring.best_of(queries, keys, num_valid, slots, top_k)


def num_probes(recall_target: float, num_lists: int) -> int:
    """Returns how many lists a query reads to find `recall_target` of its neighbors.

    A fit to what keys of trained models need, from 4096 to 1,048,576 slots: of more
    than some hundred lists, as many more each time that their number doubles. Keys with
    no structure need more, up to all lists; that is what a recall of 1 reads.
    """
    if recall_target == 1.0:
        return num_lists
    of_few = 0.28 * math.sqrt(min(num_lists, 256)) + 1.6
    of_many = 2.11 * math.log2(num_lists) - 10.6
    missed = 1.0 - recall_target
    return min(num_lists, math.ceil(missed**-0.65 * max(of_few, of_many)))


def lists_together(list_size: int, top_k: int) -> int:
    """Returns how many of a query's lists have places of their own.

    As in bucketed search, of the pairs that share a place the best two survive. With
    these many places the true neighbors do, but for a few in a thousand (BKT-2).
    """
    return -(-max(256, 8 * top_k) // list_size)


def _promising(
    lists: Lists, queries: Float[Array, "groups segment_length head_dim"], probes: int
) -> Int[Array, "groups segment_length probes"]:
    """Returns each query's lists, best first; `num_lists` where there are no more.

    A list promises the score of its center and more, the wider its keys are spread.
    """
    # What a free list holds may be anything, and must not be multiplied.
    in_use = lists.count > 0
    centers = jnp.where(in_use[..., None], lists.centers, 0.0)
    spread = lists.squares - jnp.sum(centers * centers, axis=-1)
    spread = jnp.sqrt(jnp.maximum(jnp.where(in_use, spread, 0.0), 0.0))
    length = jnp.sqrt(jnp.sum(queries * queries, axis=-1))
    # g: row and head, q: query, l: list, d: head_dim
    score = jnp.einsum("gqd,gld->gql", queries, centers)
    score += _REACH * length[:, :, None] * spread[:, None, :]
    score = jnp.where(in_use[:, None, :], score, -jnp.inf)
    score, best = blocks.largest(score, probes)
    return jnp.where(jnp.isneginf(score), in_use.shape[1], best)


def _candidates(
    lists: Lists,
    group: Int[Array, ""],
    queries: Float[Array, "segment_length head_dim"],
    probed: Int[Array, "segment_length probes"],
    together: int,
    candidates: int,
) -> Int[Array, "segment_length candidates"]:
    """Returns the slots of the best pairs by their scores in int8; -1 for none."""
    num_lists, list_size = lists.slots.shape[1:]
    unused = [(0, 0), (0, -probed.shape[1] % together)]
    probed = jnp.pad(probed, unused, constant_values=num_lists)
    scores, row_of = clustered_tiles.scores(lists, group, queries, probed)
    shape = (queries.shape[0], together * list_size)
    nobody = jnp.full(shape, -jnp.inf), jnp.zeros(shape, jnp.int32)
    place = jnp.arange(shape[1], dtype=jnp.int32)[None, :]

    def step(
        winners: bucketed_search.Winners, probes: tuple[jax.Array, jax.Array]
    ) -> tuple[bucketed_search.Winners, None]:
        first, rows = probes
        score = scores[rows.T].reshape(shape)
        where = jnp.broadcast_to(first * list_size + place, shape)
        return bucketed_search._challenge(winners, score, where), None

    first = jnp.arange(0, probed.shape[1], together, dtype=jnp.int32)
    rows = row_of.T.reshape(-1, together, queries.shape[0])
    winners, _ = jax.lax.scan(step, [nobody, nobody], (first, rows))
    score = jnp.concatenate([score for score, _ in winners], axis=1)
    where = jnp.concatenate([where for _, where in winners], axis=1)
    score, best = blocks.largest(score, min(candidates, score.shape[1]))
    where = jnp.take_along_axis(where, best, axis=1)
    from_list = jnp.take_along_axis(probed, where // list_size, axis=1)
    slots = lists.slots[group, from_list, where % list_size]
    return jnp.where(jnp.isneginf(score), -1, slots)
