"""Which positions have weight, and how much: worked by hand, without the reference.

The model of `showing` gives equal weight to whatever it sees.
"""

import numpy as np
import pytest

from memorizing_conformance import models, showing
from memorizing_conformance.comparison import assert_close
from memorizing_conformance.pretrained import cut_at, local_positions

pytestmark = [
    pytest.mark.level("model"),
    pytest.mark.needs("model", "pretrained", "exact_search"),
]
EVEN, UNEVEN = [6] * 6, [6, 3, 1, 6, 5, 6, 2, 6, 1]


def assert_weights(implementation, config, lengths, weights_of):
    """Reads one document; `weights_of(num_read, i)` says what position `i` sees.

    That is a dict of weights by position, where `num_read` tokens came before the
    segment of `i`.
    """
    document = models.draw_documents(0, [sum(lengths)], config["vocab_size"])[0]
    parameters = showing.parameters_of(config)
    found = models.read(
        implementation, config, parameters, cut_at(config, document, lengths)
    )
    first = 0
    for logits, length in zip(found, lengths, strict=True):
        weights = np.zeros((length, config["vocab_size"]))
        for i in range(length):
            for position, weight in weights_of(first, first + i).items():
                weights[i, document[position]] += weight
        expected = showing.logits_of(config, weights)
        assert_close(logits[0, :length], expected, f"logits from position {first} on")
        first += length


def equal(positions):
    return {position: 1 / len(positions) for position in positions}


def local(config, num_read, i):
    """What `i` sees of its local context, by PRE-4 and PRE-9."""
    held = local_positions(config, num_read, i - num_read + 1)
    window, num_sinks = config["local_window"], config["num_sinks"]
    return [t for t in held if t < num_sinks or i - t <= window]


@pytest.mark.rule("PRE-9")
def test_a_query_sees_itself_and_its_window(implementation):
    config = showing.CONFIG | {"num_sinks": 0, "memory_size": 0, "local_window": 4}
    assert_weights(
        implementation, config, EVEN, lambda _, i: equal(range(max(0, i - 4), i + 1))
    )


@pytest.mark.rule("PRE-4")
@pytest.mark.parametrize("cache_length", [0, 8])
def test_sinks_are_seen_once_each(implementation, cache_length):
    config = showing.CONFIG | {
        "memory_size": 0,
        "local_window": 4,
        "cache_length": cache_length,
    }
    assert_weights(
        implementation, config, UNEVEN, lambda p, i: equal(local(config, p, i))
    )


@pytest.mark.rule("PRE-5")
@pytest.mark.rule("PRE-6")
@pytest.mark.parametrize("lengths", [EVEN, UNEVEN], ids=["even", "uneven"])
@pytest.mark.parametrize("num_sinks", [0, 3, 8])
def test_each_past_position_has_its_weight_once(implementation, lengths, num_sinks):
    """A joint memory that keeps and finds all sees what full attention sees."""
    everything = {"memory_size": 40, "top_k": 40}
    config = showing.CONFIG | everything | {"num_sinks": num_sinks}
    assert_weights(implementation, config, lengths, lambda _, i: equal(range(i + 1)))


@pytest.mark.rule("PRE-6")
@pytest.mark.parametrize("cache_length", [0, 8])
def test_the_newest_that_left_the_cache_are_remembered(implementation, cache_length):
    """With a memory of 7, of which all are found."""
    sizes = {"memory_size": 7, "top_k": 7, "cache_length": cache_length}
    config = showing.CONFIG | sizes

    def weights_of(num_read, i):
        left = range(3, max(3, num_read - cache_length))[-7:]
        return equal([*left, *local(config, num_read, i)])

    assert_weights(implementation, config, UNEVEN, weights_of)


@pytest.mark.rule("PRE-6")
@pytest.mark.rule("MEM-2")
def test_position_3_after_3_sinks_is_pair_0(implementation):
    """Equal scores go to the lower slot: of 7 slots 0 and 1 are found."""
    config = showing.CONFIG | {"memory_size": 7, "top_k": 2}

    def weights_of(num_read, i):
        slots = {}
        for position in range(3, num_read - 8):
            slots[(position - 3) % 7] = position
        found = [slots[slot] for slot in (0, 1) if slot in slots]
        return equal([*found, *local(config, num_read, i)])

    assert_weights(implementation, config, UNEVEN, weights_of)


@pytest.mark.rule("PRE-5")
@pytest.mark.rule("PRE-6")
def test_a_gate_divides_between_memory_and_local_context(implementation):
    """A quarter goes to all segments before, sinks too, whether cached or not."""
    everything = {"memory_size": 40, "top_k": 40, "combination": "gate"}
    config = showing.CONFIG | everything | {"local_window": 4}

    def weights_of(num_read, i):
        weights = {t: 3 / 4 * w for t, w in equal(local(config, num_read, i)).items()}
        for t, weight in equal(range(num_read)).items():
            weights[t] = weights.get(t, 0) + weight / 4
        return weights

    assert_weights(implementation, config, UNEVEN, weights_of)
