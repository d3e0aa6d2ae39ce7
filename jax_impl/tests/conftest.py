"""Strict arithmetic for every test, and a data set small enough to train on."""

import dataclasses
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import pytest

from memorizing_data import token_files
from memorizing_jax.config import ModelConfig
from memorizing_jax.train_config import OptimizerConfig, TrainConfig

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


def pytest_configure(config):
    """Keeps what was compiled, for other processes and for the next run."""
    kept = str(config.cache.mkdir("compiled"))
    jax.config.update("jax_compilation_cache_dir", kept)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = kept
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"


VOCAB_SIZE = 256
# Lengths around multiples of the segment length 8, single tokens among them.
LENGTHS = {
    "train": (40, 1, 8, 23, 9, 65, 7, 16),
    "validation": (1, 17, 40, 8),
    "test": (50, 1, 2, 24),
}


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """Returns the folder of a data set of bytes."""
    return make_dataset(tmp_path_factory.mktemp("data") / "tokens", seed=0)


def make_dataset(folder, seed):
    folder.mkdir()
    rng = np.random.default_rng(seed)
    splits = {}
    for split, lengths in LENGTHS.items():
        documents = (
            token_files.EncodedDocument(f"{split}/{i}", rng.integers(65, 91, n), n)
            for i, n in enumerate(lengths)
        )
        splits[split] = token_files.write_split(folder, split, documents, VOCAB_SIZE)
    tokenizer = {"kind": "bytes", "vocab_size": 256, "file": None, "sha256": None}
    token_files.write_manifest(folder, tokenizer, splits)
    return folder


@pytest.fixture(scope="session")
def small():
    """Returns settings of a run of seconds; all sizes differ."""
    return TrainConfig(
        model=ModelConfig(
            vocab_size=VOCAB_SIZE,
            num_layers=3,
            model_dim=12,
            num_heads=2,
            head_dim=5,
            mlp_dim=17,
            memory_layers=(2,),
            segment_length=8,
            local_window=7,
            cache_length=6,
            memory_size=19,
            top_k=4,
            search="exact",
        ),
        optimizer=OptimizerConfig(
            optimizer="adamw", learning_rate=1e-2, warmup_steps=3
        ),
        batch=3,
        steps=10,
        log_interval=2,
        evaluation_interval=4,
        evaluation_tokens=90,
        checkpoint_interval=4,
    )


@pytest.fixture
def no_validation(small):
    """Returns the same settings, for tests that only look at training."""
    return dataclasses.replace(small, evaluation_interval=0)
