"""How lists of neighboring keys follow the keys: full ones are cut, small ones joined.

Both are one operation: two lists are pooled and sorted out again. To cut a list is to
pool it with a free one and to leave half of it in each.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memorizing_jax import clustered_lists
from memorizing_jax.clustered_lists import Lists

# Steps towards the direction in which a list is widest; it is found well enough.
_STEPS = 4


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
    pair, joins = _pair(lists, full)
    new = _regrouped(lists, pair, joins, next_slot, list_of.shape[1])

    # Past the end: "drop" ignores it.
    group = clustered_lists.groups(pair)
    to = jnp.where(wanted[:, None], pair, num_lists)
    held = clustered_lists.held_places(new.first, new.count, list_size)
    moved = jnp.where(held & wanted[:, None, None], new.slots, list_of.shape[1])
    list_of = list_of.at[group[..., None], moved].set(
        jnp.broadcast_to(pair[..., None], moved.shape), mode="drop"
    )
    lists = jax.tree.map(lambda x, y: x.at[group, to].set(y, mode="drop"), lists, new)
    return lists, list_of, jnp.where(wanted[:, None], pair, -1)


def _pair(
    lists: Lists, full: Int[Array, " groups"]
) -> tuple[Int[Array, "groups 2"], Bool[Array, " groups"]]:
    """Returns the two lists to pool, and whether to leave all in the first."""
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
        distance = clustered_lists.distances(center, lists.centers)[:, 0]
        return jnp.where(among, distance, jnp.inf).argmin(1).astype(jnp.int32)

    not_full = others & (lists.count <= list_size - 2)
    one = jnp.where(joins, closest(small, takes), full)
    other = jnp.where(evens, closest(full, not_full), small)
    return jnp.stack([one, other], axis=1), joins


def _regrouped(
    lists: Lists, pair: jax.Array, joins: jax.Array, next_slot: jax.Array, size: int
) -> Lists:
    """Returns two lists pooled: all in the first, or half in each."""
    list_size = lists.slots.shape[2]
    pool = jax.tree.map(lambda x: x[clustered_lists.groups(pair), pair], lists)

    def flat(x: jax.Array) -> jax.Array:
        return x.reshape(x.shape[0], 2 * list_size, *x.shape[3:])

    held = flat(clustered_lists.held_places(pool.first, pool.count, list_size))
    slots, scales, steps = map(
        flat, (pool.slots, pool.scales, pool.keys.swapaxes(2, 3))
    )
    keys = steps.astype(jnp.float32) * scales[..., None]
    keys = jnp.where(held[..., None], keys, 0.0)
    total = held.sum(1, dtype=jnp.int32)
    half = jnp.where(joins, total, total // 2)
    order = _order(keys, held, (slots - next_slot[:, None]) % size, half)
    count = jnp.stack([half, total - half], axis=1)
    place = jnp.arange(list_size, dtype=jnp.int32)[None, None, :]
    source = jnp.stack([jnp.zeros_like(half), half], axis=1)[..., None] + place
    source = flat(jnp.minimum(source, 2 * list_size - 1))
    source = jnp.take_along_axis(order, source, axis=1)

    def sorted_out(x: jax.Array) -> jax.Array:
        x = x[clustered_lists.groups(source), source]
        return x.reshape(x.shape[0], 2, list_size, *x.shape[2:])

    members = jnp.where((place < count[..., None])[..., None], sorted_out(keys), 0.0)
    share = jnp.maximum(count, 1).astype(jnp.float32)
    return Lists(
        centers=members.sum(2) / share[..., None],
        squares=jnp.sum(members * members, axis=(2, 3)) / share,
        slots=sorted_out(slots),
        keys=sorted_out(steps).swapaxes(2, 3),
        scales=sorted_out(scales),
        first=jnp.zeros_like(pair),
        count=count,
    )


def _order(
    keys: jax.Array, held: jax.Array, age: jax.Array, half: jax.Array
) -> Int[Array, "groups n"]:
    """Returns the order of a pool: one half by age, then the other, then the rest.

    `age` is least for the oldest, `half` the number of keys in the first half.
    """
    # Not a number sorts behind infinity, where only the rest may stand.
    along = jnp.nan_to_num(_along_widest(keys, held))
    order = jnp.argsort(jnp.where(held, along, jnp.inf), axis=1)
    rank = jnp.arange(keys.shape[1], dtype=jnp.int32)[None, :]
    total = held.sum(1, dtype=jnp.int32)
    side = jnp.where(rank < half[:, None], 0, jnp.where(rank < total[:, None], 1, 2))
    age = jnp.take_along_axis(age, order, axis=1)
    by_age = jnp.lexsort((age, side), axis=1)
    return jnp.take_along_axis(order, by_age, axis=1)


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
    distance = clustered_lists.distances(keys, center)
    distance = jnp.where(count[:, None, :] > 0, distance, jnp.inf)
    nearer = jnp.take_along_axis(pair, distance.argmin(axis=-1), axis=1)
    changed = (choice[..., None] == pair[:, None, :]).any(axis=-1)
    return jnp.where(changed, nearer, choice)
