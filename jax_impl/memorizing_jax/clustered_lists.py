"""Lists of neighboring keys, one set of them per row and head.

A row and head is a group here; all groups do each step together. A list is a ring of
`list_size` places in which `count` pairs stand from `first` on, oldest first. It is
free while `count` is 0.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Lists:
    """What the lists hold.

    Attributes:
      centers: [groups, num_lists, head_dim]; mean of a list's keys.
      squares: [groups, num_lists]; mean of their squared lengths.
      slots: [groups, num_lists, list_size]; where in the memory a pair is.
      keys: [groups, num_lists, head_dim, list_size]; its key in int8. The places
        come last: on a CPU their scores then take half the time.
      scales: [groups, num_lists, list_size]; what one step of int8 is worth.
      first: [groups, num_lists]; place of a list's oldest pair.
      count: [groups, num_lists]; pairs in a list.
    """

    centers: jax.Array
    squares: jax.Array
    slots: jax.Array
    keys: jax.Array
    scales: jax.Array
    first: jax.Array
    count: jax.Array


def empty(groups: int, num_lists: int, list_size: int, head_dim: int) -> Lists:
    """Returns lists that are all free."""
    shape = (groups, num_lists, list_size)
    return Lists(
        centers=jnp.zeros((groups, num_lists, head_dim)),
        squares=jnp.zeros((groups, num_lists)),
        slots=jnp.zeros(shape, jnp.int32),
        keys=jnp.zeros((groups, num_lists, head_dim, list_size), jnp.int8),
        scales=jnp.zeros(shape),
        first=jnp.zeros((groups, num_lists), jnp.int32),
        count=jnp.zeros((groups, num_lists), jnp.int32),
    )


def groups(like: Int[Array, "groups n"]) -> Int[Array, "groups 1"]:
    """Returns the index of each group, to stand beside an index of its lists."""
    return jnp.arange(like.shape[0], dtype=jnp.int32)[:, None]


def quantize(
    keys: Float[Array, "*shape head_dim"],
) -> tuple[Int[Array, "*shape head_dim"], Float[Array, "*shape"]]:
    """Returns keys in int8, and what one step of each is worth."""
    scale = jnp.abs(keys).max(axis=-1) / 127.0
    steps = keys / jnp.where(scale > 0.0, scale, 1.0)[..., None]
    return jnp.round(steps).astype(jnp.int8), scale


def nearest(
    lists: Lists, keys: Float[Array, "groups n head_dim"]
) -> Int[Array, "groups n"]:
    """Returns for each key the list with the nearest center; 0 while all are free."""
    distance = distances(keys, lists.centers)
    distance = jnp.where(lists.count[:, None, :] > 0, distance, jnp.inf)
    return distance.argmin(axis=-1).astype(jnp.int32)


def distances(keys: jax.Array, centers: jax.Array) -> jax.Array:
    """Returns half the squared distance, but for a term of the key alone."""
    # g: row and head, n: key, l: list, d: head_dim
    product = jnp.einsum("gnd,gld->gnl", keys, centers)
    return 0.5 * jnp.sum(centers * centers, axis=-1)[:, None, :] - product


def add(
    lists: Lists,
    keys: Float[Array, "groups n head_dim"],
    slot: Int[Array, "groups n"],
    choice: Int[Array, "groups n"],
    waits: Bool[Array, "groups n"],
) -> tuple[Lists, Bool[Array, "groups n"]]:
    """Adds the pairs that wait to the lists they chose, as long as those have room.

    Args:
      lists: where to.
      keys: of the pairs, oldest first; all are newer than those in the lists.
      slot: of each pair.
      choice: list of each.
      waits: which of them to add.

    Returns:
      The lists, and which pairs were added.
    """
    num_lists, list_size = lists.slots.shape[1:]
    group = groups(slot)
    position = jnp.arange(slot.shape[1], dtype=jnp.int32)
    same = choice[:, :, None] == choice[:, None, :]
    earlier = position[None, :] < position[:, None]
    ahead = jnp.sum(same & earlier[None] & waits[:, None, :], axis=-1, dtype=jnp.int32)
    behind = lists.count[group, choice] + ahead
    fits = waits & (behind < list_size)
    place = (lists.first[group, choice] + behind) % list_size
    to = jnp.where(fits, choice, num_lists)  # Past the end: "drop" ignores it.
    count = lists.count.at[group, to].add(1, mode="drop")
    steps, scale = quantize(keys)
    # What a free list holds may be anything, and must not be multiplied.
    centers = jnp.where(lists.count[..., None] > 0, lists.centers, 0.0)
    squares = jnp.where(lists.count > 0, lists.squares, 0.0)
    share = 1.0 / jnp.maximum(count[group, choice], 1).astype(jnp.float32)
    away = share[..., None] * (keys - centers[group, choice])
    longer = share * (jnp.sum(keys * keys, axis=-1) - squares[group, choice])
    return Lists(
        centers=centers.at[group, to].add(away, mode="drop"),
        squares=squares.at[group, to].add(longer, mode="drop"),
        slots=lists.slots.at[group, to, place].set(slot, mode="drop"),
        keys=lists.keys.at[group, to, :, place].set(steps, mode="drop"),
        scales=lists.scales.at[group, to, place].set(scale, mode="drop"),
        first=lists.first,
        count=count,
    ), fits


def held_places(
    first: Int[Array, "*lists"], count: Int[Array, "*lists"], list_size: int
) -> Bool[Array, "*lists list_size"]:
    """Returns which places of each ring hold a pair."""
    place = jnp.arange(list_size, dtype=jnp.int32)
    place = place.reshape((1,) * first.ndim + (list_size,))
    return (place - first[..., None]) % list_size < count[..., None]
