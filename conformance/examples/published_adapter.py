"""`KNNMemory` of the package memorizing-transformers-pytorch 0.4.1, adapted.

Only its public methods are called: `add`, `search` and `clear`, and
`at_batch_indices` where some rows have more to add than others.

- The package's memory has rows and no heads. Here every head of every row is a row.
- Its search returns keys and values, no slots. Here every value has one component
  more, the slot that MEM-2 gives its pair, and every key and query a zero there,
  which changes no inner product. So the slots are those of the pairs that were
  read, wherever the package keeps them.
- Its attention is one softmax over memory and local context, and its model has
  other layers and parameters than MOD-1: neither fits the Protocol.
"""

import dataclasses
import pathlib
import tempfile

import numpy as np
import torch
from memorizing_transformers_pytorch.knn_memory import KNNMemory


@dataclasses.dataclass
class State:
    """The package's memory, and what the adapter has to know of it.

    Attributes:
      memory: row `row * num_heads + head` is a head of a row.
      directory: holds the memory's file until the state is forgotten.
      memory_size: pairs that it is meant to keep.
      top_k: neighbors of a search.
      num_written: pairs of each row since its last reset.
    """

    memory: KNNMemory
    directory: tempfile.TemporaryDirectory
    memory_size: int
    top_k: int
    num_written: np.ndarray


class PublishedPackage:
    """The package's memory, as the approximate search that it is."""

    name = "memorizing-transformers-pytorch 0.4.1"
    features = frozenset({"approximate_search", "long_segments"})
    # The package names no target; the paper says "about 90%".
    recall_target = 0.9

    def init(
        self,
        *,
        batch: int,
        memory_size: int,
        num_heads: int,
        head_dim: int,
        top_k: int,
        memory_dtype: str = "float32",
    ) -> State:
        """Returns the state of an empty memory."""
        assert memory_dtype == "float32"
        directory = tempfile.TemporaryDirectory()
        memory = KNNMemory(
            dim=head_dim + 1,
            max_memories=memory_size,
            num_indices=batch * num_heads,
            memmap_filename=str(pathlib.Path(directory.name) / "memory"),
            multiprocessing=False,
        )
        return State(memory, directory, memory_size, top_k, np.zeros(batch, np.int64))

    def reset(self, state: State, start_of_document: np.ndarray) -> State:
        """Clears rows in place."""
        rows = np.flatnonzero(start_of_document)
        if len(rows):
            state.memory.clear(heads_of(state, rows))
        state.num_written[rows] = 0
        return state

    def insert(
        self, state: State, keys: np.ndarray, values: np.ndarray, num_tokens: np.ndarray
    ) -> State:
        """Adds a segment in place; rows of the same length together."""
        pair = state.num_written[:, None] + np.arange(keys.shape[1])
        slot = np.broadcast_to(
            (pair % state.memory_size)[:, :, None, None], (*keys.shape[:3], 1)
        )
        pairs = np.stack(
            [widened(keys, np.zeros_like(slot)), widened(values, slot)], axis=3
        )
        for length in np.unique(num_tokens[num_tokens > 0]):
            rows = np.flatnonzero(num_tokens == length)
            added = (
                pairs[rows, :length]
                .swapaxes(1, 2)
                .reshape(-1, length, *pairs.shape[3:])
            )
            with state.memory.at_batch_indices(heads_of(state, rows)):
                state.memory.add(torch.tensor(added))
        state.num_written += num_tokens
        return state

    def search(self, state: State, queries: np.ndarray) -> np.ndarray:
        """Returns the slots of the pairs that were read."""
        return self._read(state, queries, state.top_k)[1]

    def _read(
        self, state: State, queries: np.ndarray, top_k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns pairs [batch, length, heads, top_k, 2, dim] and their slots."""
        batch, length, heads, _ = queries.shape
        asked = widened(queries, np.zeros((*queries.shape[:3], 1)))
        asked = asked.swapaxes(1, 2).reshape(batch * heads, length, -1)
        pairs, found = state.memory.search(torch.tensor(asked), top_k)
        pairs = pairs.numpy().reshape(batch, heads, length, top_k, 2, -1)
        slots = np.where(found.numpy().reshape(pairs.shape[:4]), pairs[..., 1, -1], -1)
        return pairs.swapaxes(1, 2), slots.astype(np.int64).swapaxes(1, 2)


class MemoryAlone(PublishedPackage):
    """The package's memory without the limits of its search.

    It is asked for all it has, and what comes back is ranked here, by true scores
    and with ties in order. What then breaks a rule of exact search is neither an
    approximation nor a tie.
    """

    name = f"{PublishedPackage.name}, its memory alone"
    features = frozenset({"exact_search", "long_segments"})
    recall_target = 1.0

    def search(self, state: State, queries: np.ndarray) -> np.ndarray:
        """Returns the best slots among all pairs that were read."""
        pairs, slots = self._read(state, queries, state.memory_size)
        scores = np.einsum("bqhd,bqhkd->bqhk", queries, pairs[..., 0, :-1])
        scores[slots < 0] = -np.inf
        order = np.lexsort((slots, -scores))[..., : state.top_k]
        return np.take_along_axis(slots, order, axis=-1)


def heads_of(state: State, rows: np.ndarray) -> list[int]:
    """Returns which of the package's rows hold the heads of some rows."""
    heads = state.memory.num_indices // len(state.num_written)
    return [row * heads + head for row in rows.tolist() for head in range(heads)]


def widened(array: np.ndarray, component: np.ndarray) -> np.ndarray:
    """Returns float32 vectors with one more component."""
    return np.concatenate([array, component], axis=-1).astype(np.float32)
