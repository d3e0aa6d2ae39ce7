"""Lists of neighboring keys, one set of them per row and head: cut, joined, filled.

A row and head is a group here; all groups do each step together. A list is a ring of
`list_size` places in which `count` pairs stand from `first` on, oldest first. It is
free while `count` is 0.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Steps towards the direction in which a list is widest; it is found well enough.
_STEPS = 4


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
    distance = _distance(keys, lists.centers)
    distance = jnp.where(lists.count[:, None, :] > 0, distance, jnp.inf)
    return distance.argmin(axis=-1).astype(jnp.int32)


def _distance(keys: jax.Array, centers: jax.Array) -> jax.Array:
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
      keys: of the pairs.
      slot: of the pairs; each newer than any in its list, the first ones oldest.
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

    def mean(of_list: jax.Array, new: jax.Array) -> jax.Array:
        # What a free list holds may be anything, and must not be multiplied.
        open_list = jnp.expand_dims(lists.count > 0, tuple(range(2, of_list.ndim)))
        of_list = jnp.where(open_list, of_list, 0.0)
        share = count[group, choice].astype(jnp.float32)
        share = jnp.expand_dims(share, tuple(range(2, new.ndim)))
        change = (new - of_list[group, choice]) / jnp.maximum(share, 1.0)
        return of_list.at[group, to].add(change, mode="drop")

    return Lists(
        centers=mean(lists.centers, keys),
        squares=mean(lists.squares, jnp.sum(keys * keys, axis=-1)),
        slots=lists.slots.at[group, to, place].set(slot, mode="drop"),
        keys=lists.keys.at[group, to, :, place].set(steps, mode="drop"),
        scales=lists.scales.at[group, to, place].set(scale, mode="drop"),
        first=lists.first,
        count=count,
    ), fits


def make_room(
    lists: Lists,
    list_of: Int[Array, "groups memory_size"],
    full: Int[Array, " groups"],
    wanted: Bool[Array, " groups"],
    next_slot: Int[Array, " groups"],
) -> tuple[Lists, Int[Array, "groups memory_size"], Int[Array, "groups 2"]]:
    """Takes one step towards room in a full list.

    The list is cut, and one half goes to a free list. If none is free, the smallest
    list is joined with the nearest that can take its pairs: cutting is then the next
    step. If none can, the full list evens out with the nearest that is not full.

    Args:
      lists: some of them full.
      list_of: list of the pair in each slot.
      full: one full list of each group.
      wanted: which groups want room at all.
      next_slot: slot that the memory writes next; the pair there is the oldest.

    Returns:
      The lists, `list_of`, and the two lists that changed, -1 where none did.
    """
    num_lists, list_size = lists.slots.shape[1:]
    every = jnp.arange(num_lists, dtype=jnp.int32)[None, :]
    others = every != full[:, None]
    small = jnp.where(others, lists.count, list_size + 1).argmin(1).astype(jnp.int32)
    small_count = jnp.take_along_axis(lists.count, small[:, None], axis=1)
    takes = others & (every != small[:, None])
    takes &= lists.count + small_count <= list_size
    joins = (small_count[:, 0] > 0) & takes.any(1)
    evens = (small_count[:, 0] > 0) & ~joins

    def closest(to: jax.Array, among: jax.Array) -> jax.Array:
        center = jnp.take_along_axis(lists.centers, to[:, None, None], axis=1)
        distance = _distance(center, lists.centers)[:, 0]
        return jnp.where(among, distance, jnp.inf).argmin(1).astype(jnp.int32)

    not_full = others & (lists.count <= list_size - 2)
    one = jnp.where(joins, closest(small, takes), full)
    other = jnp.where(evens, closest(full, not_full), small)
    pair = jnp.stack([one, other], axis=1)
    lists, list_of = _regroup(lists, list_of, pair, joins, wanted, next_slot)
    return lists, list_of, jnp.where(wanted[:, None], pair, -1)


def _regroup(
    lists: Lists,
    list_of: jax.Array,
    pair: jax.Array,
    joins: jax.Array,
    wanted: jax.Array,
    next_slot: jax.Array,
) -> tuple[Lists, jax.Array]:
    """Pools two lists; the first takes all of it, or each takes half."""
    num_lists, list_size = lists.slots.shape[1:]
    group = groups(pair)
    num_groups, memory_size = list_of.shape

    def pooled(x: jax.Array) -> jax.Array:
        return x.reshape(num_groups, 2 * list_size, *x.shape[3:])

    slot, scale = pooled(lists.slots[group, pair]), pooled(lists.scales[group, pair])
    steps = pooled(lists.keys[group, pair].swapaxes(2, 3))
    held = held_places(lists.first[group, pair], lists.count[group, pair], list_size)
    held = pooled(held)
    keys = jnp.where(held[..., None], steps.astype(jnp.float32) * scale[..., None], 0.0)
    total = held.sum(1, dtype=jnp.int32)
    half = jnp.where(joins, total, total // 2)

    # First along the direction that tells the halves apart, then by age in each.
    order = jnp.argsort(jnp.where(held, _along_widest(keys, held), jnp.inf), axis=1)
    rank = jnp.arange(2 * list_size, dtype=jnp.int32)[None, :]
    side = jnp.where(rank < half[:, None], 0, jnp.where(rank < total[:, None], 1, 2))
    age = (jnp.take_along_axis(slot, order, axis=1) - next_slot[:, None]) % memory_size
    by_age = jnp.argsort(side * memory_size + age, axis=1)
    order = jnp.take_along_axis(order, by_age, axis=1)
    count = jnp.stack([half, total - half], axis=1)
    place = jnp.arange(list_size, dtype=jnp.int32)[None, None, :]
    source = jnp.stack([jnp.zeros_like(half), half], axis=1)[..., None] + place
    source = jnp.minimum(source, 2 * list_size - 1).reshape(num_groups, -1)
    source = jnp.take_along_axis(order, source, axis=1)
    shape = (num_groups, 2, list_size)
    to = jnp.where(wanted[:, None], pair, num_lists)

    def sorted_out(x: jax.Array) -> jax.Array:
        return x[groups(source), source].reshape(*shape, *x.shape[2:])

    member = (place < count[..., None])[..., None]
    members = jnp.where(member, sorted_out(keys), 0.0)
    share = jnp.maximum(count, 1).astype(jnp.float32)
    new_slots = sorted_out(slot)
    moved = jnp.where(member[..., 0] & wanted[:, None, None], new_slots, memory_size)
    list_of = list_of.at[group[..., None], moved].set(
        jnp.broadcast_to(pair[..., None], shape), mode="drop"
    )
    new = Lists(
        centers=members.sum(2) / share[..., None],
        squares=jnp.sum(members * members, axis=(2, 3)) / share,
        slots=new_slots,
        keys=sorted_out(steps).swapaxes(2, 3),
        scales=sorted_out(scale),
        first=jnp.zeros_like(pair),
        count=count,
    )
    lists = jax.tree.map(
        lambda old, new: old.at[group, to].set(new, mode="drop"), lists, new
    )
    return lists, list_of


def held_places(
    first: Int[Array, "*lists"], count: Int[Array, "*lists"], list_size: int
) -> Bool[Array, "*lists list_size"]:
    """Returns which places of each ring hold a pair."""
    place = jnp.arange(list_size, dtype=jnp.int32)
    place = place.reshape((1,) * first.ndim + (list_size,))
    return (place - first[..., None]) % list_size < count[..., None]


def _along_widest(keys: jax.Array, held: jax.Array) -> jax.Array:
    """Returns where keys lie in the direction in which they differ most."""
    weight = held.astype(jnp.float32)[..., None]
    share = jnp.maximum(weight.sum(1, keepdims=True), 1.0)
    away = (keys - (keys * weight).sum(1, keepdims=True) / share) * weight
    farthest = jnp.sum(away * away, axis=-1).argmax(1)
    direction = jnp.take_along_axis(away, farthest[:, None, None], axis=1)[:, 0]
    for _ in range(_STEPS):
        # From the mean of those on one side to the mean of those on the other.
        side = jnp.sign(jnp.einsum("gnd,gd->gn", away, direction))
        direction = jnp.einsum("gn,gnd->gd", side, away)
    return jnp.einsum("gnd,gd->gn", away, direction)


def choose_again(
    lists: Lists,
    keys: Float[Array, "groups n head_dim"],
    choice: Int[Array, "groups n"],
    pair: Int[Array, "groups 2"],
) -> Int[Array, "groups n"]:
    """Lets the pairs that chose a list that changed choose between the two.

    `pair` is what `make_room` returned.
    """
    chosen = jnp.maximum(pair, 0)
    center = jnp.take_along_axis(lists.centers, chosen[..., None], axis=1)
    count = jnp.take_along_axis(lists.count, chosen, axis=1)
    distance = _distance(keys, center)
    distance = jnp.where(count[:, None, :] > 0, distance, jnp.inf)
    nearer = jnp.take_along_axis(pair, distance.argmin(axis=-1), axis=1)
    changed = (choice[..., None] == pair[:, None, :]).any(axis=-1)
    return jnp.where(changed, nearer, choice)
