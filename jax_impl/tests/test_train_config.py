"""Settings refuse what cannot be, survive JSON, and know what may change."""

import dataclasses
import json

import pytest

from memorizing_jax import presets, train_config
from memorizing_jax.config import ModelConfig
from memorizing_jax.errors import InputError
from memorizing_jax.train_config import OptimizerConfig, TrainConfig


@pytest.mark.parametrize("preset", presets.PRESETS)
def test_presets_survive_json(preset):
    config = presets.PRESETS[preset]()
    text = json.dumps(train_config.to_json(config))
    assert train_config.from_json(json.loads(text)) == config


def test_base_is_the_model_of_the_paper():
    config = presets.base()
    model = config.model
    assert (model.num_layers, model.model_dim, model.mlp_dim) == (12, 1024, 4096)
    assert (model.num_heads, model.head_dim, model.memory_layers) == (8, 128, (8,))
    assert config.batch * model.segment_length == 2**17
    assert config.optimizer.learning_rate == 1 / 1000**0.5


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (TrainConfig, {"batch": 0}, "batch is 0, must be 1 or more"),
        (TrainConfig, {"seed": -1}, "seed is -1, must be 0 or more"),
        (TrainConfig, {"evaluation_tokens": 3}, "evaluation_tokens is 3, must be at"),
        (OptimizerConfig, {"learning_rate": 0.0}, "learning_rate is 0.0, must be"),
        (OptimizerConfig, {"momentum": 1.0}, "momentum is 1.0, must be"),
        (OptimizerConfig, {"warmup_steps": 0}, "warmup_steps is 0, must be 1"),
        (OptimizerConfig, {"schedule": "cosine"}, "decay_steps is 0, must exceed"),
        (OptimizerConfig, {"weight_decay": 0.1}, "only adamw decays weights"),
    ],
)
def test_refuses(kind, settings, message):
    with pytest.raises(InputError, match=message):
        kind(**settings)


def test_a_continued_run_may_be_longer_and_nothing_else(small):
    longer = dataclasses.replace(small, steps=99, checkpoint_interval=1)
    train_config.check_same_run(small, longer)
    other = dataclasses.replace(small, model=small.model.replace(top_k=3))
    with pytest.raises(InputError, match=r"model\.top_k 4, and this one 3"):
        train_config.check_same_run(small, other)


@pytest.mark.parametrize("damage", [{}, {"model": {"layers": 3}}, {"unknown": 1}])
def test_refuses_settings_it_did_not_write(damage):
    settings = train_config.to_json(presets.tiny()) | damage if damage else {}
    with pytest.raises(InputError, match="saved settings are not those"):
        train_config.from_json(settings)


def test_vocabulary_follows_the_data():
    config = TrainConfig(model=ModelConfig(vocab_size=5)).with_vocabulary(300)
    assert config.model.vocab_size == 300
