"""Settings that no model can have are refused at the door, one sentence each."""

import dataclasses

import pytest

from memorizing_jax.config import ModelConfig
from memorizing_jax.errors import InputError


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 0}, "num_heads is 0, must be 1 or more"),
        ({"vocab_size": -1}, "vocab_size is -1, must be 1 or more"),
        ({"top_k": 0}, "top_k is 0, must be 1 or more"),
        ({"cache_length": -1}, "cache_length is -1, must be 0 or more"),
        ({"memory_size": -8}, "memory_size is -8, must be 0 or more"),
        ({"memory_layers": (1, 1)}, r"memory_layers \(1, 1\) names a layer twice"),
        ({"memory_layers": (4,)}, "names layer 4, but the model's layers are 0 to 3"),
        ({"memory_layers": (-1,)}, "names layer -1, but"),
        ({"top_k": 9, "memory_size": 8}, "top_k is 9, more than memory_size 8; lower"),
        ({"recall_target": 0.0}, "recall_target is 0.0, must be above 0 and at most 1"),
        ({"recall_target": 1.5}, "recall_target is 1.5"),
        ({"memory_dtype": "float16"}, "memory_dtype is 'float16', must be one of"),
        ({"compute_dtype": "int8"}, r"must be one of \('float32', 'bfloat16'\)"),
        ({"search": "fast"}, "search is 'fast', must be one of .*'exact'"),
    ],
)
def test_refuses(changes, message):
    with pytest.raises(InputError, match=message):
        ModelConfig(**changes)


@pytest.mark.rule("MOD-4")
def test_layers_of_a_memory_are_a_set():
    config = ModelConfig(num_layers=4, memory_layers=(3, 0, 2))
    assert config.memory_layers == (0, 2, 3)
    assert config == ModelConfig(num_layers=4, memory_layers=(0, 2, 3))


def test_a_model_may_do_without_memory():
    assert ModelConfig().remembers
    assert not ModelConfig(memory_size=0).remembers
    assert not ModelConfig(memory_layers=()).remembers
    # Then nobody minds how many neighbors would have been asked for.
    assert ModelConfig(memory_layers=(), memory_size=1).top_k == 32


def test_a_changed_copy_is_checked_again():
    config = ModelConfig()
    assert config.replace(top_k=5) == dataclasses.replace(config, top_k=5)
    with pytest.raises(InputError, match="top_k is 32, more than memory_size 8"):
        config.replace(memory_size=8)


def test_can_be_a_static_argument():
    assert hash(ModelConfig()) == hash(ModelConfig())
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig().top_k = 3
