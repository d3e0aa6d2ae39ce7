"""What a pre-trained model sees around it, and how it counts places there."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memorizing_conformance import models
from memorizing_conformance.comparison import assert_close
from memorizing_conformance.models import read
from memorizing_conformance.pretrained import (
    LOCAL,
    cut_at,
    local_positions,
    logits_of_llama,
    one_layer_attends,
)
from memorizing_conformance.readings import assert_as_expected, draw, draw_varied

pytestmark = [
    pytest.mark.level("model"),
    pytest.mark.needs("model", "pretrained", "exact_search"),
]
# Short of what cache and segment hold.
NARROW = LOCAL | {"local_window": 4}
# More sinks than a segment has tokens, and no cache.
MANY_SINKS = LOCAL | {"num_sinks": 8, "cache_length": 0, "local_window": 5}


@pytest.mark.rule("PRE-3")
@given(seed=st.integers(0, 9999))
def test_places_are_counted_as_the_reference_counts_them(implementation, seed):
    assert_as_expected(implementation, LOCAL, *draw(LOCAL, seed, num_segments=6))


@pytest.mark.rule("PRE-3")
@pytest.mark.parametrize("lengths", [[6] * 5 + [5], [6, 3, 6, 1, 6, 5, 6, 2]])
def test_what_was_dropped_might_as_well_never_have_been(implementation, lengths):
    """Each segment reads as the end of a document of its local context alone.

    The cache of 8 loses one of 3 sinks after 9 tokens. One layer attends: what
    others attend to was made in a context of its own.
    """
    parameters = one_layer_attends(models.draw_parameters(LOCAL, 10))
    document = models.draw_documents(10, [35])[0]
    segments = cut_at(LOCAL, document, lengths)
    first = 0
    for logits, length in zip(
        read(implementation, LOCAL, parameters, segments), lengths, strict=True
    ):
        context = document[local_positions(LOCAL, first, length)]
        expected = logits_of_llama(LOCAL, parameters, context)[-length:]
        assert_close(logits[0, :length], expected, f"logits from position {first} on")
        first += length


@pytest.mark.rule("PRE-3")
def test_rows_count_their_own_places(implementation):
    """Documents of all lengths, which rows begin at different times."""
    assert_as_expected(implementation, LOCAL, *draw_varied(LOCAL, 11))


@pytest.mark.rule("PRE-3")
def test_padding_has_no_place(implementation):
    """Where a document is cut does not matter until something is dropped."""
    parameters = models.draw_parameters(LOCAL, 12)
    tokens = models.draw_documents(12, [14])[0]
    found = []
    for lengths in ([6, 5, 3], [1, 4, 2, 4, 3]):
        logits = read(implementation, LOCAL, parameters, cut_at(LOCAL, tokens, lengths))
        found.append(
            np.concatenate([one[0, :n] for one, n in zip(logits, lengths, strict=True)])
        )
    assert_close(found[1], found[0], "logits")


@pytest.mark.rule("PRE-4")
@pytest.mark.parametrize("place", range(5))
def test_sinks_are_seen_for_ever_and_others_are_not(implementation, place):
    """Another token among the first five of 35: sinks are 0 to 2."""
    parameters = one_layer_attends(models.draw_parameters(NARROW, 13))
    documents = models.draw_documents(13, [35, 35])
    segments = models.cut(NARROW, documents)
    before = read(implementation, NARROW, parameters, segments)
    documents[0][place] = documents[0][25]
    after = read(implementation, NARROW, parameters, models.cut(NARROW, documents))
    # In segment 2, from position 12 on, the cache still holds position 4.
    for step in (2, 3, 5):
        difference = np.abs(after[step][0] - before[step][0]).max(axis=-1)
        real = segments[step][2][0]
        if place < 3:
            assert (difference[:real] > 1e-4).all(), f"segment {step} misses a sink"
        else:
            assert_close(after[step], before[step], f"segment {step}")


@pytest.mark.rule("PRE-4")
def test_a_document_of_sinks_alone(implementation):
    """Every document has its own, and 2 tokens are fewer than 3 sinks."""
    parameters = models.draw_parameters(LOCAL, 14)
    tokens = models.draw_documents(14, [41, 41])
    documents = [tokens[0][:2], tokens[1][:28], tokens[0][2:30], tokens[1][28:30]]
    found = read(implementation, LOCAL, parameters, models.cut(LOCAL, documents))
    alone = read(
        implementation, LOCAL, parameters, models.cut(LOCAL, documents[2:0:-1])
    )
    for step in range(5):
        assert_close(found[1 + step][0], alone[step][0], f"row 0, segment {step}")
        assert_close(found[step][1], alone[step][1], f"row 1, segment {step}")


@pytest.mark.rule("PRE-4")
@pytest.mark.parametrize("config", [NARROW, MANY_SINKS], ids=["narrow", "many"])
def test_sinks_are_those_of_the_reference(implementation, config):
    assert_as_expected(implementation, config, *draw_varied(config, 15))


@pytest.mark.rule("PRE-4")
def test_padding_is_no_sink(implementation):
    """Segments of one and two tokens, then of six, with 8 sinks."""
    parameters = models.draw_parameters(MANY_SINKS, 18)
    document = models.draw_documents(18, [27])[0]
    segments = cut_at(MANY_SINKS, document, [1, 2, 6, 6, 6, 6])
    assert_as_expected(implementation, MANY_SINKS, parameters, segments)


@pytest.mark.rule("PRE-9")
def test_the_window_ends_where_it_does_in_the_reference(implementation):
    """Without sinks, and with one layer that attends."""
    config = NARROW | {"num_sinks": 0}
    parameters, segments = draw(config, 16)
    assert_as_expected(implementation, config, one_layer_attends(parameters), segments)


@pytest.mark.rule("PRE-9")
def test_a_token_is_seen_as_far_as_the_window(implementation):
    config = NARROW | {"num_sinks": 0}
    parameters = one_layer_attends(models.draw_parameters(config, 17))
    documents = models.draw_documents(17, [24, 24])
    before = read(implementation, config, parameters, models.cut(config, documents))
    documents[0][9] = documents[0][20]
    after = read(implementation, config, parameters, models.cut(config, documents))
    difference = np.abs(np.concatenate(after, 1) - np.concatenate(before, 1))
    changed = difference.max(axis=-1) > 1e-4
    assert np.flatnonzero(changed[0]).tolist() == [9, 10, 11, 12, 13]
    assert not changed[1].any(), "the other row"
