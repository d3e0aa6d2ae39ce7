"""What a pre-trained model remembers, where it meets it, and how it mixes it in."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memorizing_conformance import models
from memorizing_conformance.comparison import assert_close
from memorizing_conformance.models import changed, read
from memorizing_conformance.pretrained import (
    EVERYTHING,
    GATED,
    JOINT,
    STILL,
    cut_at,
    grouped_as_ungrouped,
    logits_of_llama,
    one_layer_attends,
    without_positions,
)
from memorizing_conformance.readings import (
    OPEN,
    SHUT,
    assert_as_expected,
    assert_same_logits,
    draw,
    draw_varied,
)

pytestmark = [
    pytest.mark.level("model"),
    pytest.mark.needs("model", "pretrained", "exact_search"),
]
# Full attention, whatever is where: no position turns anything, and what is not in
# the local context is in memory, in every layer, and is found.
COMPLETE = JOINT | EVERYTHING | {"memory_layers": (0, 1, 2), "rope_base": STILL}


@pytest.mark.rule("ORD-1")
@pytest.mark.rule("PRE-5")
@pytest.mark.parametrize("config", [JOINT, GATED], ids=["joint", "gate"])
@given(seed=st.integers(0, 9999))
def test_reads_as_the_reference_does(implementation, config, seed):
    """Everything together: resets, padding, wraps, sinks within and without."""
    assert_as_expected(implementation, config, *draw_varied(config, seed))


@pytest.mark.rule("PRE-1")
@given(seed=st.integers(0, 9999))
def test_query_heads_search_the_memory_of_their_group(implementation, seed):
    """With gates open, memory is all that two layers read."""
    parameters, segments = draw(GATED, seed)
    parameters = changed(parameters, "gate_bias", OPEN)
    assert_as_expected(implementation, GATED, parameters, segments)


@pytest.mark.rule("PRE-1")
def test_a_group_reads_as_heads_with_equal_keys_would(implementation):
    parameters, segments = draw(JOINT, 1, num_segments=5)
    apart = JOINT | {"num_key_value_heads": 6}
    found = read(implementation, JOINT, parameters, segments)
    copied = grouped_as_ungrouped(parameters, JOINT)
    assert_same_logits(read(implementation, apart, copied, segments), found)


@pytest.mark.rule("PRE-1")
@pytest.mark.parametrize("kind", ["query_kernel", "key_kernel"])
def test_nothing_is_normalized(implementation, kind):
    """Longer queries or keys are more sure of what they look for."""
    config = GATED | EVERYTHING
    parameters, segments = draw(config, 2)
    parameters = changed(parameters, "gate_bias", OPEN)
    longer = changed(parameters, kind, lambda kernel: 3 * kernel)
    assert_as_expected(implementation, config, longer, segments)


@pytest.mark.rule("PRE-2")
@pytest.mark.parametrize("combination", ["joint", "gate"])
def test_the_order_of_what_is_remembered_does_not_matter(implementation, combination):
    """All pairs are met at one distance, whenever they were read.

    Layer 0 alone attends, and finds all. Of 6 + 24 + 6 tokens the first 6 include the
    sinks; under `joint` the last 14 are local when the last 6 are read.
    """
    config = JOINT | EVERYTHING | {"combination": combination}
    parameters = one_layer_attends(models.draw_parameters(config, 3))
    parameters = changed(parameters, "gate_bias", OPEN)
    documents = models.draw_documents(3, [36, 36])
    found = []
    for order in (np.arange(6, 22), np.random.default_rng(3).permutation(16) + 6):
        shuffled = [
            np.concatenate([one[:6], one[order], one[22:]]) for one in documents
        ]
        segments = models.cut(config, shuffled)
        found.append(read(implementation, config, parameters, segments)[-1])
    assert_close(found[1], found[0], "logits of the last segment")


@pytest.mark.rule("PRE-2")
@pytest.mark.parametrize("distance", [0, 4000])
def test_memory_lies_as_far_back_as_is_configured(implementation, distance):
    """With gates open, at distances near and far."""
    config = GATED | EVERYTHING | {"memory_distance": distance}
    parameters, segments = draw(config, 4)
    parameters = changed(parameters, "gate_bias", OPEN)
    assert_as_expected(implementation, config, parameters, segments)


@pytest.mark.rule("PRE-2")
def test_the_search_meets_pairs_where_attention_does(implementation):
    """With one neighbor its weight is 1, and only which one it is shows."""
    config = GATED | {"memory_size": 43, "top_k": 1, "memory_distance": 2}
    parameters, segments = draw(config, 5, num_segments=5)
    parameters = changed(parameters, "gate_bias", OPEN)
    assert_as_expected(implementation, config, parameters, segments)


@pytest.mark.rule("PRE-5")
@pytest.mark.rule("PRE-6")
@pytest.mark.parametrize("lengths", [[6] * 5 + [5], [6, 3, 1, 6, 5, 6, 2, 6]])
def test_a_joint_memory_that_loses_nothing_is_full_attention(implementation, lengths):
    """Each position has its weight once, in local context or in memory."""
    parameters = without_positions(models.draw_parameters(COMPLETE, 6), COMPLETE)
    document = models.draw_documents(6, [35])[0]
    segments = cut_at(COMPLETE, document, lengths)
    logits = read(implementation, COMPLETE, parameters, segments)
    found = [one[0, :n] for one, n in zip(logits, lengths, strict=True)]
    expected = logits_of_llama(COMPLETE, parameters, document)
    assert_close(np.concatenate(found), expected, "logits")


@pytest.mark.rule("PRE-5")
def test_without_neighbors_a_joint_layer_reads_its_local_context(implementation):
    """Two segments of 6 leave nothing for memory but position 3 after a cache of 8."""
    parameters, segments = draw(JOINT, 7, num_segments=2)
    off = JOINT | {"memory_size": 0}
    assert_same_logits(
        read(implementation, JOINT, parameters, segments),
        read(implementation, off, parameters, segments),
    )


@pytest.mark.rule("PRE-5")
@pytest.mark.rule("GATE-2")
def test_without_neighbors_a_gate_still_applies(implementation):
    """With memory_size 0 a gate of one half leaves half of the local output."""
    off = GATED | {"memory_size": 0}
    parameters, segments = draw(off, 8)
    half = changed(parameters, "gate_bias", 0)
    shut = changed(parameters, "gate_bias", SHUT)
    for name in ("layers.0.output_kernel", "layers.2.output_kernel"):
        shut = changed(shut, name, lambda kernel: kernel / 2)
    found = [read(implementation, off, p, segments) for p in (half, shut)]
    assert_same_logits(*found)


@pytest.mark.rule("PRE-6")
@given(seed=st.integers(0, 9999))
def test_pairs_enter_when_the_reference_says(implementation, seed):
    """Full segments of one document, in a memory of 16 that they overflow."""
    assert_as_expected(implementation, JOINT, *draw(JOINT, seed, num_segments=7))


@pytest.mark.rule("PRE-6")
@pytest.mark.needs("long_segments")
@pytest.mark.parametrize("num_sinks", [0, 8])
def test_without_a_cache_a_segment_enters_at_once(implementation, num_sinks):
    """Segments of 6 in a memory of 5: their last 5 stay, unless they are sinks."""
    config = JOINT | {"cache_length": 0, "num_sinks": num_sinks, "memory_size": 5}
    assert_as_expected(implementation, config, *draw(config, 9, num_segments=5))


@pytest.mark.rule("PRE-6")
def test_a_gated_memory_gets_each_segment_at_once(implementation):
    """With gates open the second segment reads the first, sinks and all."""
    config = GATED | EVERYTHING
    parameters, segments = draw(config, 10, num_segments=2)
    parameters = changed(parameters, "gate_bias", OPEN)
    assert_as_expected(implementation, config, parameters, segments)


@pytest.mark.rule("MEM-5")
@pytest.mark.parametrize("config", [JOINT, GATED], ids=["joint", "gate"])
def test_nothing_crosses_documents(implementation, config):
    parameters = models.draw_parameters(config, 11)
    first, second, other = models.draw_documents(11, [29, 35, 41])
    after = models.cut(config, [first, other, second])
    alone = models.cut(config, [second, other])
    found = read(implementation, config, parameters, after)
    expected = read(implementation, config, parameters, alone)
    for step in range(6):
        assert_close(found[5 + step][0], expected[step][0], f"segment {step}")


@pytest.mark.rule("MEM-10")
@pytest.mark.needs("bfloat16_memory")
def test_stored_pairs_are_rounded_and_the_cache_is_not(implementation):
    config = JOINT | EVERYTHING | {"memory_dtype": "bfloat16"}
    parameters, segments = draw(config, 12, num_segments=4)
    assert_as_expected(implementation, config, parameters, segments)
