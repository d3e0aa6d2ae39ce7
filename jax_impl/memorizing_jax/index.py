"""What some engines keep beside the memory, so as not to look at all of it.

An index is part of the memory and of the state: reset, grown and saved with it.
"""

from typing import Protocol

from jaxtyping import Array, Bool, Float, Int

from memorizing_jax import clustered_index, scann_index
from memorizing_jax.config import SearchEngine


class Index(Protocol):
    """A pytree of arrays that `memory.reset` and `memory.insert` keep up to date."""

    def reset(self, start_of_document: Bool[Array, " batch"]) -> "Index":
        """Returns the index after some rows were emptied."""
        ...

    def insert(
        self,
        num_written: Int[Array, " batch"],
        keys: Float[Array, "batch segment_length num_heads head_dim"],
        num_tokens: Int[Array, " batch"],
    ) -> "Index":
        """Returns the index after the memory took up a segment.

        Args:
          num_written: of the memory, before the segment.
          keys: rounded as they are stored; without a gradient.
          num_tokens: how many of each row were stored.
        """
        ...


def empty(
    engine: SearchEngine,
    batch: int,
    memory_size: int,
    num_heads: int,
    head_dim: int,
) -> Index | tuple[()]:
    """Returns the index of an empty memory; nothing for engines that keep none.

    Raises:
      InputError: the engine needs a package that is not installed.
    """
    if engine == "clustered":
        return clustered_index.empty(batch, memory_size, num_heads, head_dim)
    if engine == "scann":
        return scann_index.empty(memory_size)
    return ()
