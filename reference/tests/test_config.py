"""A configuration refuses what no model can have, in one sentence."""

import dataclasses

import pytest
from helpers import PRETRAINED, SMALL, replace

from memorizing_reference import config, memory


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_layers": 0}, "num_layers is 0, must be 1 or more"),
        ({"local_window": 0}, "local_window is 0, must be 1 or more"),
        ({"top_k": 0}, "top_k is 0, must be 1 or more"),
        ({"cache_length": -1}, "cache_length is -1, must be 0 or more"),
        ({"memory_size": -8}, "memory_size is -8, must be 0 or more"),
        ({"memory_layers": (0, 3)}, "names layer 3, but the model's layers are 0 to 2"),
        ({"memory_layers": (-1,)}, "names layer -1"),
        ({"memory_layers": (1, 1)}, r"memory_layers \(1, 1\) repeats a layer"),
        ({"top_k": 11}, "top_k is 11, more than memory_size 10; lower top_k or"),
        ({"num_buckets": 0}, "num_buckets is 0, must be 1 or more"),
        ({"winners_per_bucket": 0}, "winners_per_bucket is 0, must be 1 or more"),
    ],
)
def test_refuses(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        replace(SMALL, **changes)


def test_refuses_other_dtypes():
    # Under jaxtyping's hook the annotation is faster than the sentence.
    with pytest.raises(Exception, match=r"memory_dtype(.|\n)*'float16'"):
        replace(SMALL, memory_dtype="float16")
    with pytest.raises(Exception, match=r"dtype(.|\n)*'float16'"):
        memory.empty(1, 2, 3, 4, dtype="float16")


def test_allows_the_edges():
    replace(SMALL, memory_size=3)  # As many slots as neighbors.
    replace(SMALL, memory_size=0, top_k=32)  # Memory off: no neighbor is asked for.
    replace(SMALL, memory_layers=(0, 1, 2), cache_length=0)


def test_cannot_be_changed_afterwards():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SMALL.top_k = 5
    assert isinstance(hash(config.ModelConfig(**dataclasses.asdict(SMALL))), int)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_key_value_heads": 4}, "is 4, must divide num_heads, which is 6"),
        ({"num_key_value_heads": 0}, "is 0, must divide num_heads, which is 6"),
        ({"head_dim": 5}, "head_dim is 5, must be even"),
        ({"num_sinks": -1}, "num_sinks is -1, must be 0 or more"),
        ({"memory_distance": -2}, "memory_distance is -2, must be 0 or more"),
        ({"local_window": 9}, "local_window is 9, but cache and segment reach 10 po"),
        ({"top_k": 11}, "top_k is 11, more than memory_size 10"),
    ],
)
def test_refuses_of_the_llama_family(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        replace(PRETRAINED, **changes)


def test_a_short_window_hides_nothing_from_a_gated_memory():
    replace(PRETRAINED, local_window=1, combination="gate")
    replace(PRETRAINED, local_window=1, memory_size=0)
    replace(PRETRAINED, local_window=1, memory_layers=())


def test_refuses_other_combinations():
    # As for dtypes.
    with pytest.raises(Exception, match=r"combination(.|\n)*'sum'"):
        replace(PRETRAINED, combination="sum")
