"""The external memory: a ring buffer of past (key, value) pairs.

Every memory layer keeps one `Memory`. A model calls three functions on it, in
this order, once per segment (ORD-1):

1. `reset` empties the rows whose segment opens a new document (MEM-5);
2. `search.top_k_slots` looks up the neighbors of the segment's queries;
3. `insert` appends the segment's own pairs (MEM-4: a segment never finds itself).
"""

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int


@dataclasses.dataclass(frozen=True)
class Memory:
    """The pairs one memory layer remembers, for every row of the batch.

    Attributes:
      keys: slot `s` of row `b` holds the key written there last.
      values: the value that belongs to each key.
      num_written: pairs since the last reset. It keeps counting once the buffer
        is full, so it can exceed `memory_size`.
      dtype: "bfloat16" rounds pairs as they come in; "float32" keeps them as
        they are (MEM-10).
    """

    keys: Float[np.ndarray, "batch memory_size num_heads head_dim"]
    values: Float[np.ndarray, "batch memory_size num_heads head_dim"]
    num_written: Int[np.ndarray, " batch"]
    dtype: Literal["float32", "bfloat16"] = "float32"

    @property
    def memory_size(self) -> int:
        """Pairs kept per row."""
        return self.keys.shape[1]

    @property
    def num_valid(self) -> Int[np.ndarray, " batch"]:
        """Slots of each row that may be retrieved: always the first ones (MEM-3)."""
        return np.minimum(self.num_written, self.memory_size)


def empty(
    batch: int,
    memory_size: int,
    num_heads: int,
    head_dim: int,
    *,
    dtype: Literal["float32", "bfloat16"] = "float32",
    computed_in: type[np.floating] = np.float32,
) -> Memory:
    """Returns a memory with no valid slot.

    Args:
      batch: number of rows.
      memory_size: pairs kept per row and head.
      num_heads: heads; each has keys and values of its own (MEM-1).
      head_dim: width of a key and of a value.
      dtype: see `Memory`.
      computed_in: NumPy type of the model's arithmetic, float32 or float64.

    Raises:
      ValueError: if `dtype` is neither of the two.
    """
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype is {dtype!r}, must be float32 or bfloat16")
    shape = (batch, memory_size, num_heads, head_dim)
    return Memory(
        keys=np.zeros(shape, computed_in),
        values=np.zeros(shape, computed_in),
        num_written=np.zeros(batch, np.int64),
        dtype=dtype,
    )


def reset(memory: Memory, start_of_document: Bool[np.ndarray, " batch"]) -> Memory:
    """Forgets everything in the rows that open a new document (MEM-5).

    Slots are not cleared: `num_valid` already hides them (MEM-3), and nothing is
    multiplied by zero, which would keep a NaN alive (MEM-11).
    """
    num_written = np.where(start_of_document, 0, memory.num_written)
    return dataclasses.replace(memory, num_written=num_written)


def insert(
    memory: Memory,
    keys: Float[np.ndarray, "batch segment_length num_heads head_dim"],
    values: Float[np.ndarray, "batch segment_length num_heads head_dim"],
    num_tokens: Int[np.ndarray, " batch"],
) -> Memory:
    """Appends a segment, overwriting the oldest pairs once the memory is full.

    Pair number `t` since the last reset, counted from 0, goes to slot
    `t % memory_size` (MEM-2). The memory therefore always holds the newest
    `memory_size` pairs (MEM-1).

    Args:
      memory: state before the segment; it is not modified.
      keys: the segment's keys, normalized, not scaled (MEM-7, QKN-3).
      values: the segment's values.
      num_tokens: how many positions of each row are real; only those are
        inserted (MEM-6).

    Returns:
      The state after the segment.

    Raises:
      ValueError: if `num_tokens` is negative or exceeds the segment.
    """
    batch, segment_length = keys.shape[:2]
    require_num_tokens(num_tokens, segment_length)
    new_keys, new_values = memory.keys.copy(), memory.values.copy()
    for row in range(batch):
        # A segment longer than the memory claims some slots twice. Only its
        # newest pairs survive, so only they are written.
        last = int(num_tokens[row])
        first = max(0, last - memory.memory_size)
        pair = memory.num_written[row] + np.arange(first, last)
        if pair.size:
            slot = pair % memory.memory_size
            new_keys[row, slot] = _stored(keys[row, first:last], memory.dtype)
            new_values[row, slot] = _stored(values[row, first:last], memory.dtype)
    num_written = memory.num_written + num_tokens
    return dataclasses.replace(
        memory, keys=new_keys, values=new_values, num_written=num_written
    )


def require_num_tokens(
    num_tokens: Int[np.ndarray, " batch"], segment_length: int
) -> None:
    """Refuses a row with fewer than 0 or more real tokens than the segment has.

    Raises:
      ValueError: names all rows' `num_tokens`.
    """
    if (num_tokens < 0).any() or (num_tokens > segment_length).any():
        raise ValueError(
            f"num_tokens is {num_tokens.tolist()}, must be 0 to {segment_length}"
        )


def _stored(pairs: np.ndarray, dtype: str) -> np.ndarray:
    return round_to_bfloat16(pairs) if dtype == "bfloat16" else pairs


def round_to_bfloat16(x: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Returns the nearest bfloat16 values, ties to even, in the dtype of `x`.

    bfloat16 is the upper half of a float32. Adding just under half of the lower
    half's range, plus one where the upper half is odd, carries into the upper
    half exactly when rounding to nearest even goes up (MEM-10).
    """
    bits = x.astype(np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    kept = (rounded & np.uint32(0xFFFF0000)).view(np.float32)
    # The carry would turn some NaNs into infinity; those keep their bits.
    return np.where(np.isnan(x), x, kept).astype(x.dtype)
