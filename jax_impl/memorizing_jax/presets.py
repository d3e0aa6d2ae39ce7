"""Settings to start from, small and real."""

from typing import Final

from memorizing_jax.config import ModelConfig
from memorizing_jax.train_config import OptimizerConfig, TrainConfig


def tiny() -> TrainConfig:
    """A minute on two cores. Learns next to nothing: for tests and first tries."""
    return TrainConfig(
        model=ModelConfig(
            num_layers=2,
            model_dim=32,
            num_heads=2,
            head_dim=16,
            mlp_dim=64,
            memory_layers=(1,),
            segment_length=32,
            local_window=32,
            cache_length=16,
            memory_size=256,
            top_k=8,
        ),
        optimizer=OptimizerConfig(
            optimizer="adamw", learning_rate=3e-3, warmup_steps=20
        ),
        batch=4,
        steps=200,
        evaluation_interval=100,
        evaluation_tokens=4096,
        checkpoint_interval=100,
    )


def demo() -> TrainConfig:
    """The demo's checkpoint: two million parameters, six minutes on an H100."""
    return TrainConfig(
        model=ModelConfig(
            num_layers=4,
            model_dim=192,
            num_heads=4,
            head_dim=48,
            mlp_dim=640,
            memory_layers=(2,),
            segment_length=128,
            local_window=128,
            cache_length=128,
            memory_size=8192,
            top_k=32,
            attention_scale_init=8.0,
        ),
        optimizer=OptimizerConfig(
            optimizer="adamw",
            learning_rate=2e-3,
            warmup_steps=500,
            schedule="cosine",
            decay_steps=24_000,
            weight_decay=0.1,
        ),
        batch=128,
        steps=24_000,
        log_interval=100,
        evaluation_interval=4000,
        evaluation_tokens=1_048_576,
        checkpoint_interval=24_000,
    )


def base() -> TrainConfig:
    """The paper's model of 200 million parameters: 32 TPU cores for days."""
    return TrainConfig(
        model=ModelConfig(
            num_layers=12,
            model_dim=1024,
            num_heads=8,
            head_dim=128,
            mlp_dim=4096,
            memory_layers=(8,),
            segment_length=512,
            local_window=512,
            cache_length=512,
            memory_size=8192,
            top_k=32,
        ),
        batch=256,
        steps=500_000,
        checkpoint_interval=5000,
        evaluation_interval=5000,
    )


PRESETS: Final = {preset.__name__: preset for preset in (tiny, demo, base)}
