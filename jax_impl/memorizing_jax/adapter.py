"""The JAX port, as the conformance suite sees it.

Nothing here imports the suite: its `Implementation` is a Protocol, so having the
right methods is enough. One class for each search engine.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from memorizing_jax import (
    adapter_model,
    attention,
    bucketed_search,
    memory,
    memory_shards,
    search,
)
from memorizing_jax import cache as caches
from memorizing_jax.adapter_model import MemoryState
from memorizing_jax.cache import Cache
from memorizing_jax.config import SearchEngine

Arrays = dict[str, np.ndarray]


class JaxImplementation(adapter_model.ModelMethods):
    """The port in float32 on the default device, with exact search."""

    name = "jax"
    engine: SearchEngine = "exact"
    recall_target = 1.0
    features = adapter_model.FEATURES | {
        "exact_search",
        "long_segments",
        "bfloat16_memory",
        "checked_inputs",
        "attention",
        "gradients",
    }

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
        sizes = batch, memory_size, num_heads, head_dim
        empty = memory.empty(*sizes, memory_dtype, self.engine)
        return MemoryState(empty, top_k)

    def reset(self, state: MemoryState, start_of_document: np.ndarray) -> MemoryState:
        """Returns the state with some rows emptied."""
        return MemoryState(
            _reset(state.memory, jnp.asarray(start_of_document)), state.top_k
        )

    def insert(
        self,
        state: MemoryState,
        keys: np.ndarray,
        values: np.ndarray,
        num_tokens: np.ndarray,
    ) -> MemoryState:
        """Returns the state with a segment appended, written in place."""
        grown = _insert(state.memory, *_floats(keys, values), _ints(num_tokens))
        return MemoryState(grown, state.top_k)

    def search(self, state: MemoryState, queries: np.ndarray) -> np.ndarray:
        """Returns the slots of every query's neighbors."""
        (on_device,) = _floats(queries)
        search.raise_if_not_finite(_first_not_finite(on_device, state.memory))
        found = _find(on_device, state, self.engine, self.recall_target)
        return np.asarray(found.slots).swapaxes(1, 2)

    def attend_memory(
        self, state: MemoryState, queries: np.ndarray, attention_scale: np.ndarray
    ) -> np.ndarray:
        """Returns what the queries read from memory."""
        arrays = _floats(queries, attention_scale)
        return np.asarray(
            _attend_memory(state, *arrays, self.engine, self.recall_target)
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
        arrays = _floats(
            queries, local_keys, local_values, relative_bias, attention_scale
        )
        return np.asarray(_attend_local(*arrays, _ints(num_cached), local_window))

    def combine(
        self,
        memory_output: np.ndarray,
        local_output: np.ndarray,
        gate_bias: np.ndarray,
    ) -> np.ndarray:
        """Returns the gated sum."""
        arrays = _floats(memory_output, local_output, gate_bias)
        return np.asarray(attention.combine(*arrays))

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
        """Returns the gradients of one memory layer, also those that must be zero."""
        inputs = {
            "queries": queries,
            "local_keys": local_keys,
            "local_values": local_values,
            "relative_bias": relative_bias,
            "attention_scale": attention_scale,
            "gate_bias": gate_bias,
        }
        arrays = dict(zip(inputs, _floats(*inputs.values()), strict=True))
        found = _layer_gradients(
            (arrays, state.memory.keys),
            state,
            *_floats(cotangent),
            _ints(num_cached),
            local_window,
            self.engine,
            self.recall_target,
        )
        gradients = {name: np.asarray(array) for name, array in found[0].items()}
        return gradients | {"memory_keys": np.asarray(found[1]).swapaxes(1, 2)}

    def stream(
        self, documents: Sequence[np.ndarray], batch: int, segment_length: int
    ) -> Iterator[tuple[np.ndarray, ...]]:
        """Yields the rows' segments, as training reads them."""
        return adapter_model.stream(documents, batch, segment_length)


class JaxBucketed(JaxImplementation):
    """The port with its default search, bucketed."""

    name = "jax, bucketed search"
    engine: SearchEngine = "bucketed"
    # Low, so that the small memories of the suite are searched in few buckets.
    recall_target = 0.85
    features = (JaxImplementation.features - {"exact_search"}) | {"bucketed_search"}

    def bucketing(self, memory_size: int, top_k: int) -> tuple[int, int]:
        """Returns the buckets and winners per bucket that search uses."""
        return bucketed_search.choose_buckets(self.recall_target, memory_size, top_k)


class JaxApproximate(JaxImplementation):
    """The port with XLA's own approximate top-k, which is exact off TPU."""

    name = "jax, approx_max_k"
    engine: SearchEngine = "approx_max_k"
    recall_target = 0.95
    features = (JaxImplementation.features - {"exact_search"}) | {"approximate_search"}


class JaxClustered(JaxImplementation):
    """The port with clustered search."""

    name = "jax, clustered search"
    engine: SearchEngine = "clustered"
    # High, since lists help little to find the suite's keys without any structure.
    recall_target = 0.98
    features = (JaxImplementation.features - {"exact_search"}) | {"approximate_search"}


class JaxScann(JaxImplementation):
    """The port with ScaNN on the host.

    Most of the suite's memories are so small that its brute force searches them.
    """

    name = "jax, ScaNN"
    engine: SearchEngine = "scann"
    recall_target = 0.95
    features = (JaxImplementation.features - {"exact_search"}) | {"approximate_search"}


def _floats(*arrays: np.ndarray) -> tuple[jax.Array, ...]:
    return tuple(jnp.asarray(array, jnp.float32) for array in arrays)


def _ints(array: np.ndarray) -> jax.Array:
    return jnp.asarray(array, jnp.int32)


_reset = jax.jit(memory_shards.reset, donate_argnums=0)
_insert = jax.jit(memory_shards.insert, donate_argnums=0)
_first_not_finite = jax.jit(memory_shards.first_not_finite)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _find(
    queries: jax.Array, state: MemoryState, engine: SearchEngine, recall_target: float
) -> search.Found:
    return memory_shards.find(
        queries,
        state.memory,
        top_k=state.top_k,
        engine=engine,
        recall_target=recall_target,
    )


@functools.partial(jax.jit, static_argnums=(3, 4))
def _attend_memory(
    state: MemoryState,
    queries: jax.Array,
    attention_scale: jax.Array,
    engine: SearchEngine,
    recall_target: float,
) -> jax.Array:
    found = _find(queries, state, engine, recall_target)
    return memory_shards.attend(queries, state.memory, found, attention_scale)[0]


@functools.partial(jax.jit, static_argnums=6)
def _attend_local(
    queries: jax.Array,
    local_keys: jax.Array,
    local_values: jax.Array,
    relative_bias: jax.Array,
    attention_scale: jax.Array,
    num_cached: jax.Array,
    local_window: int,
) -> jax.Array:
    segment_length = queries.shape[1]
    cache_length = local_keys.shape[1] - segment_length
    cached, new = (
        tuple(part(x) for x in (local_keys, local_values))
        for part in (lambda x: x[:, :cache_length], lambda x: x[:, cache_length:])
    )
    return attention.local_attention(
        queries,
        *caches.local_context(Cache(*cached), *new),
        attention.local_mask(segment_length, local_window, cache_length, num_cached),
        relative_bias=relative_bias,
        attention_scale=attention_scale,
    )


@functools.partial(jax.jit, static_argnums=(4, 5, 6))
def _layer_gradients(
    inputs: tuple[Mapping[str, jax.Array], jax.Array],
    state: MemoryState,
    cotangent: jax.Array,
    num_cached: jax.Array,
    local_window: int,
    engine: SearchEngine,
    recall_target: float,
) -> Any:
    def projected(inputs: tuple[Mapping[str, jax.Array], jax.Array]) -> jax.Array:
        x, keys = inputs
        stored = dataclasses.replace(state.memory, keys=keys)
        retrieved = _attend_memory(
            dataclasses.replace(state, memory=stored),
            x["queries"],
            x["attention_scale"],
            engine,
            recall_target,
        )
        local = _attend_local(
            x["queries"],
            x["local_keys"],
            x["local_values"],
            x["relative_bias"],
            x["attention_scale"],
            num_cached,
            local_window,
        )
        output = attention.combine(retrieved, local, x["gate_bias"])
        return (cotangent * output).sum()

    return jax.grad(projected)(inputs)
