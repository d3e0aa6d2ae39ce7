"""Everything together, and in any order beside a plain Python list.

The list holds all pairs of a row since its last reset. What a search must find
follows from it in four lines.
"""

import pathlib
import tempfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    precondition,
    rule,
    run_state_machine_as_test,
)

from memorizing_conformance import worlds
from memorizing_conformance.comparison import assert_equal
from memorizing_conformance.reference_adapter import ReferenceImplementation
from memorizing_conformance.strategies import WRAPPING, Sizes, grid_array, streams

pytestmark = [pytest.mark.level("search"), pytest.mark.needs("exact_search")]

SIZES = Sizes(
    batch=2, memory_size=5, num_heads=1, head_dim=3, top_k=4, segment_length=2
)
SEED = st.integers(0, 999)
ROWS = st.lists(st.booleans(), min_size=2, max_size=2)
LENGTHS = st.lists(st.integers(0, 2), min_size=2, max_size=2)


class AnyOrder(RuleBasedStateMachine):
    """Does something to the memory, and the same to the lists."""

    def __init__(self, implementation, directory):
        super().__init__()
        self.implementation = implementation
        self.directory = directory
        self.state = implementation.init(**SIZES.memory)
        self.pairs = [[] for _ in range(SIZES.batch)]
        self.num_saved = 0

    @rule(start=ROWS)
    def reset(self, start):
        self.state = self.implementation.reset(self.state, np.array(start))
        self.pairs = [
            [] if reset else pairs
            for reset, pairs in zip(start, self.pairs, strict=True)
        ]

    @rule(seed=SEED, kind=st.sampled_from(["grid", "ties"]), lengths=LENGTHS)
    def insert(self, seed, kind, lengths):
        keys = grid_array(np.random.default_rng(seed), SIZES.segment, kind)
        num_tokens = np.array(lengths)
        self.state = self.implementation.insert(self.state, keys, keys, num_tokens)
        for row, length in enumerate(lengths):
            self.pairs[row] += [key[0].tolist() for key in keys[row, :length]]

    @rule(seed=SEED)
    def search(self, seed):
        queries = grid_array(np.random.default_rng(seed), SIZES.segment)
        found = np.asarray(self.implementation.search(self.state, queries))
        for row in range(SIZES.batch):
            for position in range(SIZES.segment_length):
                query = queries[row, position, 0].tolist()
                expected = best_slots(self.pairs[row], query)
                actual = found[row, position, 0].tolist()
                assert actual == expected, f"row {row}: {actual}, expected {expected}"

    @precondition(lambda self: "save_restore" in self.implementation.features)
    @rule()
    def save_and_restore(self):
        path = self.directory / str(self.num_saved)
        self.num_saved += 1
        self.implementation.save(self.state, path)
        self.state = self.implementation.restore(path)


def best_slots(pairs, query):
    """The slots that a query must find among the newest of these pairs."""
    newest = list(enumerate(pairs))[-SIZES.memory_size :]
    scores = [
        (-sum(a * b for a, b in zip(key, query, strict=True)), t % SIZES.memory_size)
        for t, key in newest
    ]
    slots = [slot for _, slot in sorted(scores)][: SIZES.top_k]
    return slots + [-1] * (SIZES.top_k - len(slots))


@pytest.mark.rule("ORD-1")
@given(stream=streams(WRAPPING, resets=True, uneven=True))
def test_a_stream_with_everything(implementation, stream):
    """Wraps, resets and padding together, against the reference."""
    found = worlds.search_stream(implementation, stream)
    expected = worlds.search_stream(ReferenceImplementation(), stream)
    for step, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert_equal(one, other, f"segment {step}: slots")


@pytest.mark.rule("ORD-1")
def test_any_order_of_calls(implementation):
    with tempfile.TemporaryDirectory() as directory:

        def machine():
            return AnyOrder(
                implementation, pathlib.Path(tempfile.mkdtemp(dir=directory))
            )

        run_state_machine_as_test(machine, settings=settings(stateful_step_count=20))
