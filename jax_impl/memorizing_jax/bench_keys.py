"""Keys and queries to measure searches on: random, clustered, of a trained model."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jaxtyping import Array, Float
from tqdm import tqdm

from memorizing_data.token_files import open_split
from memorizing_jax import memory, model, parameter_files
from memorizing_jax.errors import InputError
from memorizing_jax.parameters import Parameters

Vectors = npt.NDArray[np.float32]
# (number of keys, number of queries, heads, dimension, generator) -> keys, queries.
Draw = Callable[[int, int, int, int], tuple[Vectors, Vectors]]

MOST_QUERIES = 512


def random(
    num_keys: int, num_queries: int, num_heads: int, head_dim: int
) -> tuple[Vectors, Vectors]:
    """Returns keys and queries spread evenly over the sphere: the hardest kind.

    Returns:
      `[num_keys, num_heads, head_dim]` and `[num_queries, num_heads, head_dim]`.
    """
    rng = np.random.default_rng(0)
    return (
        _unit(rng.standard_normal((num_keys, num_heads, head_dim), np.float32)),
        _unit(rng.standard_normal((num_queries, num_heads, head_dim), np.float32)),
    )


def clustered(
    num_keys: int, num_queries: int, num_heads: int, head_dim: int
) -> tuple[Vectors, Vectors]:
    """Returns keys and queries around 1024 centers, in runs as a text's topics are."""
    rng = np.random.default_rng(0)
    centers = _unit(rng.standard_normal((1024, num_heads, head_dim), np.float32))

    def near(count: int) -> Vectors:
        runs = rng.integers(0, len(centers), count // 16 + 1)
        center = np.repeat(centers[runs], 16, axis=0)[:count]
        noise = rng.standard_normal(center.shape, np.float32)
        return _unit(center + 0.6 / np.sqrt(head_dim) * noise)

    return near(num_keys), near(num_queries)


def of_trained_model(
    parameters_file: Path, tokens: Path, most_keys: int, quiet: bool = False
) -> Draw:
    """Returns a source of the keys and queries of a model's first memory layer.

    The model reads the test documents one after another, as if they were one. The
    queries are the last 512, the keys the newest before them, as in a memory of that
    size. They have the dimension of the model, whatever is asked for, and at most as
    many heads.

    Raises:
      InputError: the documents are too short for `most_keys`.
    """
    trained = parameter_files.load(parameters_file)
    files = open_split(tokens, "test")
    length, rows = trained.model.segment_length, 8
    queried = -(-MOST_QUERIES // length)  # Segments.
    # Rows read consecutive stretches, so that their keys join to one sequence.
    steps = -(-(most_keys + queried * length) // (rows * length))
    if rows * steps * length > files.num_tokens:
        raise InputError(
            f"{tokens} has {files.num_tokens:,} test tokens, fewer than the "
            f"{rows * steps * length:,} that {most_keys:,} keys take"
        )
    stretch = np.asarray(files.mapped[: rows * steps * length], np.int32)
    stretch = stretch.reshape(rows, steps, length)
    # A memory of one segment holds the keys of the segment read last, in order.
    config = trained.model.replace(memory_size=length, top_k=1)
    layer = f"layers.{config.memory_layers[0]}"
    # With this kernel in the place of the keys', it holds the queries instead. What
    # enters a layer does not depend on the layer's own kernels.
    swapped = {f"{layer}.key_kernel": trained.parameters[f"{layer}.query_kernel"]}

    def stored(params: Parameters, state: model.State, step: int) -> model.State:
        """Returns the state after a segment; its memory holds that segment's keys."""
        return _forward(
            params,
            state,
            jnp.asarray(stretch[:, step]),
            jnp.full(rows, step == 0),
            jnp.full(rows, length, jnp.int32),
            config,
        )[1]

    def keys_in(state: model.State) -> Vectors:
        return np.asarray(state.memories[0].keys).swapaxes(1, 2)

    state, keys, queries = model.init_state(config, rows), [], []
    for step in tqdm(range(steps), desc="keys", disable=quiet):
        if step >= steps - queried:
            asked = stored(trained.parameters | swapped, state, step)
            queries.append(keys_in(asked)[-1])
        state = stored(trained.parameters, state, step)
        keys.append(keys_in(state))
    every_key = np.concatenate(keys, axis=1).reshape(-1, *keys[0].shape[2:])
    every_key, every_query = every_key[: -queried * length], np.concatenate(queries)

    def draw(
        num_keys: int, num_queries: int, num_heads: int, head_dim: int
    ) -> tuple[Vectors, Vectors]:
        del head_dim
        heads = slice(num_heads)
        return every_key[-num_keys:, heads], every_query[:num_queries, heads]

    return draw


def filled(
    stored: memory.Memory, keys: Float[Array, "batch num_keys num_heads head_dim"]
) -> memory.Memory:
    """Returns the memory after it took up the keys, segment by segment."""
    for first in range(0, keys.shape[1], 2048):
        segment = keys[:, first : first + 2048]
        count = jnp.full(keys.shape[0], segment.shape[1], jnp.int32)
        stored = _insert(stored, segment, segment, count)
    return stored


_insert = jax.jit(memory.insert, donate_argnums=0)


def _unit(x: Vectors) -> Vectors:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


_forward = jax.jit(model.forward, static_argnums=5)
