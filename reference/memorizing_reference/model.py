"""The model: one segment of every row in, logits and the next state out.

A document is read by calling `forward` once per segment and handing each call
the state that the one before it returned.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int

from memorizing_reference import attention, bucketed_search, search
from memorizing_reference import cache as caches
from memorizing_reference import memory as memories
from memorizing_reference.cache import Cache
from memorizing_reference.config import ModelConfig
from memorizing_reference.memory import Memory
from memorizing_reference.parameters import Parameters


@dataclasses.dataclass(frozen=True)
class State:
    """What the model carries from segment to segment.

    Attributes:
      caches: one per layer.
      memories: one per memory layer, by layer index.
    """

    caches: tuple[Cache, ...]
    memories: dict[int, Memory]


def init_state(
    config: ModelConfig, batch: int, dtype: type[np.floating] = np.float32
) -> State:
    """Returns the state before the first segment: empty caches and memories."""
    heads, dim = config.num_heads, config.head_dim
    cache = caches.empty(batch, config.cache_length, heads, dim, dtype)
    memory = memories.empty(
        batch,
        config.memory_size,
        heads,
        dim,
        dtype=config.memory_dtype,
        computed_in=dtype,
    )
    return State(
        caches=(cache,) * config.num_layers,
        memories=dict.fromkeys(config.memory_layers, memory),
    )


def forward(
    parameters: Parameters,
    state: State,
    tokens: Int[np.ndarray, "batch segment_length"],
    start_of_document: Bool[np.ndarray, " batch"],
    num_tokens: Int[np.ndarray, " batch"],
    config: ModelConfig,
) -> tuple[Float[np.ndarray, "batch segment_length vocab_size"], State]:
    """Reads one segment of every row (MOD-1, ORD-1).

    The result has the dtype of the parameters, float32 or float64.

    Args:
      parameters: named as in `parameters.shapes`.
      state: what the call for the segment before returned.
      tokens: the segment; what stands behind `num_tokens` is padding (SEG-1).
      start_of_document: rows whose segment opens a document (SEG-2).
      num_tokens: real tokens of each row.
      config: the model's sizes.

    Returns:
      Logits for the token that follows each position, and the next state.
      Logits at padded positions mean nothing.

    Raises:
      ValueError: if a token id is not in the vocabulary, `num_tokens` exceeds the
        segment, or the state has another number of rows or another dtype.
    """
    require_same_kind(state, tokens, parameters)
    memories.require_num_tokens(num_tokens, tokens.shape[1])
    tokens = without_padding(tokens, num_tokens, config.vocab_size)

    new_caches, new_memories = [], {}
    x = parameters["embedding"][tokens]
    for i in range(config.num_layers):
        layer = layer_parameters(parameters, i)
        cache = caches.reset(state.caches[i], start_of_document)
        memory = None
        if i in state.memories:
            memory = memories.reset(state.memories[i], start_of_document)

        normed = rms_norm(x, layer["attention_norm_gain"])
        update, keys, values = attention_layer(layer, normed, cache, memory, config)
        x = x + update
        normed = rms_norm(x, layer["mlp_norm_gain"])
        x = x + np.maximum(normed @ layer["mlp_in_kernel"], 0) @ layer["mlp_out_kernel"]

        # The same pairs enter both, and may be met in both (MEM-9).
        new_caches.append(caches.append(cache, keys, values, num_tokens))
        if memory is not None:
            new_memories[i] = memories.insert(memory, keys, values, num_tokens)

    x = rms_norm(x, parameters["final_norm_gain"])
    scale = x.dtype.type(1.0 / np.sqrt(config.model_dim))
    logits = x @ parameters["embedding"].T * scale
    return logits, State(tuple(new_caches), new_memories)


def attention_layer(
    layer: Parameters,
    x: Float[np.ndarray, "batch segment_length model_dim"],
    cache: Cache,
    memory: Memory | None,
    config: ModelConfig,
) -> tuple[
    Float[np.ndarray, "batch segment_length model_dim"],
    Float[np.ndarray, "batch segment_length num_heads head_dim"],
    Float[np.ndarray, "batch segment_length num_heads head_dim"],
]:
    """Attends locally and, in a memory layer, to what the memory retrieves.

    One set of queries, keys and values serves both (QKN-1).

    Returns:
      The update of the residual stream, and the segment's keys and values as
      cache and memory will keep them (MEM-7).
    """
    # b: batch, q: position, e: model_dim, h: head, d: head_dim
    project = "bqe,ehd->bqhd"
    queries = np.einsum(project, x, layer["query_kernel"], optimize=True)
    keys = np.einsum(project, x, layer["key_kernel"], optimize=True)
    values = np.einsum(project, x, layer["value_kernel"], optimize=True)
    queries, keys = attention.normalize(queries), attention.normalize(keys)

    output = attention.local_attention(
        queries,
        np.concatenate([cache.keys, keys], axis=1),
        np.concatenate([cache.values, values], axis=1),
        cache.num_cached,
        local_window=config.local_window,
        relative_bias=layer["relative_bias"],
        attention_scale=layer["attention_scale"],
    )
    if memory is not None:
        slots = find_slots(queries, memory, config)
        retrieved = attention.memory_attention(
            queries, memory, slots, layer["attention_scale"]
        )
        output = attention.combine(retrieved, output, layer["gate_bias"])
    update = np.einsum("bqhd,hde->bqe", output, layer["output_kernel"], optimize=True)
    return update, keys, values


def rms_norm(
    x: Float[np.ndarray, "*shape model_dim"],
    gain: Float[np.ndarray, " model_dim"],
    epsilon: float = 1e-6,
) -> Float[np.ndarray, "*shape model_dim"]:
    """Scales each vector to mean square one, then by the learned gain (MOD-2)."""
    mean_square = np.mean(x * x, axis=-1, keepdims=True)
    return x / np.sqrt(mean_square + x.dtype.type(epsilon)) * gain


def find_slots(
    queries: Float[np.ndarray, "batch segment_length num_heads head_dim"],
    memory: Memory,
    config: ModelConfig,
) -> Int[np.ndarray, "batch segment_length num_heads top_k"]:
    """Returns the neighbors of each query, by the search that is configured."""
    if config.num_buckets is None:
        return search.top_k_slots(queries, memory, config.top_k)
    return bucketed_search.top_k_slots(
        queries,
        memory,
        config.top_k,
        num_buckets=config.num_buckets,
        winners_per_bucket=config.winners_per_bucket,
    )


def require_same_kind(
    state: State, tokens: Int[np.ndarray, "batch length"], parameters: Parameters
) -> None:
    """Refuses a state of other rows or another dtype than tokens and parameters.

    Raises:
      ValueError: says which, and how to make one that fits.
    """
    keys, dtype = state.caches[0].keys, parameters["embedding"].dtype
    if len(keys) != len(tokens):
        raise ValueError(f"tokens has {len(tokens)} rows, the state has {len(keys)}")
    if keys.dtype != dtype:
        raise ValueError(
            f"the state is {keys.dtype} and the parameters are {dtype}; "
            f"call init_state with dtype=np.{dtype}"
        )


def without_padding(
    tokens: Int[np.ndarray, "batch length"],
    num_tokens: Int[np.ndarray, " batch"],
    vocab_size: int,
) -> Int[np.ndarray, "batch length"]:
    """Returns the tokens with 0 for padding, which may hold anything (SEG-4).

    Raises:
      ValueError: if a real token is not in the vocabulary.
    """
    real = np.arange(tokens.shape[1])[None, :] < num_tokens[:, None]
    tokens = np.where(real, tokens, 0)
    unknown = tokens[(tokens < 0) | (tokens >= vocab_size)]
    if unknown.size:
        raise ValueError(f"token {unknown[0]} is not in 0 to {vocab_size - 1}")
    return tokens


def layer_parameters(parameters: Parameters, i: int) -> Parameters:
    """Returns the parameters of one layer, by the last part of their names."""
    prefix = f"layers.{i}."
    return {
        name.removeprefix(prefix): array
        for name, array in parameters.items()
        if name.startswith(prefix)
    }
