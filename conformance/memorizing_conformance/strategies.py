"""Hypothesis strategies: small streams whose arithmetic is exact.

Hypothesis draws the structure (how many segments, which rows reset, how long each
is) and a seed; the seed fills the arrays. So examples are small to print, quick to
draw, and shrink to the shortest stream that shows a fault.

All numbers are multiples of 1/8 between -2 and 2. Inner products of such vectors
are exact in float32 (and in bfloat16 with float32 accumulation) up to head_dim
2**16, whatever the order of summation. Scores are then compared with `==`, and ties
are real ties.
"""

import dataclasses
from typing import Final

import numpy as np
from hypothesis import strategies as st


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sizes of one memory, as `Implementation.init` takes them."""

    batch: int
    memory_size: int
    num_heads: int
    head_dim: int
    top_k: int
    segment_length: int

    @property
    def memory(self) -> dict[str, int]:
        """The keyword arguments of `init`."""
        sizes = dataclasses.asdict(self)
        del sizes["segment_length"]
        return sizes

    @property
    def segment(self) -> tuple[int, int, int, int]:
        """The shape of a segment's queries, keys or values."""
        return self.batch, self.segment_length, self.num_heads, self.head_dim


# All different, so that no two axes can be mistaken for one another, and few, so
# that a compiled implementation compiles little. 7 does not divide 16, and 11
# exceeds 5.
WRAPPING: Final = Sizes(2, 16, 3, 5, 4, 7)
OVERFLOWING: Final = Sizes(2, 5, 3, 7, 4, 11)


@dataclasses.dataclass(frozen=True)
class Segment:
    """One step of every row."""

    start_of_document: np.ndarray
    num_tokens: np.ndarray
    queries: np.ndarray
    keys: np.ndarray
    values: np.ndarray


KINDS: Final = ("grid", "ties", "near_duplicates", "zero_sum")


@dataclasses.dataclass(frozen=True)
class Stream:
    """Segments, described by what made them.

    Attributes:
      sizes: of the memory and of a segment.
      kind: how keys are distributed; see `grid_array`.
      seed: fills the arrays.
      starts: for each segment, the rows that start a document.
      lengths: for each segment, num_tokens of each row.
    """

    sizes: Sizes
    kind: str
    seed: int
    starts: tuple[tuple[bool, ...], ...]
    lengths: tuple[tuple[int, ...], ...]

    def segments(self) -> list[Segment]:
        """Returns the segments, the same ones on every call."""
        rng = np.random.default_rng(self.seed)
        shape = self.sizes.segment
        return [
            Segment(
                np.array(start),
                np.array(length),
                grid_array(rng, shape, "grid"),
                grid_array(rng, shape, self.kind),
                grid_array(rng, shape, "grid"),
            )
            for start, length in zip(self.starts, self.lengths, strict=True)
        ]


def grid_array(
    rng: np.random.Generator, shape: tuple[int, ...], kind: str = "grid"
) -> np.ndarray:
    """Returns float32 multiples of 1/8 between -2 and 2.

    Kinds: "grid" draws evenly; "ties" draws -1, 0 or 1, so that many scores are
    equal and some keys are zero; "near_duplicates" draws one vector and changes it
    by 1/8 here and there; "zero_sum" draws vectors whose components sum to zero.
    """
    if kind == "ties":
        return rng.integers(-1, 2, shape).astype(np.float32)
    if kind == "near_duplicates":
        base = rng.integers(-15, 16, shape[-1])
        return ((base + rng.integers(-1, 2, shape)) / 8).astype(np.float32)
    eighths = rng.integers(-16, 17, shape)
    if kind == "zero_sum":
        half = shape[-1] // 2
        eighths[..., half : 2 * half] = -eighths[..., :half]
        eighths[..., 2 * half :] = 0
    return (eighths / 8).astype(np.float32)


def streams(
    sizes: Sizes,
    *,
    resets: bool = False,
    uneven: bool = False,
    max_segments: int = 5,
    kinds: tuple[str, ...] = KINDS,
) -> st.SearchStrategy[Stream]:
    """Draws streams; the plain ones neither reset rows nor pad them.

    A test draws what its rule is about and nothing else, so that a fault shows
    under its own rule.

    Args:
      sizes: of the memory and of a segment.
      resets: whether rows are reset, in any pattern.
      uneven: whether rows are padded, each for itself.
      max_segments: in a stream.
      kinds: of keys, see `grid_array`.
    """
    whole = st.just(sizes.segment_length)
    # Full segments wrap the memory soonest, so half of them are.
    length = whole | st.integers(0, sizes.segment_length) if uneven else whole
    start = st.booleans() if resets else st.just(False)
    starts = st.lists(start, min_size=sizes.batch, max_size=sizes.batch)
    lengths = st.lists(length, min_size=sizes.batch, max_size=sizes.batch)
    step = st.tuples(starts.map(tuple), lengths.map(tuple))
    return st.builds(
        lambda kind, seed, steps: Stream(
            sizes,
            kind,
            seed,
            tuple(start for start, _ in steps),
            tuple(length for _, length in steps),
        ),
        st.sampled_from(kinds),
        st.integers(0, 2**16 - 1),
        st.lists(step, min_size=1, max_size=max_segments),
    )
