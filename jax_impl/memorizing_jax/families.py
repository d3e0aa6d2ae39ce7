"""The families of models behind one door: which functions run a configuration."""

from collections.abc import Callable
from typing import Any, NamedTuple

from memorizing_jax import decode, llama_decode, llama_model, model
from memorizing_jax.config import ModelConfig
from memorizing_jax.llama_config import LlamaConfig


class Family(NamedTuple):
    """What `model` and `decode` offer, whichever the family."""

    init_state: Callable[..., Any]
    forward: Callable[..., Any]
    reset: Callable[..., Any]
    read: Callable[..., Any]
    insert: Callable[..., Any]
    init_decode_state: Callable[..., Any]
    from_segments: Callable[..., Any]
    decode_step: Callable[..., Any]
    read_token: Callable[..., Any]


_PAPER = Family(
    model.init_state,
    model.forward,
    model.reset,
    model.read,
    model.insert,
    decode.init_decode_state,
    decode.from_segments,
    decode.decode_step,
    decode.read_token,
)
_LLAMA = Family(
    llama_model.init_state,
    llama_model.forward,
    llama_model.reset,
    llama_model.read,
    llama_model.insert,
    llama_decode.init_decode_state,
    llama_decode.from_segments,
    llama_decode.decode_step,
    llama_decode.read_token,
)


def of(config: ModelConfig) -> Family:
    """Returns the functions that belong to a configuration."""
    return _LLAMA if isinstance(config, LlamaConfig) else _PAPER
