"""What the adapter of the reference offers below the model."""

import dataclasses
from typing import Any

import numpy as np

from memorizing_conformance.implementation import Arrays
from memorizing_reference import attention, gradients, memory, search


@dataclasses.dataclass(frozen=True)
class MemoryState:
    """One memory, and how many neighbors its searches return."""

    memory: memory.Memory
    top_k: int


class MemoryMethods:
    """The levels below the model.

    Attributes:
      dtype: what it computes in.
    """

    dtype: type[np.floating] = np.float32

    def init(
        self,
        *,
        batch: int,
        memory_size: int,
        num_heads: int,
        head_dim: int,
        top_k: int,
        memory_dtype: Any = "float32",
    ) -> MemoryState:
        """Returns the state of an empty memory."""
        empty = memory.empty(
            batch,
            memory_size,
            num_heads,
            head_dim,
            dtype=memory_dtype,
            computed_in=self.dtype,
        )
        return MemoryState(empty, top_k)

    def reset(self, state: MemoryState, start_of_document: np.ndarray) -> MemoryState:
        """Returns the state with some rows emptied."""
        return MemoryState(memory.reset(state.memory, start_of_document), state.top_k)

    def insert(
        self,
        state: MemoryState,
        keys: np.ndarray,
        values: np.ndarray,
        num_tokens: np.ndarray,
    ) -> MemoryState:
        """Returns the state with a segment appended."""
        grown = memory.insert(
            state.memory, self._cast(keys), self._cast(values), num_tokens
        )
        return MemoryState(grown, state.top_k)

    def search(self, state: MemoryState, queries: np.ndarray) -> np.ndarray:
        """Returns the best slots of every query."""
        return search.top_k_slots(self._cast(queries), state.memory, state.top_k)

    def attend_memory(
        self, state: MemoryState, queries: np.ndarray, attention_scale: np.ndarray
    ) -> np.ndarray:
        """Returns what the queries read from memory."""
        return attention.memory_attention(
            self._cast(queries),
            state.memory,
            self.search(state, queries),
            self._cast(attention_scale),
        )

    def attend_local(
        self,
        queries: np.ndarray,
        local_keys: np.ndarray,
        local_values: np.ndarray,
        num_cached: np.ndarray,
        *,
        local_window: int,
        relative_bias: np.ndarray,
        attention_scale: np.ndarray,
    ) -> np.ndarray:
        """Returns what the queries read from the local context."""
        return attention.local_attention(
            self._cast(queries),
            self._cast(local_keys),
            self._cast(local_values),
            num_cached,
            local_window=local_window,
            relative_bias=self._cast(relative_bias),
            attention_scale=self._cast(attention_scale),
        )

    def combine(
        self,
        memory_output: np.ndarray,
        local_output: np.ndarray,
        gate_bias: np.ndarray,
    ) -> np.ndarray:
        """Returns the gated sum."""
        return attention.combine(
            self._cast(memory_output), self._cast(local_output), self._cast(gate_bias)
        )

    def memory_layer_gradients(
        self,
        state: MemoryState,
        queries: np.ndarray,
        local_keys: np.ndarray,
        local_values: np.ndarray,
        num_cached: np.ndarray,
        cotangent: np.ndarray,
        *,
        local_window: int,
        relative_bias: np.ndarray,
        attention_scale: np.ndarray,
        gate_bias: np.ndarray,
    ) -> Arrays:
        """Returns the gradients of one memory layer."""
        _, saved = gradients.forward(
            self._cast(queries),
            self._cast(local_keys),
            self._cast(local_values),
            num_cached,
            state.memory,
            self.search(state, queries),
            local_window=local_window,
            relative_bias=self._cast(relative_bias),
            attention_scale=self._cast(attention_scale),
            gate_bias=self._cast(gate_bias),
        )
        return gradients.backward(saved, self._cast(cotangent))

    def _cast(self, array: np.ndarray) -> np.ndarray:
        return np.asarray(array, self.dtype)
