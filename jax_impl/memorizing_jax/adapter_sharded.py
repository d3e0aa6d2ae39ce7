"""The port on eight simulated devices, as the conformance suite sees it.

The suite's sizes are small and divide by few numbers, so each state gets a mesh of its
own, of as many devices as its sizes allow: a memory of 16 slots is spread over 4, one
of 5 slots over 5. Nothing is padded.

JAX must not have begun when this module is imported.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from memorizing_jax import sharding
from memorizing_jax.adapter import JaxBucketed, JaxImplementation
from memorizing_jax.adapter_model import MemoryState, ModelState
from memorizing_jax.sharding import MeshConfig

_DEVICES: Final = 8
jax.config.update("jax_num_cpu_devices", _DEVICES)

State = MemoryState | ModelState
Implementation = TypeVar("Implementation", bound=type[JaxImplementation])

_MAKE_STATES: Final = ("init", "init_model", "replace_parameters", "restore")
_TAKE_STATES: Final = (
    "reset",
    "insert",
    "search",
    "attend_memory",
    "memory_layer_gradients",
    "forward",
    "model_gradients",
    "decode",
)


def _on_meshes(implementation: Implementation) -> Implementation:
    """Makes a class place its states on meshes, and work on them there."""

    def placing(method: Callable[..., State]) -> Callable[..., State]:
        @functools.wraps(method)
        def make(*args: Any, **settings: Any) -> State:
            state = method(*args, **settings)
            return _placed(state, _mesh_of(state))

        return make

    def on_mesh(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def work(self: Any, state: State, *args: Any, **settings: Any) -> Any:
            with jax.set_mesh(_mesh_of(state)):
                return method(self, state, *args, **settings)

        return work

    for names, wrap in ((_MAKE_STATES, placing), (_TAKE_STATES, on_mesh)):
        for name in names:
            setattr(implementation, name, wrap(getattr(implementation, name)))
    return implementation


@_on_meshes
class JaxSharded(JaxImplementation):
    """The port on a mesh, with exact search."""

    name = "jax on a mesh"
    # The table has no rules for what pre-trained models carry beside memories.
    features = JaxImplementation.features - {"pretrained"}

    def evaluate(
        self,
        config: Mapping[str, Any],
        parameters: Mapping[str, np.ndarray],
        documents: Sequence[np.ndarray],
        batch: int,
    ) -> tuple[float, int]:
        """Returns the perplexity and the number of predicted tokens."""
        sizes = self._config(config)
        memory_size = sizes.memory_size if sizes.remembers else 0
        # Rows are as few as the documents, so they stay together.
        with jax.set_mesh(_mesh(1, memory_size, sizes.num_heads)):
            return super().evaluate(config, parameters, documents, batch)


@_on_meshes
class JaxShardedBucketed(JaxBucketed):
    """The port on a mesh, with bucketed search."""

    name = "jax on a mesh, bucketed search"
    features = JaxBucketed.features - {"pretrained"}

    def bucketing(self, memory_size: int, top_k: int) -> tuple[int, int]:
        """Returns the buckets of all shards together, and winners per bucket."""
        num_buckets, winners = super().bucketing(memory_size, top_k)
        shards = _mesh(1, memory_size, 1).shape[sharding.MEMORY]
        return -(-num_buckets // shards) * shards, winners


def _mesh_of(state: State) -> Mesh:
    if isinstance(state, MemoryState):
        batch, num_heads, memory_size, _ = state.memory.keys.shape
        return _mesh(batch, memory_size, num_heads)
    batch = jax.tree.leaves(state.state)[0].shape[0]
    config = state.config
    memory_size = config.memory_size if config.remembers else 0
    return _mesh(batch, memory_size, math.gcd(config.num_heads, config.mlp_dim))


@functools.cache
def _mesh(batch: int, memory_size: int, num_heads: int) -> Mesh:
    """Returns a mesh that divides these sizes, the memory in at most five."""
    memory = _largest_divisor(memory_size or 1, 5)
    data = _largest_divisor(batch, _DEVICES // memory)
    model = _largest_divisor(num_heads, _DEVICES // memory // data)
    used = jax.devices()[: data * memory * model]
    return sharding.make_mesh(MeshConfig(data, memory, model), used)


def _largest_divisor(size: int, most: int) -> int:
    return max(n for n in range(1, most + 1) if size % n == 0)


def _placed(state: State, mesh: Mesh) -> State:
    if isinstance(state, MemoryState):
        tree = {"model": {"memories": (state.memory,)}}
        memory = jax.device_put(tree, sharding.shardings(tree, mesh))
        return MemoryState(memory["model"]["memories"][0], state.top_k)
    parts = {"parameters": state.params, "model": state.state}
    parts = jax.device_put(parts, sharding.shardings(parts, mesh))
    return ModelState(parts["parameters"], parts["model"], state.config)
