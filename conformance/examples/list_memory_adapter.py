"""The library `list_memory`, as the conformance suite sees it."""

import list_memory
import numpy as np


class ListMemoryImplementation:
    """One list for each row and head. Local attention it has none."""

    name = "list_memory"
    features = frozenset({"exact_search", "long_segments"})
    recall_target = 1.0

    def init(
        self, *, batch, memory_size, num_heads, head_dim, top_k, memory_dtype="float32"
    ):
        """Returns the lists, and how many neighbors to look for."""
        del head_dim, memory_dtype  # A list holds whatever it is given.
        rows = [
            [list_memory.ListMemory(memory_size) for _ in range(num_heads)]
            for _ in range(batch)
        ]
        return rows, top_k

    def reset(self, state, start_of_document):
        """Clears the lists of the rows that start a document."""
        for row, start in zip(state[0], start_of_document, strict=True):
            for memory in row:
                if start:
                    memory.clear()
        return state

    def insert(self, state, keys, values, num_tokens):
        """Remembers the real positions of each row, head by head."""
        for b, row in enumerate(state[0]):
            for h, memory in enumerate(row):
                for i in range(num_tokens[b]):
                    memory.remember(keys[b, i, h].tolist(), values[b, i, h].tolist())
        return state

    def search(self, state, queries):
        """Returns places in the lists, which are slots, and -1 for what is missing."""
        rows, top_k = state
        slots = np.full((*queries.shape[:3], top_k), -1)
        for b, i, h in np.ndindex(*queries.shape[:3]):
            found = rows[b][h].nearest(queries[b, i, h].tolist(), top_k)
            slots[b, i, h, : len(found)] = found
        return slots
