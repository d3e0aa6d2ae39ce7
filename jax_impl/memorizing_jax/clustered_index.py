"""The index of clustered search: stored keys in lists of neighbors, kept as they come.

Every pair of the memory stands in exactly one of `num_lists` lists, that of the
nearest center. A list is a ring in the order of arrival. Pairs leave the memory in
that order too, so whatever leaves was the oldest of its list, and to remove it is to
move the list's beginning. A list that is full is cut in two (`clustered_regroup`), and
when no list is free for the second half, two small ones are joined. So lists follow
the keys while a document goes on, none overflows, and nothing is ever lost.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memorizing_jax import clustered_lists as lists
from memorizing_jax import clustered_regroup
from memorizing_jax.clustered_lists import Lists

# Places per pair. Cutting leaves lists between half full and full, so fewer would
# leave no list free and many to be joined; more are scored in vain.
_SLACK = 1.625


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ClusteredIndex:
    """Which list each pair of a memory is in.

    Attributes:
      lists: of every row and head, one after the other.
      list_of: [batch * num_heads, memory_size]; list of the pair in each slot. Means
        nothing where a slot is not valid.
    """

    lists: Lists
    list_of: jax.Array

    def reset(self, start_of_document: Bool[Array, " batch"]) -> "ClusteredIndex":
        """Empties the lists of the rows that open a new document (MEM-5)."""
        num_heads = self.lists.count.shape[0] // start_of_document.shape[0]
        forget = jnp.repeat(start_of_document, num_heads)
        count = jnp.where(forget[:, None], 0, self.lists.count)
        return dataclasses.replace(
            self, lists=dataclasses.replace(self.lists, count=count)
        )

    def insert(
        self,
        num_written: Int[Array, " batch"],
        keys: Float[Array, "batch segment_length num_heads head_dim"],
        num_tokens: Int[Array, " batch"],
    ) -> "ClusteredIndex":
        """Removes the pairs that a segment overwrites, then adds its own.

        Args:
          num_written: of the memory, before the segment.
          keys: as they are stored.
          num_tokens: how many of them are.
        """
        num_heads, memory_size = keys.shape[2], self.list_of.shape[1]
        position = jnp.arange(keys.shape[1], dtype=jnp.int32)[None, :]
        last = num_tokens[:, None]
        # Of a segment longer than the memory, the newest pairs (MEM-2).
        arrives = (position < last) & (position >= last - memory_size)
        slot = (num_written[:, None] + position) % memory_size
        leaves = arrives & (slot < num_written[:, None])
        next_slot = (num_written + num_tokens) % memory_size

        def of_heads(x: jax.Array) -> jax.Array:
            return jnp.repeat(x, num_heads, axis=0)

        index = self._without(of_heads(slot), of_heads(leaves))
        arrivals = keys.swapaxes(1, 2).reshape(-1, keys.shape[1], keys.shape[3])
        return index._with(
            arrivals.astype(jnp.float32),
            of_heads(slot),
            of_heads(arrives),
            of_heads(next_slot),
        )

    def _without(self, slot: jax.Array, leaves: jax.Array) -> "ClusteredIndex":
        """Drops the oldest pairs: those in `slot`, where `leaves`."""
        group = lists.groups(slot)
        num_lists, list_size = self.lists.slots.shape[1:]
        left = jnp.where(leaves, self.list_of[group, slot], num_lists)
        count = self.lists.count.at[group, left].add(-1, mode="drop")
        first = self.lists.first.at[group, left].add(1, mode="drop") % list_size
        return dataclasses.replace(
            self, lists=dataclasses.replace(self.lists, count=count, first=first)
        )

    def _with(
        self, keys: jax.Array, slot: jax.Array, arrives: jax.Array, next_slot: jax.Array
    ) -> "ClusteredIndex":
        """Adds pairs to the lists with the nearest centers, making room as needed."""
        choice = lists.nearest(self.lists, keys)

        def waiting(carry: tuple[ClusteredIndex, jax.Array, jax.Array]) -> jax.Array:
            return carry[2].any()

        def step(
            carry: tuple[ClusteredIndex, jax.Array, jax.Array],
        ) -> tuple[ClusteredIndex, jax.Array, jax.Array]:
            index, choice, waits = carry
            stored, fits = lists.add(index.lists, keys, slot, choice, waits)
            memory_size = index.list_of.shape[1]
            list_of = index.list_of.at[
                lists.groups(slot), jnp.where(fits, slot, memory_size)
            ].set(choice, mode="drop")
            waits = waits & ~fits
            # The list that the first of those in wait did not fit into is full.
            full = jnp.take_along_axis(choice, waits.argmax(1)[:, None], axis=1)[:, 0]
            stored, list_of, pair = clustered_regroup.make_room(
                stored, list_of, full, waits.any(1), next_slot
            )
            choice = clustered_regroup.choose_again(stored, keys, choice, pair)
            return ClusteredIndex(stored, list_of), choice, waits

        return jax.lax.while_loop(waiting, step, (self, choice, arrives))[0]


def empty(
    batch: int, memory_size: int, num_heads: int, head_dim: int
) -> ClusteredIndex:
    """Returns the index of an empty memory."""
    num_lists, list_size = sizes(memory_size)
    groups = batch * num_heads
    return ClusteredIndex(
        lists.empty(groups, num_lists, list_size, head_dim),
        jnp.zeros((groups, memory_size), jnp.int32),
    )


def sizes(memory_size: int) -> tuple[int, int]:
    """Returns `(num_lists, list_size)`.

    Short lists leave less to score, but more centers. Both grow with the memory, the
    lists as its fourth root, since scoring a center costs less than a place.
    """
    log = math.log2(memory_size)
    list_size = max(4, 2 ** round(min(log / 2, log / 4 + 3)))
    return math.ceil(_SLACK * memory_size / list_size) + 1, list_size
