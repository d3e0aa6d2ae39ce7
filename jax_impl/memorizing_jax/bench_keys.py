"""Keys and queries to measure searches on: random, clustered, of a trained model."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from memorizing_data.token_files import open_split
from memorizing_jax import model, parameter_files
from memorizing_jax.errors import InputError

Vectors = npt.NDArray[np.float32]
# (number of keys, number of queries, heads, dimension, generator) -> keys, queries.
Draw = Callable[[int, int, int, int], tuple[Vectors, Vectors]]


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


def of_trained_model(parameters_file: Path, tokens: Path, quiet: bool = False) -> Draw:
    """Returns a source of the keys and queries of a model's first memory layer.

    The model reads the test documents one after another, as if they were one; the
    queries are those that come right after the keys. Its own heads and dimension
    are used, whatever is asked for.

    Raises:
      InputError: the documents are too short for what is asked.
    """
    trained = parameter_files.load(parameters_file)
    files = open_split(tokens, "test")
    length, rows = trained.model.segment_length, 8
    # A memory of one segment holds the keys of the segment read last, in order.
    config = trained.model.replace(memory_size=length, top_k=1)
    layer = f"layers.{config.memory_layers[0]}"
    # With this kernel in the place of the keys', it holds the queries instead. What
    # enters a layer does not depend on the layer's own kernels.
    swapped = {f"{layer}.key_kernel": trained.parameters[f"{layer}.query_kernel"]}
    both = (trained.parameters, trained.parameters | swapped)

    def draw(
        num_keys: int, num_queries: int, num_heads: int, head_dim: int
    ) -> tuple[Vectors, Vectors]:
        del num_heads, head_dim
        # Rows read consecutive stretches, so that their keys join to one sequence.
        steps = -(-(num_keys + num_queries) // (rows * length))
        if rows * steps * length > files.num_tokens:
            raise InputError(
                f"{tokens} has {files.num_tokens} test tokens, fewer than the "
                f"{rows * steps * length} that {num_keys} keys take"
            )
        stretch = np.asarray(files.mapped[: rows * steps * length], np.int32)
        stretch = stretch.reshape(rows, steps, length)
        state = model.init_state(config, rows)
        found: tuple[list[Vectors], list[Vectors]] = ([], [])
        for step in tqdm(range(steps), desc="keys", disable=quiet):
            before = state
            for params, parts in zip(both, found, strict=True):
                _, state, _ = _forward(
                    params,
                    before,
                    jnp.asarray(stretch[:, step]),
                    jnp.full(rows, step == 0),
                    jnp.full(rows, length, jnp.int32),
                    config,
                )
                parts.append(np.asarray(state.memories[0].keys).swapaxes(1, 2))
        keys, queries = (
            np.concatenate(parts, axis=1).reshape(-1, *parts[0].shape[2:])
            for parts in found
        )
        return keys[:num_keys], queries[num_keys : num_keys + num_queries]

    return draw


def _unit(x: Vectors) -> Vectors:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


_forward = jax.jit(model.forward, static_argnums=5)
