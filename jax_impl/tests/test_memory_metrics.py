"""What is said of a memory equals what plain loops say, and looking changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import SMALL, draw_parameters, draw_stream, forward

from memorizing_jax import memory_metrics, model
from memorizing_jax.memory import Memory
from memorizing_jax.train_step import Segments

BATCH, HEADS, SEGMENT = 3, SMALL.num_heads, SMALL.segment_length
# Two buckets of one winner miss neighbors; layer 2 alone has a memory.
CONFIG = SMALL.replace(
    memory_layers=(2,), search="bucketed", recall_target=0.5, memory_size=10
)


def segments_of(tokens, start, count):
    return Segments(
        tokens=jnp.asarray(tokens),
        targets=jnp.asarray(tokens),
        start_of_document=jnp.asarray(start),
        num_tokens=jnp.asarray(count, jnp.int32),
        num_targets=jnp.asarray(count, jnp.int32),
    )


@pytest.fixture(scope="module")
def looked():
    """Returns, for each segment of a stream, all that the loops below need."""
    params, state = draw_parameters(CONFIG), model.init_state(CONFIG, BATCH)
    gate = np.asarray(jax.nn.sigmoid(params["layers.2.gate_bias"]))
    written = np.zeros(BATCH, int)
    result = []
    for tokens, start, count in zip(*draw_stream(), strict=True):
        segments = segments_of(tokens, start, count)
        measured = memory_metrics.measure(params, state, segments, CONFIG)
        before = state
        _, state, retrieved = forward(
            params, state, tokens, start, count.astype(np.int32), CONFIG
        )
        written = np.where(start, 0, written)
        read = jax.tree.map(np.asarray, retrieved[2])
        keys = np.asarray(before.memories[0].keys, float)
        result.append((measured[2], read, keys, written, count, gate))
        written = written + count
    return result


def real_queries(written, count):
    """Yields row, head, position and the row's pairs, by number, of each real query."""
    for row, head, position in np.ndindex(BATCH, HEADS, SEGMENT):
        if position < count[row]:
            first = max(0, written[row] - CONFIG.memory_size)
            yield row, head, position, range(first, written[row])


def test_recall_is_the_share_of_the_true_neighbors(looked):
    shares = []
    for measured, read, keys, written, count, _ in looked:
        hits = total = 0
        for row, head, i, pairs in real_queries(written, count):
            slots = np.array([t % CONFIG.memory_size for t in pairs], int)
            score = keys[row, head, slots] @ read.queries[row, i, head]
            best = set(slots[np.argsort(-score)[: CONFIG.top_k]].tolist())
            hits += len(best & set(read.slots[row, head, i].tolist()))
            total += len(best)
        if total == 0:
            assert np.isnan(measured.recall)
            continue
        # One division of float32.
        np.testing.assert_allclose(measured.recall, hits / total, rtol=1e-6)
        shares.append(hits / total)
    assert 0 < min(shares) < 1


def test_full_queries_counts_those_of_rows_just_reset(looked):
    for measured, read, _, written, count, _ in looked:
        full = [
            (read.slots[row, head, i] >= 0).all()
            for row, head, i, _ in real_queries(written, count)
        ]
        np.testing.assert_allclose(measured.full_queries, np.mean(full), rtol=1e-6)


def test_age_is_counted_in_tokens_and_weighted_by_attention(looked):
    wrapped = False
    for measured, read, _, written, count, _ in looked:
        ages = []
        for row, head, i, pairs in real_queries(written, count):
            number = {t % CONFIG.memory_size: t for t in pairs}
            wrapped |= written[row] > CONFIG.memory_size
            for slot, weight in zip(
                read.slots[row, head, i], read.weights[row, head, i], strict=True
            ):
                if slot >= 0:
                    ages.append((written[row] + i - number[int(slot)], weight))
        for share, found in ((0.5, measured.age_median), (0.95, measured.age_p95)):
            if not ages:
                assert np.isnan(found)
                continue
            age, weight = np.array(sorted(ages), float).T
            below = np.cumsum(weight)
            # So far from the share that rounding of the sum does not matter.
            assert abs(below / below[-1] - share).min() > 1e-5
            assert found == age[(below >= share * below[-1]).argmax()]
    assert wrapped


def test_memory_share_is_that_of_the_gated_norms(looked):
    for measured, read, _, written, count, gate in looked:
        squares = np.zeros((2, HEADS))
        for row, head, i, pairs in real_queries(written, count):
            if len(pairs) > 0:
                for j, output in enumerate((read.memory_output, read.local_output)):
                    squares[j, head] += (output[row, i, head] ** 2).sum()
        memory, local = np.sqrt(squares) * [gate, 1 - gate]
        if memory.any():
            # Sums of some hundred float32 squares.
            np.testing.assert_allclose(
                measured.memory_share, memory / (memory + local), rtol=1e-5
            )
        else:
            assert np.isnan(measured.memory_share).all()


def test_what_lies_in_an_empty_memory_does_not_matter():
    """Nothing was written, or all of it is hidden: NaN counts nowhere (MEM-11)."""
    params = draw_parameters(CONFIG)
    state = model.init_state(CONFIG, BATCH)
    stale = jax.tree.map(lambda x: x * jnp.nan, state.memories[0].keys)
    hidden = Memory(stale, stale, jnp.full(BATCH, 25, jnp.int32))
    state = model.State(state.num_cached, state.caches, (hidden,))
    tokens, starts, counts = draw_stream()
    segments = segments_of(tokens[0], starts[0], counts[0])
    measured = memory_metrics.measure(params, state, segments, CONFIG)[2]
    assert measured.full_queries == 0
    for nothing in (measured.recall, measured.age_median, measured.memory_share):
        assert np.isnan(nothing).all()


def test_long_segments_are_sampled_and_no_memory_is_scored_at_once():
    """The program holds no array of all sampled queries by all slots."""
    wide = CONFIG.replace(segment_length=128, memory_size=16_384, recall_target=0.98)
    like = jax.eval_shape(
        lambda: (draw_parameters_shapes(wide), model.init_state(wide, BATCH))
    )
    one = jax.ShapeDtypeStruct((BATCH, 128), jnp.int32)
    count = jax.ShapeDtypeStruct((BATCH,), jnp.int32)
    start = jax.ShapeDtypeStruct((BATCH,), jnp.bool_)
    segments = Segments(one, one, start, count, count)
    text = memory_metrics.measure.lower(*like, segments, wide).as_text()
    assert "x32x2048xf32" in text  # The sampled queries, a block at a time.
    assert "x16384xf32" not in text


def draw_parameters_shapes(config):
    from memorizing_jax import parameters

    return {n: jnp.zeros(s) for n, s in parameters.shapes(config).items()}
