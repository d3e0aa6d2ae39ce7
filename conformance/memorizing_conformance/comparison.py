"""How results are compared: exactly where arithmetic is exact, else by tolerance."""

from typing import Any, Final

import numpy as np

# float32 keeps 24 bits, 6e-8 of a value. Attention sums a few dozen terms of size
# one, and softmax multiplies their error by the logits' size: 1e-5 is an order of
# magnitude above what that yields, and three below what a broken rule changes.
TOLERANCE: Final = 1e-5
# Gradients are held to finite differences, or differ by longer sums.
GRADIENT_TOLERANCE: Final = 1e-4


def assert_equal(found: Any, expected: Any, what: str) -> None:
    """Asserts the same shape and the same elements, bit for bit."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape, _shapes(what, found, expected)
    wrong = np.argwhere(found != expected)
    if len(wrong):  # Its size is 0 where a single number is compared.
        index = tuple(int(i) for i in wrong[0])
        raise AssertionError(
            f"{what}[{index}] is {found[index]}, expected exactly {expected[index]} "
            f"({len(wrong)} of {found.size} differ)"
        )


def assert_close(
    found: Any, expected: Any, what: str, tolerance: float = TOLERANCE
) -> None:
    """Asserts the same shape, and elements within `tolerance`.

    The tolerance is absolute up to the size of the largest expected element or
    one, whichever is larger, and relative to it beyond.
    """
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape, _shapes(what, found, expected)
    if found.size == 0:
        return
    size = max(1.0, float(np.abs(expected).max()))
    error = np.abs(found.astype(np.float64) - expected)
    # Written so that a NaN counts as wrong.
    wrong = np.argwhere(~(error <= tolerance * size))
    if len(wrong):
        index = tuple(int(i) for i in wrong[0])
        raise AssertionError(
            f"{what}[{index}] is {found[index]}, expected {expected[index]} within "
            f"{tolerance * size:.0e} ({len(wrong)} of {found.size} differ)"
        )


def _shapes(what: str, found: np.ndarray, expected: np.ndarray) -> str:
    return f"{what} has shape {found.shape}, expected {expected.shape}"


def assert_sound(slots: Any, scores: np.ndarray, top_k: int) -> None:
    """Asserts what no approximation excuses (ANN-1).

    Args:
      slots: what a search returned, [batch, segment_length, num_heads, top_k].
      scores: true scores of all slots, [batch, segment_length, num_heads,
        memory_size], minus infinity where a slot is not valid.
      top_k: how many were asked for.
    """
    slots = np.asarray(slots)
    expected_shape = (*scores.shape[:-1], top_k)
    assert slots.shape == expected_shape, (
        f"slots have shape {slots.shape}, expected {expected_shape}"
    )
    for place in np.ndindex(*slots.shape[:-1]):
        found = slots[place].tolist()
        kept = [slot for slot in found if slot != -1]
        where = f"query {place} found {found}"
        assert found == kept + [-1] * (top_k - len(kept)), f"{where}: -1 amid slots"
        assert len(set(kept)) == len(kept), f"{where}: a slot twice"
        num_slots = scores.shape[-1]
        outside = [slot for slot in kept if not 0 <= slot < num_slots]
        assert not outside, f"{where}: there is no slot {outside[0]}"
        found_scores = scores[place][kept]
        assert np.isfinite(found_scores).all(), f"{where}: a slot that is not valid"
        assert (np.diff(found_scores) <= 0).all(), (
            f"{where} with scores {found_scores.tolist()}: not best first"
        )


def recall(slots: np.ndarray, expected: np.ndarray, scores: np.ndarray) -> float:
    """Returns the share of one query's true neighbors that were found.

    A slot counts if its score is at least that of the worst true neighbor, so one
    of several equal neighbors is as good as another.

    Args:
      slots: what was found.
      expected: what exact search finds.
      scores: true scores of all slots.
    """
    true = expected[expected >= 0]
    if len(true) == 0:
        return 1.0
    kept = slots[slots >= 0]
    return float((scores[kept] >= scores[true].min()).sum() / len(true))
