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
from jaxtyping import Array, Bool, Float, Int

from memorizing_jax import index as indices
from memorizing_jax.config import SearchEngine
from memorizing_jax.index import Index

Kept = TypeVar("Kept")

# What `jax.checkpoint` keeps of a layer that has a memory.
RETRIEVED: Final = "retrieved"


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
    (Not bfloat16 on a CPU: there XLA widens the whole memory to scatter into it.)
    Gradients stop here (MEM-8), and rounding to the stored dtype is to nearest
    even (MEM-10).
    """
    batch, segment_length = keys.shape[:2]
    position = jnp.arange(segment_length, dtype=jnp.int32)[None, :]
    # Padding is not written; nor is what a long segment would itself overwrite,
    # for a scatter that hits a slot twice keeps either write.
    last = num_tokens[:, None]
    written = (position < last) & (position >= last - memory.memory_size)
    slot = (memory.num_written[:, None] + position) % memory.memory_size
    # Past the end: "drop" ignores it.
    slot = jnp.where(written, slot, memory.memory_size)
    # Every index written out: where heads are a slice, a TPU copies the memory to
    # another layout and back.
    row = jnp.arange(batch, dtype=jnp.int32)[:, None, None]
    head = jnp.arange(keys.shape[2], dtype=jnp.int32)[None, :, None]
    slot = slot[:, None, :]

    keys = jax.lax.stop_gradient(keys).astype(memory.keys.dtype)
    values = jax.lax.stop_gradient(values).astype(memory.values.dtype)

    def write(stored: jax.Array, new: jax.Array) -> jax.Array:
        return stored.at[row, head, slot].set(new.swapaxes(1, 2), mode="drop")

    return Memory(
        keys=write(memory.keys, keys),
        values=write(memory.values, values),
        num_written=memory.num_written + num_tokens,
        index=memory.index
        and memory.index.insert(memory.num_written, keys, num_tokens),
    )


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
    batch, num_heads, memory_size, head_dim = stored.shape
    # One flat list of pairs: a gather along a single axis is the fastest kind.
    first = jnp.arange(batch * num_heads, dtype=jnp.int32) * memory_size
    index = jnp.maximum(slots, 0) + first.reshape(batch, num_heads, 1, 1)
    flat = stored.reshape(batch * num_heads * memory_size, head_dim)
    return keep(flat.at[index].get(mode="promise_in_bounds"))


def keep(found: Kept) -> Kept:
    """Marks what was found in a memory, for a backward pass that computes again.

    By then the memory holds the segment's own pairs, so it could not be found twice.
    """
    return jax.tree.map(lambda x: checkpoint_name(x, RETRIEVED), found)
