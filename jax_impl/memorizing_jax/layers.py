"""One layer of the model: local attention, what a memory retrieves, and the MLP."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memorizing_jax import attention, memory_shards, search, sharding
from memorizing_jax import cache as caches
from memorizing_jax import memory as memories
from memorizing_jax.cache import Cache
from memorizing_jax.config import ModelConfig
from memorizing_jax.memory import Memory
from memorizing_jax.parameters import Parameters
from memorizing_jax.sharding import DATA


class Retrieved(NamedTuple):
    """What one memory layer read, for people who look inside.

    Attributes:
      slots: neighbors, best first, -1 where there is none.
      weights: what each contributed to `V_m`.
      not_finite: what checked search refuses (KNN-3); None unless `config.checked`.
      queries: what was searched for.
      memory_output: `V_m`, before the gate.
      local_output: `V_c`, before the gate.
    """

    slots: Int[Array, "batch num_heads segment_length top_k"]
    weights: Float[Array, "batch num_heads segment_length top_k"]
    not_finite: search.NotFinite | None
    queries: Float[Array, "batch segment_length num_heads head_dim"]
    memory_output: Float[Array, "batch segment_length num_heads head_dim"]
    local_output: Float[Array, "batch segment_length num_heads head_dim"]


def layer_function(config: ModelConfig) -> Callable[..., Any]:
    """Returns `read_layer` without its last argument.

    With `rematerialize` the backward pass computes again what the layer computed, but
    for what it retrieved: no memory is searched or read twice.
    """
    function = functools.partial(read_layer, config=config)
    if not config.rematerialize:
        return function
    kept = jax.checkpoint_policies.save_only_these_names(memories.RETRIEVED)
    return jax.checkpoint(function, policy=kept)


def read_layer(
    layer: Parameters,
    x: Float[Array, "batch segment_length model_dim"],
    cache: Cache | None,
    memory: Memory | None,
    mask: Bool[Array, "batch segment_length local_length"],
    config: ModelConfig,
) -> tuple[jax.Array, jax.Array, jax.Array, Retrieved | None]:
    """Runs one layer (MOD-1).

    Returns:
      The residual stream after it, and what else `attention_layer` returns.
    """
    normed = rms_norm(x, layer["attention_norm_gain"])
    update, keys, values, found = attention_layer(
        layer, normed, cache, memory, mask, config
    )
    x = x + update
    return x + mlp(layer, rms_norm(x, layer["mlp_norm_gain"])), keys, values, found


def attention_layer(
    layer: Parameters,
    x: Float[Array, "batch segment_length model_dim"],
    cache: Cache | None,
    memory: Memory | None,
    mask: Bool[Array, "batch segment_length local_length"],
    config: ModelConfig,
) -> tuple[jax.Array, jax.Array, jax.Array, Retrieved | None]:
    """Attends locally and, in a memory layer, to what the memory retrieves.

    One set of queries, keys and values serves both (QKN-1).

    Returns:
      The update of the residual stream; the segment's keys and values as cache
      and memory will keep them (MEM-7); what was retrieved, if anything could be.
    """
    queries, keys, values = project(layer, x)
    output = attention.local_attention(
        queries,
        *caches.local_context(cache, keys, values),
        mask,
        relative_bias=layer["relative_bias"],
        attention_scale=layer["attention_scale"],
    )
    found = None
    if "gate_bias" in layer:
        from_memory = jnp.zeros_like(output)
        if memory is not None:
            found = retrieve(layer, queries, output, memory, config)
            from_memory = found.memory_output
        output = attention.combine(from_memory, output, layer["gate_bias"])
    return output_projection(layer, output), keys, values, found


def retrieve(
    layer: Parameters,
    queries: Float[Array, "batch segment_length num_heads head_dim"],
    local_output: Float[Array, "batch segment_length num_heads head_dim"],
    memory: Memory,
    config: ModelConfig,
) -> Retrieved:
    """Searches the memory and attends to what was found (KNN, GATE-1)."""
    with jax.named_scope("search"):
        found = memory_shards.find(
            queries,
            memory,
            top_k=config.top_k,
            engine=config.search,
            recall_target=config.recall_target,
        )
        found = memories.keep(found)
    with jax.named_scope("memory_attention"):
        output, weights = memory_shards.attend(
            queries, memory, found, layer["attention_scale"]
        )
    bad = memory_shards.first_not_finite(queries, memory) if config.checked else None
    return Retrieved(found.slots, weights, bad, queries, output, local_output)


def project(
    layer: Parameters, x: Float[Array, "batch segment_length model_dim"]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns normalized queries and keys, and values (QKN-2)."""
    # b: batch, q: position, e: model_dim, h: head, d: head_dim
    queries, keys, values = (
        jnp.einsum("bqe,ehd->bqhd", x, sharding.gathered(layer, name, x.dtype))
        for name in ("query_kernel", "key_kernel", "value_kernel")
    )
    return attention.normalize(queries), attention.normalize(keys), values


def output_projection(
    layer: Parameters, output: Float[Array, "batch segment_length num_heads head_dim"]
) -> Float[Array, "batch segment_length model_dim"]:
    """Returns the update of the residual stream."""
    kernel = sharding.gathered(layer, "output_kernel", output.dtype)
    update = jnp.einsum("bqhd,hde->bqe", output, kernel)
    return sharding.constrain(update, DATA, None, None)


def mlp(
    layer: Parameters, x: Float[Array, "batch segment_length model_dim"]
) -> Float[Array, "batch segment_length model_dim"]:
    """Returns the update of the residual stream (MOD-1)."""
    hidden = jnp.matmul(x, sharding.gathered(layer, "mlp_in_kernel", x.dtype))
    kernel = sharding.gathered(layer, "mlp_out_kernel", x.dtype)
    update = jnp.matmul(jax.nn.relu(hidden), kernel)
    return sharding.constrain(update, DATA, None, None)


def rms_norm(
    x: Float[Array, "*shape model_dim"],
    gain: Float[Array, " model_dim"],
    epsilon: float = 1e-6,
) -> Float[Array, "*shape model_dim"]:
    """Scales vectors to mean square one, then by the learned gain (MOD-2)."""
    wide = x.astype(jnp.float32)
    mean_square = jnp.mean(wide * wide, axis=-1, keepdims=True)
    gain = gain.reshape((1,) * (x.ndim - 1) + gain.shape)
    return (wide * jax.lax.rsqrt(mean_square + epsilon) * gain).astype(x.dtype)
