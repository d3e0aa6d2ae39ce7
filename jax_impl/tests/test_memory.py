"""The ring buffer, against a list that forgets, and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import grid

from memorizing_jax import memory

BATCH, HEADS, DIM = 3, 2, 5

insert = jax.jit(memory.insert)
reset = jax.jit(memory.reset)


def numbered(first, count, batch=BATCH):
    """Pairs whose every component is their number."""
    number = np.arange(first, first + count, dtype=np.float32)
    return np.broadcast_to(number[None, :, None, None], (batch, count, HEADS, DIM))


def ints(*numbers):
    return np.array(numbers, np.int32)


def contents(state, row):
    """Returns what each valid slot holds, once in every head and component."""
    keys = np.asarray(state.keys)[row, :, : int(state.num_valid[row])]
    values = np.asarray(state.values)[row, :, : int(state.num_valid[row])]
    assert (keys == keys[:1, :, :1]).all()
    assert (values == -keys).all()
    return keys[0, :, 0].tolist()


@pytest.mark.rule("MEM-2")
@pytest.mark.parametrize(("memory_size", "segment_length"), [(5, 3), (4, 7), (6, 6)])
def test_wraps_at_every_offset(memory_size, segment_length):
    """From wherever a segment starts, pair `t` lands in slot `t mod memory_size`."""
    full = np.full(BATCH, segment_length, np.int32)
    for offset in range(2 * memory_size + 1):
        before = memory.Memory(
            np.full((BATCH, HEADS, memory_size, DIM), -1, np.float32),
            np.full((BATCH, HEADS, memory_size, DIM), 1, np.float32),
            np.full(BATCH, offset, np.int32),
        )
        pairs = numbered(offset, segment_length)
        after = insert(before, pairs, -pairs, full)
        expected = [-1.0] * memory_size  # Where nothing is written nothing changes.
        for t in range(offset, offset + segment_length):
            expected[t % memory_size] = t
        valid = min(memory_size, offset + segment_length)
        for row in range(BATCH):
            assert contents(after, row) == expected[:valid]
        assert (after.num_written == offset + segment_length).all()
        assert after.num_written.dtype == jnp.int32


@pytest.mark.rule("MEM-1")
@pytest.mark.rule("MEM-6")
@pytest.mark.parametrize("memory_size", [4, 9])
def test_a_ring_is_a_list_that_forgets(memory_size):
    """Against plain Python, over a random stream: rows reset, idle and padded."""
    rng = np.random.default_rng(memory_size)
    state = memory.empty(BATCH, memory_size, HEADS, DIM)
    written = [[] for _ in range(BATCH)]
    for step in range(40):
        start = rng.random(BATCH) < 0.2
        count = rng.integers(0, 8, BATCH, np.int32)
        pairs = numbered(10 * step, 7)
        state = insert(reset(state, start), pairs, -pairs, count)
        for row in range(BATCH):
            if start[row]:
                written[row] = []
            written[row] += pairs[row, : count[row], 0, 0].tolist()
            newest = [None] * min(memory_size, len(written[row]))
            for t in range(max(0, len(written[row]) - memory_size), len(written[row])):
                newest[t % memory_size] = written[row][t]
            assert contents(state, row) == newest, f"{step=} {row=}"
            assert int(state.num_written[row]) == len(written[row])


@pytest.mark.rule("MEM-2")
def test_a_segment_longer_than_memory_keeps_its_newest():
    """Pairs 0 to 6 into four slots: 3 to 6 stay, 4 in slot 0, and the phase too."""
    pairs = numbered(0, 7)
    state = insert(memory.empty(BATCH, 4, HEADS, DIM), pairs, -pairs, ints(7, 6, 0))
    assert contents(state, 0) == [4, 5, 6, 3]
    assert contents(state, 1) == [4, 5, 2, 3]
    assert contents(state, 2) == []
    pairs = numbered(7, 7)
    state = insert(state, pairs, -pairs, ints(1, 0, 2))
    assert contents(state, 0) == [4, 5, 6, 7]
    assert contents(state, 1) == [4, 5, 2, 3]
    assert contents(state, 2) == [7, 8]


@pytest.mark.rule("MEM-5")
def test_reset_empties_the_rows_it_is_told_to():
    pairs = numbered(0, 7)
    full = insert(memory.empty(BATCH, 4, HEADS, DIM), pairs, -pairs, ints(2, 3, 7))
    for bits in range(2**BATCH):
        start = np.array([bits >> row & 1 for row in range(BATCH)], bool)
        state = reset(full, start)
        expected = np.where(start, 0, [2, 3, 7])
        np.testing.assert_array_equal(state.num_written, expected)
        np.testing.assert_array_equal(state.num_valid, np.minimum(expected, 4))
        # Hidden, not cleared: a pass over the memory would cost as much as a search.
        np.testing.assert_array_equal(state.keys, full.keys)


@pytest.mark.rule("MEM-10")
def test_bfloat16_rounds_to_nearest_even():
    # bfloat16 steps by 2/256 between 1 and 2. Halfway goes to the even neighbor.
    numbers = np.array([1 + 1 / 256, 1 + 3 / 256, 1 + 3.5 / 256, -1 - 1 / 256, 7 / 8])
    pairs = np.broadcast_to(
        numbers.astype(np.float32)[None, :, None, None], (1, 5, HEADS, DIM)
    )
    state = memory.empty(1, 6, HEADS, DIM, "bfloat16")
    state = insert(state, pairs, -pairs, ints(5))
    assert state.keys.dtype == state.values.dtype == jnp.bfloat16
    stored = jax.tree.map(lambda x: x.astype(jnp.float32), state)
    assert contents(stored, 0) == [1, 1 + 4 / 256, 1 + 4 / 256, -1, 7 / 8]


@pytest.mark.rule("MEM-8")
def test_no_gradient_passes_through_insertion():
    rng = np.random.default_rng(0)
    pairs = grid(rng, 1, 3, HEADS, DIM)

    def total(keys, values):
        state = memory.empty(1, 4, HEADS, DIM)
        state = memory.insert(state, keys, values, ints(3))
        return state.keys.sum() + state.values.sum()

    total = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))
    value, gradients = total(pairs, -2 * pairs)
    assert value == -pairs.sum()
    assert all((gradient == 0).all() for gradient in gradients)


def test_a_donated_memory_is_written_where_it_is():
    """A memory of gigabytes has no room for a second one beside it."""
    donating = jax.jit(memory.insert, donate_argnums=0)
    state = jax.device_put(memory.empty(BATCH, 64, HEADS, DIM))
    pairs = numbered(0, 7)
    for _ in range(3):
        before = state
        places = [x.unsafe_buffer_pointer() for x in (state.keys, state.values)]
        state = donating(state, pairs, -pairs, ints(7, 3, 0))
        assert all(x.is_deleted() for x in jax.tree.leaves(before))
        after = [x.unsafe_buffer_pointer() for x in (state.keys, state.values)]
        assert after == places


def test_gather_takes_each_row_and_head_from_its_own():
    stored = np.arange(BATCH * HEADS * 4 * DIM, dtype=np.float32)
    stored = stored.reshape(BATCH, HEADS, 4, DIM)
    rng = np.random.default_rng(1)
    slots = rng.integers(-1, 4, (BATCH, HEADS, 7, 6), np.int32)
    found = np.asarray(memory.gather(jnp.asarray(stored), jnp.asarray(slots)))
    assert found.shape == (BATCH, HEADS, 7, 6, DIM)
    for row, head, query, n in np.ndindex(slots.shape):
        slot = max(0, slots[row, head, query, n])
        assert (found[row, head, query, n] == stored[row, head, slot]).all()


def test_arrays_of_a_fresh_memory_are_apart():
    """Donating one must not take another away."""
    arrays = jax.tree.leaves(memory.empty(BATCH, 4, HEADS, DIM))
    places = {x.unsafe_buffer_pointer() for x in arrays}
    assert len(places) == len(arrays) == 3
