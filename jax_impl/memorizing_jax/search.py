"""Nearest-neighbor search over the memory: one interface, several engines.

All engines see the same memory and answer in the same form. None of them is
differentiated: gradient reaches a query through the attention over what it
retrieved, not through which slots those were (MEM-8).
"""

from typing import NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memorizing_jax import (
    bucketed_search,
    clustered_search,
    exact_search,
    scann_search,
)
from memorizing_jax.clustered_index import ClusteredIndex
from memorizing_jax.config import SearchEngine
from memorizing_jax.errors import InputError
from memorizing_jax.memory import Memory
from memorizing_jax.scann_index import ScannIndex


class Found(NamedTuple):
    """What a search returns, best first.

    Attributes:
      slots: -1 where there is no neighbor: only at the tail (KNN-2, ANN-1).
      scores: inner product of query and key; minus infinity where slots is -1.
    """

    slots: Int[Array, "batch num_heads segment_length top_k"]
    scores: Float[Array, "batch num_heads segment_length top_k"]


def find(
    queries: Float[Array, "batch segment_length num_heads head_dim"],
    memory: Memory,
    *,
    top_k: int,
    engine: SearchEngine = "bucketed",
    recall_target: float = 0.98,
    shards: int = 1,
) -> Found:
    """Returns each query's neighbors among the valid slots of its row and head.

    Args:
      queries: normalized, not scaled (QKN-3).
      memory: reset, and not yet holding the segment (MEM-4).
      top_k: neighbors wanted, which may exceed what the memory holds.
      engine: "exact" finds the best (KNN-1); "bucketed" those that win in their
        bucket (BKT-1); "approx_max_k" is XLA's own; "clustered" looks into the most
        promising lists, and "scann" asks the host: both need a memory that was made
        for them.
      recall_target: share of the true neighbors that all but "exact" aim at.
      shards: of how many such memories this one is a part, every `shards`-th slot of
        a larger one. Its buckets are then its share of those of the whole.

    Raises:
      InputError: there is no such engine, or the memory was made for another.
    """
    queries, keys, index = jax.lax.stop_gradient((queries, memory.keys, memory.index))
    queries = queries.swapaxes(1, 2)  # Head by head, as the memory is laid out.
    args = (queries, keys, memory.num_valid)
    if engine == "exact":
        scores, slots = exact_search.top_k(*args, top_k=top_k)
    elif engine == "approx_max_k":
        scores, slots = exact_search.approx_max_k(
            *args, top_k=top_k, recall_target=recall_target
        )
    elif engine == "bucketed":
        num_buckets, winners = bucketed_search.choose_buckets(
            recall_target, memory.memory_size * shards, top_k
        )
        scores, slots = bucketed_search.top_k(
            *args,
            top_k=top_k,
            # Rounded up, where shards do not divide them: that can only find more.
            num_buckets=-(-num_buckets // shards),
            winners_per_bucket=winners,
        )
    elif engine == "clustered" and isinstance(index, ClusteredIndex):
        scores, slots = clustered_search.top_k(
            *args, index, top_k=top_k, recall_target=recall_target
        )
    elif engine == "scann" and isinstance(index, ScannIndex):
        scores, slots = scann_search.top_k(
            queries,
            keys,
            memory.num_written,
            index,
            top_k=top_k,
            recall_target=recall_target,
        )
    elif engine in get_args(SearchEngine):
        raise InputError(
            f"search is {engine!r}, but the memory has no index for it; make it with "
            f"memory.empty(..., engine={engine!r})"
        )
    else:
        raise InputError(
            f"search is {engine!r}, must be one of {', '.join(get_args(SearchEngine))}"
        )
    slots = jnp.where(jnp.isneginf(scores), -1, slots)
    tail = [(0, 0)] * 3 + [(0, top_k - slots.shape[-1])]
    return Found(
        jnp.pad(slots, tail, constant_values=-1),
        jnp.pad(scores, tail, constant_values=-jnp.inf),
    )


class FirstBad(NamedTuple):
    """The first element of an array that is not finite.

    Attributes:
      place: row, position or slot, head, dimension; -1 throughout if there is none.
      value: the element.
    """

    place: Int[Array, " 4"]
    value: Float[Array, ""]


class NotFinite(NamedTuple):
    """What a search cannot work with (KNN-3)."""

    queries: FirstBad
    keys: FirstBad


def first_not_finite(
    queries: Float[Array, "batch segment_length num_heads head_dim"], memory: Memory
) -> NotFinite:
    """Looks for an infinity or a NaN in queries and valid keys (KNN-3).

    What a reset hid is not looked at. Scores need no look in a model: those of
    normalized vectors cannot overflow. To be jitted; `raise_if_not_finite` takes the
    answer.
    """
    slot = jnp.arange(memory.memory_size, dtype=jnp.int32)
    valid = slot[None, :] < memory.num_valid[:, None]
    everywhere = jnp.ones(queries.shape[:2], bool)
    keys = memory.keys.swapaxes(1, 2)
    return NotFinite(_first_bad(queries, everywhere), _first_bad(keys, valid))


def _first_bad(
    array: Float[Array, "rows places heads dims"], valid: Bool[Array, "rows places"]
) -> FirstBad:
    # Step by step: a flat index into a large memory would not fit an int32.
    bad = (~jnp.isfinite(array)).any(axis=(2, 3)) & valid
    row = bad.any(axis=1).argmax()
    place = bad[row].argmax()
    pair = array[row, place]
    bad_pair = ~jnp.isfinite(pair)
    head = bad_pair.any(axis=1).argmax()
    dim = bad_pair[head].argmax()
    found = jnp.where(bad.any(), jnp.stack([row, place, head, dim]), -1)
    return FirstBad(found, pair[head, dim])


def raise_if_not_finite(found: NotFinite | None, layer: int | None = None) -> None:
    """Refuses what `first_not_finite` found; waits for the device.

    Args:
      found: None where nobody looked.
      layer: the memory layer, for the message.

    Raises:
      InputError: names the array, the layer and the index of the first bad element.
    """
    if found is None:
        return
    where = "" if layer is None else f" of memory layer {layer}"
    for name, bad in jax.device_get(found)._asdict().items():
        if bad.place[0] >= 0:
            second = "slot" if name == "keys" else "position"
            raise InputError(
                f"{name}[{tuple(bad.place.tolist())}]{where} is {bad.value}, must be "
                f"finite; the index is row, {second}, head, dimension"
            )
