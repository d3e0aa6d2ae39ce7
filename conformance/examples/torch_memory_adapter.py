"""`torch_memory` as the conformance suite sees it."""

import dataclasses
from typing import Any

import numpy as np
import torch
import torch_memory
from torch import Tensor


@dataclasses.dataclass
class MemoryState:
    """A memory, and how many neighbors its searches return."""

    memory: torch_memory.Memory
    top_k: int


def tensor(array: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    """Returns a copy of an array."""
    return torch.tensor(np.asarray(array), dtype=dtype)


def counts(array: Any) -> Tensor:
    """Returns a copy of an array of integers, such as tokens."""
    return tensor(array, torch.long)


class TorchMemory:
    """Memory and attention in float32 on the CPU."""

    name = "plain PyTorch, memory and attention"
    features = frozenset(
        {"attention", "bfloat16_memory", "exact_search", "gradients", "long_segments"}
    )
    recall_target = 1.0

    def init(
        self,
        *,
        batch: int,
        memory_size: int,
        num_heads: int,
        head_dim: int,
        top_k: int,
        memory_dtype: str = "float32",
    ) -> MemoryState:
        """Returns the state of an empty memory."""
        dtype = getattr(torch, memory_dtype)
        memory = torch_memory.Memory(batch, memory_size, num_heads, head_dim, dtype)
        return MemoryState(memory, top_k)

    def reset(self, state: MemoryState, start_of_document: np.ndarray) -> MemoryState:
        """Empties rows in place."""
        state.memory.reset(tensor(start_of_document, torch.bool))
        return state

    def insert(
        self,
        state: MemoryState,
        keys: np.ndarray,
        values: np.ndarray,
        num_tokens: np.ndarray,
    ) -> MemoryState:
        """Appends a segment in place."""
        state.memory.insert(tensor(keys), tensor(values), counts(num_tokens))
        return state

    def search(self, state: MemoryState, queries: np.ndarray) -> np.ndarray:
        """Returns the best slots of every query."""
        return state.memory.search(tensor(queries), state.top_k).numpy()

    def attend_memory(
        self, state: MemoryState, queries: np.ndarray, attention_scale: np.ndarray
    ) -> np.ndarray:
        """Returns what the queries read from memory."""
        return read(state, tensor(queries), tensor(attention_scale)).numpy()

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
        return torch_memory.local_attention(
            tensor(queries),
            tensor(local_keys),
            tensor(local_values),
            counts(num_cached),
            local_window=local_window,
            relative_bias=tensor(relative_bias),
            attention_scale=tensor(attention_scale),
        ).numpy()

    def combine(
        self,
        memory_output: np.ndarray,
        local_output: np.ndarray,
        gate_bias: np.ndarray,
    ) -> np.ndarray:
        """Returns the gated sum."""
        arguments = (memory_output, local_output, gate_bias)
        return torch_memory.combine(*map(tensor, arguments)).numpy()

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
    ) -> dict[str, np.ndarray]:
        """Returns the gradients of `sum(cotangent * output)`."""
        learned = {
            "queries": queries,
            "local_keys": local_keys,
            "local_values": local_values,
            "relative_bias": relative_bias,
            "attention_scale": attention_scale,
            "gate_bias": gate_bias,
        }
        x = {name: tensor(array).requires_grad_() for name, array in learned.items()}
        cached = local_keys.shape[1] - queries.shape[1]
        # In the model the cache has no graph.
        local = [
            torch.cat([x[name][:, :cached].detach(), x[name][:, cached:]], 1)
            for name in ("local_keys", "local_values")
        ]
        local_output = torch_memory.local_attention(
            x["queries"],
            *local,
            counts(num_cached),
            local_window=local_window,
            relative_bias=x["relative_bias"],
            attention_scale=x["attention_scale"],
        )
        memory_output = read(state, x["queries"], x["attention_scale"])
        output = torch_memory.combine(memory_output, local_output, x["gate_bias"])
        (tensor(cotangent) * output).sum().backward()
        return {name: array.grad.numpy() for name, array in x.items()}


def read(state: MemoryState, queries: Tensor, attention_scale: Tensor) -> Tensor:
    """Returns what queries read from the pairs that they find."""
    slots = state.memory.search(queries, state.top_k)
    return state.memory.read(queries, slots, attention_scale)
