"""The index of ScaNN search: a stamp in the state, and what it stands for on the host.

A state may be saved, restored elsewhere, or used again after later ones, and the
host's searchers must not answer for another memory than that of the state. So each
insertion draws a new random stamp and stores it on both sides: searchers are used
only while they carry the stamp of the state that asks. Otherwise they are built anew
from the stored keys.

Its answers depend on when it learned from which keys. A run that was resumed may
therefore find other neighbors than one that was not, as good as those.
"""

import collections
import dataclasses
import functools
import importlib.util
import secrets
import threading

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback
from jaxtyping import Array, Bool, Float, Int

from memorizing_jax.errors import InputError
from memorizing_jax.scann_host import HeadSearcher, Vectors

Stamp = tuple[int, int]
Counts = np.ndarray

# Memories whose searchers are kept: more than a model has layers with memory, in
# training and validation together. Beyond, the one not used for longest is dropped.
_KEPT = 32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ScannIndex:
    """Says which searchers on the host know the memory.

    Attributes:
      stamp: [2]; drawn at the last insertion, zeros before the first.
      memory_size: slots.
    """

    stamp: jax.Array
    memory_size: int = dataclasses.field(metadata={"static": True})

    def reset(self, start_of_document: Bool[Array, " batch"]) -> "ScannIndex":
        """Leaves it to the next insertion: it sees which rows begin again."""
        del start_of_document
        return self

    def insert(
        self,
        num_written: Int[Array, " batch"],
        keys: Float[Array, "batch segment_length num_heads head_dim"],
        num_tokens: Int[Array, " batch"],
    ) -> "ScannIndex":
        """Gives the pairs to the host."""
        call = functools.partial(_insert, self.memory_size)
        like = jax.ShapeDtypeStruct((2,), jnp.int32)
        keys = keys.astype(jnp.float32)
        stamp = io_callback(call, like, self.stamp, num_written, keys, num_tokens)
        return dataclasses.replace(self, stamp=stamp)


def empty(memory_size: int) -> ScannIndex:
    """Returns the index of an empty memory.

    Raises:
      InputError: ScaNN is not installed.
    """
    if importlib.util.find_spec("scann") is None:
        raise InputError(
            "search is 'scann', but the package scann is not installed; run "
            "pip install 'memorizing-transformers[scann]' (Linux on x86-64 only), or "
            "choose another search"
        )
    return ScannIndex(jnp.zeros(2, jnp.int32), memory_size)


class Searchers:
    """What the host knows of one memory: a searcher for each row and head.

    Args:
      batch: rows.
      num_heads: heads.
      memory_size: slots.
      head_dim: size of a key.
    """

    def __init__(self, batch: int, num_heads: int, memory_size: int, head_dim: int):
        self._heads = [
            [HeadSearcher(memory_size, head_dim) for _ in range(num_heads)]
            for _ in range(batch)
        ]
        self._memory_size = memory_size
        self._num_written = np.zeros(batch, np.int64)

    @classmethod
    def of(cls, num_written: Counts, keys: Vectors) -> "Searchers":
        """Builds the searchers of a memory, `[batch, num_heads, memory_size, dim]`."""
        batch, num_heads, memory_size, head_dim = keys.shape
        searchers = cls(batch, num_heads, memory_size, head_dim)
        for row in np.flatnonzero(num_written):
            slots = np.arange(min(num_written[row], memory_size))
            for head, searcher in enumerate(searchers._heads[row]):
                searcher.write(slots, keys[row, head, slots])
        searchers._num_written[:] = num_written
        return searchers

    def know(self, num_written: Counts) -> bool:
        """Returns whether they hold this many pairs; a row without any may be reset."""
        return bool(((num_written == self._num_written) | (num_written == 0)).all())

    def insert(self, num_written: Counts, keys: Vectors, num_tokens: Counts) -> None:
        """Takes up a segment; rows with nothing written begin again (MEM-5)."""
        for row in np.flatnonzero(num_tokens):
            count = int(num_tokens[row])
            position = np.arange(max(0, count - self._memory_size), count)
            slots = (int(num_written[row]) + position) % self._memory_size
            for head, searcher in enumerate(self._heads[row]):
                if num_written[row] == 0:
                    searcher.clear()
                searcher.write(slots, keys[row, position, head])
            self._num_written[row] = num_written[row] + count

    def find(
        self, num_written: Counts, queries: Vectors, wanted: int, recall_target: float
    ) -> np.ndarray:
        """Returns slots, `[batch, num_heads, segment_length, wanted]`."""
        found = np.full((*queries.shape[:3], wanted), -1, np.int32)
        for row in np.flatnonzero(num_written):
            for head, searcher in enumerate(self._heads[row]):
                found[row, head] = searcher.find(
                    queries[row, head], wanted, recall_target
                )
        return found


_KNOWN: collections.OrderedDict[Stamp, Searchers] = collections.OrderedDict()
_LOCK = threading.Lock()


def find(
    index: ScannIndex,
    num_written: Int[Array, " batch"],
    queries: Float[Array, "batch num_heads segment_length head_dim"],
    keys: Float[Array, "batch num_heads memory_size head_dim"],
    *,
    wanted: int,
    recall_target: float,
) -> Int[Array, "batch num_heads segment_length wanted"]:
    """Returns slots that the host finds, in any order, -1 for none.

    The stored keys go to the host only where it does not know them.
    """
    like = jax.ShapeDtypeStruct((*queries.shape[:3], wanted), jnp.int32)
    queries = queries.astype(jnp.float32)
    asked = functools.partial(_find, wanted=wanted, recall_target=recall_target)
    known = jax.pure_callback(
        _is_known, jax.ShapeDtypeStruct((), jnp.bool_), index.stamp, num_written
    )
    return jax.lax.cond(
        known,
        lambda: jax.pure_callback(asked, like, index.stamp, num_written, queries),
        lambda: jax.pure_callback(
            asked, like, index.stamp, num_written, queries, keys.astype(jnp.float32)
        ),
    )


def _is_known(stamp: jax.Array, num_written: jax.Array) -> np.ndarray:
    with _LOCK:
        searchers = _KNOWN.get(_read(stamp))
        known = searchers is not None and searchers.know(np.asarray(num_written))
        return np.asarray(known or not np.asarray(num_written).any())


def _find(
    stamp: jax.Array,
    num_written: jax.Array,
    queries: jax.Array,
    keys: jax.Array | None = None,
    *,
    wanted: int,
    recall_target: float,
) -> np.ndarray:
    counts, asked = np.asarray(num_written), np.asarray(queries)
    if not counts.any():
        return np.full((*asked.shape[:3], wanted), -1, np.int32)
    with _LOCK:
        if keys is not None:
            _KNOWN[_read(stamp)] = Searchers.of(counts, np.asarray(keys))
            _drop_oldest()
        searchers = _KNOWN[_read(stamp)]
        _KNOWN.move_to_end(_read(stamp))
        return searchers.find(counts, asked, wanted, recall_target)


def _insert(
    memory_size: int,
    stamp: jax.Array,
    num_written: jax.Array,
    keys: jax.Array,
    num_tokens: jax.Array,
) -> np.ndarray:
    before, added = np.asarray(num_written), np.asarray(num_tokens)
    if not added.any():
        return np.asarray(stamp)
    new = np.array([secrets.randbits(31), secrets.randbits(31)], np.int32)
    pairs = np.asarray(keys)
    with _LOCK:
        searchers = _KNOWN.pop(_read(stamp), None)
        if searchers is None or not searchers.know(before):
            if before.any():
                return new  # Nobody knows the rest; the next search builds it anew.
            batch, _, num_heads, head_dim = pairs.shape
            searchers = Searchers(batch, num_heads, memory_size, head_dim)
        searchers.insert(before, pairs, added)
        _KNOWN[_read(new)] = searchers
        _drop_oldest()
    return new


def _read(stamp: jax.Array | np.ndarray) -> Stamp:
    first, second = np.asarray(stamp).tolist()
    return first, second


def _drop_oldest() -> None:
    while len(_KNOWN) > _KEPT:
        _KNOWN.popitem(last=False)
