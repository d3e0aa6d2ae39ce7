"""The external memory: a ring buffer of past (key, value) pairs.

Port of `memorizing_reference.memory`. It differs in two ways: pairs are laid out
head by head, so that one head's keys are one matrix, and `num_written` is an
int32, good for documents of two billion tokens.
"""

import dataclasses
from typing import Final, TypeVar

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Bool, Float, Int

from memorizing_jax import index as indices
from memorizing_jax.config import SearchEngine
from memorizing_jax.index import Index

Kept = TypeVar("Kept")

# What `jax.checkpoint` keeps of a layer that has a memory.
RETRIEVED: Final = "retrieved"

_LANES: Final = 128  # Numbers side by side in a TPU's registers.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Memory:
    """The pairs one memory layer remembers, for every row of the batch.

    Attributes:
      keys: [batch, num_heads, memory_size, head_dim]; slot `s` of a row and head
        holds the key written there last.
      values: same shape; the value that belongs to each key.
      num_written: [batch]; pairs since the last reset. It keeps counting once the
        buffer is full, so it can exceed `memory_size`.
      index: what the search engine keeps beside the pairs; nothing for most.
    """

    keys: jax.Array
    values: jax.Array
    num_written: jax.Array
    index: Index | tuple[()] = ()

    @property
    def memory_size(self) -> int:
        """Pairs kept per row and head."""
        return self.keys.shape[2]

    @property
    def num_valid(self) -> jax.Array:
        """Slots of each row that may be retrieved: always the first ones (MEM-3)."""
        return jnp.minimum(self.num_written, self.memory_size)


def empty(
    batch: int,
    memory_size: int,
    num_heads: int,
    head_dim: int,
    dtype: str = "float32",
    engine: SearchEngine = "exact",
) -> Memory:
    """Returns a memory with no valid slot, stored as `dtype` (MEM-10).

    `engine` is what will search it, which may keep an index.

    Raises:
      InputError: the engine needs a package that is not installed.
    """
    shape = (batch, num_heads, memory_size, head_dim)
    return Memory(
        keys=jnp.zeros(shape, dtype),
        values=jnp.zeros(shape, dtype),
        num_written=jnp.zeros(batch, jnp.int32),
        index=indices.empty(engine, batch, memory_size, num_heads, head_dim),
    )


def reset(memory: Memory, start_of_document: Bool[Array, " batch"]) -> Memory:
    """Forgets everything in the rows that open a new document (MEM-5, MEM-11)."""
    num_written = jnp.where(start_of_document, 0, memory.num_written)
    index = memory.index and memory.index.reset(start_of_document)
    return dataclasses.replace(memory, num_written=num_written, index=index)


def insert(
    memory: Memory,
    keys: Float[Array, "batch segment_length num_heads head_dim"],
    values: Float[Array, "batch segment_length num_heads head_dim"],
    num_tokens: Int[Array, " batch"],
) -> Memory:
    """Appends a segment, overwriting the oldest pairs (MEM-1, MEM-2, MEM-6).

    Its cost does not depend on `memory_size`. Where the caller donates the
    memory, the slots are written in place; if it also reads it, see `wait_for`.
    (Not bfloat16 on a CPU: XLA has nothing there that writes it in place.)
    Gradients stop here (MEM-8), and rounding to the stored dtype is to nearest
    even (MEM-10).
    """
    memory, keys, values = jax.lax.stop_gradient((memory, keys, values))
    keys = keys.astype(memory.keys.dtype)
    values = values.astype(memory.values.dtype)
    num_tokens = jnp.asarray(num_tokens)
    args = memory.num_written, num_tokens
    return Memory(
        keys=write(memory.keys, keys.swapaxes(1, 2), *args),
        values=write(memory.values, values.swapaxes(1, 2), *args),
        num_written=memory.num_written + num_tokens,
        index=memory.index
        and memory.index.insert(memory.num_written, keys, num_tokens),
    )


def write(
    stored: Float[Array, "batch num_heads memory_size head_dim"],
    new: Float[Array, "batch num_heads segment_length head_dim"],
    num_written: Int[Array, " batch"],
    num_tokens: Int[Array, " batch"],
) -> Float[Array, "batch num_heads memory_size head_dim"]:
    """Writes the first `num_tokens` positions of each row into its slots (MEM-2).

    A row is written as slices, not as a scatter: for that, XLA would move a memory
    of narrow heads to another layout and back on a TPU.
    """
    args = stored, new, num_written, num_tokens
    if stored.dtype != jnp.bfloat16:
        return _write_slices(*args)
    return jax.lax.platform_dependent(*args, cpu=_write_bits, default=_write_slices)


def _write_bits(stored: jax.Array, new: jax.Array, *counts: jax.Array) -> jax.Array:
    """Writes bfloat16 as uint16, at the price of a pass over the memory.

    XLA for CPUs writes no bfloat16 in place: it widens the memory first, each time.
    """
    bits = (jax.lax.bitcast_convert_type(x, jnp.uint16) for x in (stored, new))
    return jax.lax.bitcast_convert_type(_write_slices(*bits, *counts), stored.dtype)


def _write_slices(
    stored: jax.Array, new: jax.Array, num_written: jax.Array, num_tokens: jax.Array
) -> jax.Array:
    memory_size, window = stored.shape[2], min(new.shape[2], stored.shape[2])
    # Of a segment longer than the memory only the end stays.
    skipped = jnp.maximum(num_tokens - memory_size, 0)
    first_slot = (num_written + skipped) % memory_size
    place = jnp.arange(window, dtype=jnp.int32)[None, None, :, None]
    new = jnp.pad(new, [(0, 0), (0, 0), (window, window), (0, 0)])
    shape = (1, stored.shape[1], window, stored.shape[3])

    def write_row(row: jax.Array, stored: jax.Array) -> jax.Array:
        # Pairs stand from the first slot on; those past the end of the memory, from
        # its beginning. Either part is seen through a window that is in the memory.
        for begin in (first_slot[row], first_slot[row] - memory_size):
            slot = jnp.clip(begin, 0, memory_size - window)
            first = skipped[row] + slot - begin  # Position of the window's first pair.
            position = first + place
            fresh = (position >= skipped[row]) & (position < num_tokens[row])
            old = jax.lax.dynamic_slice(stored, (row, 0, slot, 0), shape)
            pairs = jax.lax.dynamic_slice(new, (row, 0, first + window, 0), shape)
            pairs = jnp.where(fresh, pairs, old)
            stored = jax.lax.dynamic_update_slice(stored, pairs, (row, 0, slot, 0))
        return stored

    return jax.lax.fori_loop(0, stored.shape[0], write_row, stored)


def wait_for(
    num_tokens: Int[Array, " batch"],
    read: Float[Array, "batch segment_length model_dim"],
) -> Int[Array, " batch"]:
    """Returns `num_tokens`, for XLA to believe that they depend on `read`.

    What a segment reads from the memory must be read before its own pairs are
    written there (ORD-1). XLA knows no order but that of the data; where it sees
    none, it saves the memory from being overwritten by a copy of all of it. (It has
    forgotten any `optimization_barrier` when it decides on copies.)
    """
    total = jax.lax.stop_gradient(read).sum(axis=(1, 2))
    impossible = (total < 0) & (total > 0)
    return num_tokens + impossible.astype(num_tokens.dtype)


def gather(
    stored: Float[Array, "batch num_heads memory_size head_dim"],
    slots: Int[Array, "batch num_heads segment_length top_k"],
) -> Float[Array, "batch num_heads segment_length top_k head_dim"]:
    """Returns the keys or values of retrieved slots.

    Where the slot is -1 the result is that of slot 0, for the caller to mask.
    """
    if stored.shape[-1] % _LANES == 0:
        return keep(_gather_rows(stored, slots))
    found = jax.lax.platform_dependent(
        stored, slots, tpu=_gather_head_by_head, default=_gather_rows
    )
    return keep(found)


def _gather_rows(stored: jax.Array, slots: jax.Array) -> jax.Array:
    batch, num_heads, memory_size, head_dim = stored.shape
    # One flat list of pairs: a gather along a single axis is the fastest kind.
    first = jnp.arange(batch * num_heads, dtype=jnp.int32) * memory_size
    index = jnp.maximum(slots, 0) + first.reshape(batch, num_heads, 1, 1)
    flat = stored.reshape(batch * num_heads * memory_size, head_dim)
    return flat.at[index].get(mode="promise_in_bounds")


def _gather_head_by_head(stored: jax.Array, slots: jax.Array) -> jax.Array:
    """Gathers from a copy of one head at a time.

    A TPU lays out narrow heads with the slots side by side, so as not to waste lanes,
    and gathers from rows only. Left alone, XLA copies all heads to rows of 128 first,
    twice the memory; one head often fits into the memory of the chip.
    """
    batch, num_heads, memory_size, head_dim = stored.shape
    columns = stored.swapaxes(2, 3).reshape(-1, head_dim, memory_size)

    def of_head(x: tuple[jax.Array, jax.Array]) -> jax.Array:
        head, slots = x
        # Where it is, as it lies: or else the copy is taken before the loop.
        one = jax.lax.dynamic_index_in_dim(columns, head)
        rows = with_layout_constraint(one, Layout((0, 1, 2)))[0].T
        return rows.at[jnp.maximum(slots, 0)].get(mode="promise_in_bounds")

    heads = jnp.arange(batch * num_heads, dtype=jnp.int32)
    found = jax.lax.map(of_head, (heads, slots.reshape(-1, *slots.shape[2:])))
    return found.reshape(*slots.shape, head_dim)


def keep(found: Kept) -> Kept:
    """Marks what was found in a memory, for a backward pass that computes again.

    By then the memory holds the segment's own pairs, so it could not be found twice.
    """
    return jax.tree.map(lambda x: checkpoint_name(x, RETRIEVED), found)
