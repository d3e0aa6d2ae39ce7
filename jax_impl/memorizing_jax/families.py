"""The families of models behind one door: which module runs a configuration."""

from types import ModuleType

from memorizing_jax import llama_model, model
from memorizing_jax.config import ModelConfig
from memorizing_jax.llama_config import LlamaConfig


def of(config: ModelConfig) -> ModuleType:
    """Returns the module whose `init_state` and `forward` belong to a configuration."""
    return llama_model if isinstance(config, LlamaConfig) else model
