"""A step in parts: some of its rows after the others, where all would not fit.

Rows are independent, so their loss and their gradient are sums over parts. Memories are
read part by part and written once, when all parts have read them: what they hold does
not depend on the number of parts.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

Tree = TypeVar("Tree")


def accumulate(
    function: Callable[..., tuple[Tree, Any]], parts: int, *arguments: Any
) -> tuple[Tree, Any]:
    """Calls a function on some rows of its arguments at a time.

    Args:
      function: of some rows; returns what is to be added up over the parts, and what
        is not.
      parts: how many; they divide the number of rows.
      arguments: pytrees of arrays of all rows, of which `rows` takes some.

    Returns:
      The sum of the former; of the latter a list, along a new axis in front.
    """

    def add(total: Tree, part: jax.Array) -> tuple[Tree, Any]:
        more, rest = function(*rows(arguments, part, parts))
        return jax.tree.map(jnp.add, total, more), rest

    shapes, _ = jax.eval_shape(function, *rows(arguments, jnp.int32(0), parts))
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(add, zero, jnp.arange(parts, dtype=jnp.int32))


def rows(tree: Tree, part: jax.Array, parts: int) -> Tree:
    """Returns every `parts`-th row of all arrays, from row number `part`.

    Not a block of rows: those of a part live on all devices of a mesh alike.
    """

    def of_array(x: jax.Array) -> jax.Array:
        axis = _rows_axis(x.ndim)
        before, after = x.shape[:axis], x.shape[axis + 1 :]
        split = x.reshape(*before, x.shape[axis] // parts, parts, *after)
        return jax.lax.dynamic_index_in_dim(split, part, axis + 1, keepdims=False)

    return jax.tree.map(of_array, tree)


def joined(tree: Tree) -> Tree:
    """Returns all rows in their order, of arrays with the parts along a first axis."""

    def of_array(x: jax.Array) -> jax.Array:
        axis = _rows_axis(x.ndim - 1)
        split = jnp.moveaxis(x, 0, axis + 1)
        return split.reshape(*split.shape[:axis], -1, *split.shape[axis + 2 :])

    return jax.tree.map(of_array, tree)


def _rows_axis(ndim: int) -> int:
    """Returns the axis of the rows: the first, but for caches of stacked layers."""
    return max(ndim - 4, 0)
