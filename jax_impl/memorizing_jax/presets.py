"""Settings to start from, small and real."""

from typing import Any, Final

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
    return _of_paper(
        num_layers=12,
        model_dim=1024,
        num_heads=8,
        mlp_dim=4096,
        memory_layers=(8,),
    )


def one_billion() -> TrainConfig:
    """The paper's model of a billion parameters; the memory layer is our choice."""
    return _of_paper(
        num_layers=8,
        model_dim=2048,
        num_heads=32,
        mlp_dim=16_384,
        memory_layers=(5,),
    )


def eight_billion() -> TrainConfig:
    """The paper's largest model; its sizes come from one write-up only.

    The memory layer is our choice: like that of `base` at three quarters of the depth.
    """
    return _of_paper(
        num_layers=16,
        model_dim=4096,
        num_heads=64,
        mlp_dim=32_768,
        memory_layers=(11,),
    )


def _of_paper(**sizes: Any) -> TrainConfig:
    """Returns settings that all models of the paper share: 2^17 tokens a step.

    Its schedule and Adafactor are the defaults of `OptimizerConfig`. Activations and
    pairs are bfloat16, as TPUs multiply in any case.
    """
    return TrainConfig(
        model=ModelConfig(
            vocab_size=32_000,
            head_dim=128,
            segment_length=512,
            local_window=512,
            cache_length=512,
            memory_size=8192,
            top_k=32,
            compute_dtype="bfloat16",
            memory_dtype="bfloat16",
            rematerialize=True,
            **sizes,
        ),
        batch=256,
        steps=500_000,
        checkpoint_interval=5000,
        evaluation_interval=5000,
    )


PRESETS: Final = {
    "tiny": tiny,
    "demo": demo,
    "base": base,
    "1b": one_billion,
    "8b": eight_billion,
}
