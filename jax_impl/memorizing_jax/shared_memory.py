"""Memories that nobody writes, shared by all rows and beside each row's own.

The pairs of a memory file lie among the parameters, as `layers.{i}.shared_keys` and
`layers.{i}.shared_values`, `[num_key_value_heads, num_pairs, head_dim]`: they too are
read-only, and the same for every row. Each query retrieves the best `top_k` of these
pairs and its row's own together. Ties go to the lower slot (KNN-1), and shared pairs
count as older: they are slots 0 to `num_pairs - 1`, and the row's own follow.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from memorizing_jax import bucketed_search, llama_attention, search
from memorizing_jax.llama_attention import Part
from memorizing_jax.llama_config import LlamaConfig
from memorizing_jax.memory import Memory
from memorizing_jax.parameters import Parameters
from memorizing_jax.search import Found


def of_layer(layer: Parameters) -> Memory | None:
    """Returns the memory among a layer's parameters, of a single row, if any."""
    if "shared_keys" not in layer:
        return None
    keys, values = (layer[f"shared_{name}"][None] for name in ("keys", "values"))
    return Memory(keys, values, jnp.full(1, keys.shape[2], jnp.int32))


def find(
    queries: Float[Array, "batch folded num_key_value_heads head_dim"],
    shared: Memory,
    own: Found | None,
    config: LlamaConfig,
) -> Found:
    """Returns each query's neighbors among the shared pairs and its row's own.

    Args:
      queries: rotated as for the memory.
      shared: of a single row.
      own: what the search of the rows' own memories found, if they have any.
      config: the model's sizes. An engine that keeps an index has none of shared
        pairs; they are searched by "bucketed" then.
    """
    batch = queries.shape[0]
    indexed = config.search in ("clustered", "scann")
    found = search.find(
        _side_by_side(queries),
        shared,
        top_k=config.top_k,
        engine="bucketed" if indexed else config.search,
        recall_target=config.recall_target,
    )
    found = Found(*(_by_row(x, batch) for x in found))
    if own is None:
        return found
    behind = jnp.where(own.slots >= 0, own.slots + shared.memory_size, -1)
    scores, slots = bucketed_search.best_survivors(
        jnp.concatenate([found.scores, own.scores], axis=-1),
        jnp.concatenate([found.slots, behind], axis=-1),
        config.top_k,
    )
    return Found(jnp.where(jnp.isneginf(scores), -1, slots), scores)


def part(
    queries: Float[Array, "batch folded num_key_value_heads head_dim"],
    shared: Memory,
    memory: Memory | None,
    found: Found,
) -> Part:
    """Returns what `llama_attention.memory_part` does, for what `find` found."""
    batch, size = queries.shape[0], shared.memory_size
    is_shared = found.slots < size
    slots = jnp.where(is_shared, found.slots, -1)
    known = llama_attention.memory_part(
        _side_by_side(queries), shared, Found(*map(_all_rows, (slots, found.scores)))
    )
    logits = _by_row(known.logits, batch)

    def read_shared(weights: jax.Array) -> jax.Array:
        return known.read(_all_rows(weights)).reshape(queries.shape)

    if memory is None:
        return Part(logits, found.slots >= 0, read_shared)
    slots = jnp.where(is_shared, -1, found.slots - size)
    own = llama_attention.memory_part(queries, memory, Found(slots, found.scores))
    return Part(
        jnp.where(is_shared, logits, own.logits),
        found.slots >= 0,
        # What a part did not find counts as a value of zero there.
        lambda weights: read_shared(weights) + own.read(weights),
    )


def _side_by_side(queries: jax.Array) -> jax.Array:
    """Lays all rows' queries out as positions of one row: no row needs a copy."""
    return queries.reshape(1, -1, *queries.shape[2:])


def _by_row(
    x: Float[Array, "1 heads batch_folded last"]
    | Int[Array, "1 heads batch_folded last"],
    batch: int,
) -> jax.Array:
    _, heads, _, last = x.shape
    return x.reshape(heads, batch, -1, last).swapaxes(0, 1)


def _all_rows(x: jax.Array) -> jax.Array:
    """Undoes `_by_row`."""
    batch, heads, folded, last = x.shape
    return x.swapaxes(0, 1).reshape(1, heads, batch * folded, last)
