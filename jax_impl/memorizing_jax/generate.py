"""Text that goes on from a prompt, token by token (GEN-1)."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from memorizing_jax import families, model
from memorizing_jax.config import ModelConfig
from memorizing_jax.decode import DecodeState
from memorizing_jax.errors import InputError
from memorizing_jax.layers import Retrieved
from memorizing_jax.parameters import Parameters

# By memory layer: slots and weights of a query's neighbors, each [num_heads, top_k].
Looked = dict[int, tuple[Any, Any]]


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is drawn."""

    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest token."""
    likeliest: int = 0
    """Draw from this many likeliest tokens only; 0 for all."""
    top_p: float = 1.0
    """Draw from the fewest likeliest tokens that hold this share of probability."""
    seed: int = 0
    """Equal seeds draw equal tokens."""

    def __post_init__(self) -> None:
        """Refuses settings that draw nothing."""
        if not 0.0 <= self.temperature < float("inf"):
            raise InputError(f"temperature is {self.temperature}, must be 0 or more")
        for name in ("likeliest", "seed"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}, must be 0 or more")
        if not 0.0 < self.top_p <= 1.0:
            raise InputError(f"top_p is {self.top_p}, must be above 0 and at most 1")


def generate(
    params: Parameters,
    config: ModelConfig,
    prompt: npt.NDArray[np.int32],
    num_tokens: int,
    sampling: Sampling,
    on_retrieved: Callable[[Looked], object] | None = None,
) -> Iterator[int]:
    """Yields the tokens that follow a prompt, one after the other.

    The prompt opens a document. Its whole segments are read at once, so that it may
    be as long as any document.

    Args:
      params: by the names of MOD-6.
      config: the model's sizes; memory and search need not be those of training.
      prompt: at least one token.
      num_tokens: how many tokens to yield.
      sampling: how they are drawn.
      on_retrieved: told before each token what the query that predicted it read.

    Raises:
      InputError: the prompt is empty or holds a token that the model does not know.
    """
    if not len(prompt):
        raise InputError("the prompt is empty; give at least one character")
    if not 0 <= prompt.min() <= prompt.max() < config.vocab_size:
        raise InputError(
            f"the prompt has tokens from {prompt.min()} to {prompt.max()}, and the "
            f"model knows 0 to {config.vocab_size - 1}"
        )
    logits, state, retrieved = _read(params, config, prompt)
    key = jax.random.key(sampling.seed)
    for i in range(num_tokens):
        token = sample(logits, jax.random.fold_in(key, i), sampling)
        if on_retrieved is not None:
            on_retrieved(jax.device_get(retrieved))
        yield int(token[0])
        if i + 1 < num_tokens:
            logits, state, retrieved = _step(
                params, state, token, jnp.zeros(1, bool), config
            )


@functools.partial(jax.jit, static_argnames="sampling")
def sample(logits: jax.Array, key: jax.Array, sampling: Sampling) -> jax.Array:
    """Draws a token for every row.

    Args:
      logits: [batch, vocab_size], float32.
      key: PRNG key of this draw.
      sampling: how to draw.

    Returns:
      [batch], int32.
    """
    if sampling.temperature == 0.0:
        return logits.argmax(axis=-1).astype(jnp.int32)
    # Best first, so that both limits keep a head of the list.
    tokens = jnp.argsort(logits, axis=-1, descending=True)
    ordered = jnp.take_along_axis(logits, tokens, axis=-1) / sampling.temperature
    probability = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probability, axis=-1) - probability
    rank = jnp.arange(logits.shape[-1])[None, :]
    # The likeliest stays, whatever rounding says of the sum before it.
    kept = (before < sampling.top_p) | (rank == 0)
    if sampling.likeliest:
        kept &= rank < sampling.likeliest
    drawn = jax.random.categorical(key, jnp.where(kept, ordered, -jnp.inf), axis=-1)
    return jnp.take_along_axis(tokens, drawn[:, None], axis=-1)[:, 0].astype(jnp.int32)


def _read(
    params: Parameters, config: ModelConfig, prompt: npt.NDArray[np.int32]
) -> tuple[jax.Array, DecodeState, Looked]:
    """Returns the logits after a prompt, the state to decode from, what was read."""
    family = families.of(config)
    state = family.init_state(config, 1)
    length = config.segment_length
    whole = len(prompt) // length * length
    for first in range(0, whole, length):
        segment = jnp.asarray(prompt[None, first : first + length])
        start = jnp.array([not first])
        logits, state, retrieved = _segment(params, state, segment, start, config)
    decoding = family.from_segments(state, config)
    for i in range(whole, len(prompt)):
        token, start = jnp.asarray(prompt[i : i + 1]), jnp.array([not i])
        logits, decoding, retrieved = _step(params, decoding, token, start, config)
    return logits, decoding, retrieved


@functools.partial(jax.jit, static_argnames="config", donate_argnames="state")
def _segment(
    params: Parameters,
    state: model.State,
    tokens: jax.Array,
    start_of_document: jax.Array,
    config: ModelConfig,
) -> tuple[jax.Array, model.State, Looked]:
    num_tokens = jnp.full(tokens.shape[0], tokens.shape[1], jnp.int32)
    logits, state, retrieved = families.of(config).forward(
        params, state, tokens, start_of_document, num_tokens, config
    )
    return logits[:, -1], state, _newest(retrieved)


@functools.partial(jax.jit, static_argnames="config", donate_argnames="state")
def _step(
    params: Parameters,
    state: DecodeState,
    token: jax.Array,
    start_of_document: jax.Array,
    config: ModelConfig,
) -> tuple[jax.Array, DecodeState, Looked]:
    step = families.of(config).read_token
    logits, state, retrieved = step(params, state, token, start_of_document, config)
    return logits, state, _newest(retrieved)


def _newest(retrieved: dict[int, Retrieved]) -> Looked:
    """Returns what the last position of the only row read."""
    return {
        i: (found.slots[0, :, -1], found.weights[0, :, -1])
        for i, found in retrieved.items()
    }
