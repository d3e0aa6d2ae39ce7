"""Draws for searches, exact scores, and the definition of the best."""

import numpy as np
from helpers import grid

HEADS, DIM, QUERIES = 2, 7, 9
# Rows of a memory that is empty, holds a little, is full, and has wrapped.
NUM_WRITTEN = (0, 6, 37, 1000)


def draw(memory_size, seed, above=None):
    """Draws queries and keys, on the grid or from -1, 0 and 1, where most scores tie.

    With a number for `above`, components of at most this size become 0, others 1.
    """
    rng = np.random.default_rng(seed)
    keys = grid(rng, len(NUM_WRITTEN), HEADS, memory_size, DIM)
    queries = grid(rng, len(NUM_WRITTEN), QUERIES, HEADS, DIM)
    if above is not None:
        keys, queries = (np.sign(x) * (np.abs(x) > above) for x in (keys, queries))
    return queries, keys


def scores_of(queries, keys, num_written):
    """Returns exact scores [batch, num_heads, query, slot]; -inf if not valid."""
    score = np.einsum("bqhd,bhsd->bhqs", queries, keys)
    num_valid = np.minimum(num_written, keys.shape[2])
    valid = np.arange(keys.shape[2])[None, :] < num_valid[:, None]
    return np.where(valid[:, None, None, :], score, -np.inf)


def by_sorting(score, top_k, slots=None):
    """KNN-1 and KNN-2 in the words of Python: the definition."""
    candidates = range(len(score)) if slots is None else slots
    order = sorted(candidates, key=lambda slot: (-score[slot], slot))
    order = [slot for slot in order if score[slot] > -np.inf][:top_k]
    return order + [-1] * (top_k - len(order))


def assert_found(found, score, definition):
    """Compares slots and scores with the definition, query by query."""
    slots, found_score = np.asarray(found[0]), np.asarray(found[1])
    for at in np.ndindex(score.shape[:3]):
        expected = definition(score[at])
        assert slots[at].tolist() == expected, f"row, head, query {at}"
        true = [score[at][slot] if slot >= 0 else -np.inf for slot in expected]
        assert found_score[at].tolist() == true, f"row, head, query {at}"
