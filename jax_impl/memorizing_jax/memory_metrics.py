"""What a memory is worth at a moment of training: recall, age, share of the output.

Taken every so many steps, just before one, by a function of its own that is compiled
once: the training step stays as it is, and so do the state and the losses. It costs
the forward pass up to the last memory layer, and an exact search for the sampled
queries.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from memorizing_jax import memory_shards, model, parameters, sharding
from memorizing_jax.config import ModelConfig
from memorizing_jax.layers import Retrieved
from memorizing_jax.memory import Memory
from memorizing_jax.parameters import Parameters
from memorizing_jax.train_config import TrainConfig
from memorizing_jax.train_step import Run, Segments

# Positions of a segment whose queries are looked at, in every row and head.
_SAMPLED = 32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MemoryMetrics:
    """What one memory layer read, over a sample of the segment's queries.

    Padding is left out everywhere. What has nothing to be taken over, such as every
    memory being empty, is NaN.

    Attributes:
      recall: []; share of the pairs that exact search finds which the engine found.
      full_queries: []; share of the queries that got `top_k` neighbors. Those of a
        row whose document has just begun count, and get none.
      age_median: []; tokens from a retrieved pair to the query, weighted by
        attention. A pair was computed age / segment_length steps ago.
      age_p95: []; the age that 95% of the weight stays below.
      memory_share: [num_heads]; norm of `gate * V_m`, in the sum of it and that of
        `(1 - gate) * V_c`, over the queries that retrieved anything.
    """

    recall: jax.Array
    full_queries: jax.Array
    age_median: jax.Array
    age_p95: jax.Array
    memory_share: jax.Array


def sample(
    step: int, run: Run, segments: Segments, config: TrainConfig
) -> dict[int, MemoryMetrics] | None:
    """Measures before every `sample_interval`-th step; returns None before others.

    Also where there is no memory, and where ScaNN searches it: its searchers live on
    the host and would learn the segment's pairs twice.
    """
    if not config.sample_interval or step % config.sample_interval:
        return None
    if not config.model.remembers or config.model.search == "scann":
        return None
    return measure(run.parameters, run.model, segments, config.model)


@functools.partial(jax.jit, static_argnames="config")
def measure(
    params: Parameters, state: model.State, segments: Segments, config: ModelConfig
) -> dict[int, MemoryMetrics]:
    """Looks at what a segment retrieves; changes and keeps nothing.

    Args:
      params: by the names of MOD-6.
      state: cache and memory before the segment; not donated.
      segments: what is about to be read.
      config: the model's sizes; static.

    Returns:
      What was measured, by memory layer.
    """
    _, _, retrieved = model.forward(
        params,
        state,
        segments.tokens,
        segments.start_of_document,
        segments.num_tokens,
        config,
    )
    result = {}
    for stored, layer in zip(state.memories, config.memory_layers, strict=True):
        memory = memory_shards.reset(stored, segments.start_of_document)
        gate = jax.nn.sigmoid(parameters.of_layer(params, layer)["gate_bias"])
        result[layer] = of_layer(
            retrieved[layer], memory, gate, segments.num_tokens, config
        )
    # Whole in every process, for the first to write down.
    return jax.tree.map(lambda x: sharding.constrain(x, *(None,) * x.ndim), result)


def of_layer(
    retrieved: Retrieved,
    memory: Memory,
    gate: Float[Array, " num_heads"],
    num_tokens: Int[Array, " batch"],
    config: ModelConfig,
) -> MemoryMetrics:
    """Returns what one memory layer read.

    Args:
      retrieved: by the whole segment.
      memory: what was searched: reset, and not yet holding the segment.
      gate: of each head.
      num_tokens: real tokens of each row.
      config: the model's sizes.
    """
    length = retrieved.queries.shape[1]
    count = min(_SAMPLED, length)
    position = np.arange(count) * length // count
    real = jnp.asarray(position)[None, :] < num_tokens[:, None]
    slots = retrieved.slots[:, :, position]
    weights = jnp.where(real[:, None, :, None], retrieved.weights[:, :, position], 0)
    queries = retrieved.queries[:, position]
    true = memory_shards.find(queries, memory, top_k=config.top_k, engine="exact").slots
    ages = age(slots, memory, jnp.asarray(position, jnp.int32))
    median, high = (_weighted_quantile(ages, weights, share) for share in (0.5, 0.95))
    real_in_head = jnp.broadcast_to(real[:, None, :], slots.shape[:-1])
    return MemoryMetrics(
        recall=recall(slots, true, real),
        full_queries=_mean(slots[..., -1] >= 0, real_in_head),
        age_median=median,
        age_p95=high,
        memory_share=_memory_share(
            gate,
            retrieved.memory_output[:, position],
            retrieved.local_output[:, position],
            (slots[..., 0] >= 0).swapaxes(1, 2) & real[:, :, None],
        ),
    )


def recall(
    found: Int[Array, "batch num_heads queries top_k"],
    true: Int[Array, "batch num_heads queries top_k"],
    real: Bool[Array, "batch queries"],
) -> Float[Array, ""]:
    """Returns the share of the true slots that were found (ANN-2)."""
    hits = (found[..., None, :] == true[..., :, None]).any(axis=-1)
    return _mean(hits, (true >= 0) & real[:, None, :, None])


def age(
    slots: Int[Array, "batch num_heads queries top_k"],
    memory: Memory,
    position: Int[Array, " queries"],
) -> Int[Array, "batch num_heads queries top_k"]:
    """Returns how many tokens before its query each retrieved pair stood.

    A slot holds the newest of the pairs whose number it is modulo `memory_size`
    (MEM-2). Means nothing where the slot is -1.
    """
    written = memory.num_written[:, None, None, None]
    laps = (written - 1 - slots) // memory.memory_size
    number = slots + laps * memory.memory_size
    return written + position[None, None, :, None] - number


def _memory_share(
    gate: Float[Array, " num_heads"],
    memory_output: Float[Array, "batch queries num_heads head_dim"],
    local_output: Float[Array, "batch queries num_heads head_dim"],
    counted: Bool[Array, "batch queries num_heads"],
) -> Float[Array, " num_heads"]:
    def norm(x: jax.Array) -> jax.Array:
        squares = jnp.square(x.astype(jnp.float32)).sum(axis=-1)
        return jnp.sqrt(jnp.where(counted, squares, 0).sum(axis=(0, 1)))

    from_memory, local = gate * norm(memory_output), (1 - gate) * norm(local_output)
    return from_memory / (from_memory + local)


def _mean(
    values: Bool[Array, "*shape"], counted: Bool[Array, "*shape"]
) -> Float[Array, ""]:
    return (values & counted).sum() / counted.sum()


def _weighted_quantile(
    values: Int[Array, "*shape"], weights: Float[Array, "*shape"], share: float
) -> Float[Array, ""]:
    """Returns the least value with `share` of all weight on it and on lesser ones."""
    values, weights = jax.lax.sort((values.ravel(), weights.ravel()), num_keys=1)
    below = jnp.cumsum(weights)
    total = below[-1]
    found = values[(below >= share * total).argmax()].astype(jnp.float32)
    return jnp.where(total > 0, found, jnp.nan)
