"""Which tokens gained most from memory, and what was retrieved for them."""

import dataclasses
import textwrap
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from memorizing_data.token_files import TokenFiles
from memorizing_data.tokenizer import Tokenizer
from memorizing_jax import model
from memorizing_jax.evaluate import Evaluation
from memorizing_jax.parameter_files import Trained


@dataclasses.dataclass(frozen=True)
class Gain:
    """A token that memory made easier to predict.

    Attributes:
      document: its index in the split.
      offset: its place in the document.
      before: its loss with no memory, in nats.
      after: its loss with memory, same parameters.
    """

    document: int
    offset: int
    before: float
    after: float


def largest_gains(without: Evaluation, with_memory: Evaluation, count: int) -> list:
    """Returns the tokens that gained most, at most one per document."""
    best = []
    for document, before, after in zip(
        without.documents, without.nats, with_memory.nats, strict=True
    ):
        place = int(np.argmax(before - after))
        # Losses start with a document's second token.
        best.append(
            Gain(document, place + 1, float(before[place]), float(after[place]))
        )
    best.sort(key=lambda gain: gain.after - gain.before)
    return best[:count]


def describe(gain: Gain, trained: Trained, files: TokenFiles, text: Tokenizer) -> str:
    """Returns the token in its context, and the passage that memory found for it."""
    offset, weight = _most_read(gain, trained, files)
    name = files.documents[gain.document].name
    tokens = files.tokens(gain.document)

    def passage(first: int, marked: int, last: int) -> str:
        before = text.decode(tokens[max(0, first) : marked])
        after = text.decode(tokens[marked + 1 : last])
        shown = f"{before}>>>{text.decode(tokens[marked : marked + 1])}<<<{after}"
        return textwrap.indent(shown, "    | ")

    here = passage(gain.offset - 40, gain.offset, gain.offset + 1)
    # A pair helps by what followed it.
    there = passage(offset - 30, offset + 1, offset + 12)
    return (
        f"{name}, token {gain.offset:,}: {gain.before:.2f} nats without memory, "
        f"{gain.after:.2f} with\n{here}\n"
        f"  read most, {gain.offset - offset - 1:,} tokens back, weight {weight:.2f}\n"
        f"{there}\n"
    )


def _most_read(gain: Gain, trained: Trained, files: TokenFiles) -> tuple[int, float]:
    """Returns the offset of the pair that the token's query read most, and how much."""
    config = trained.model
    query = gain.offset - 1  # A token is predicted where the one before it is read.
    start = query // config.segment_length * config.segment_length
    # The keys of a memory layer depend on what the layers below it saw.
    reach = config.num_layers * (config.local_window + config.cache_length)
    first = max(0, start - config.memory_size - reach)
    first -= first % config.segment_length

    state = model.init_state(config, batch=1)
    for tokens, opens in _segments(
        files.tokens(gain.document, first, query + 1), config
    ):
        before = state
        count = jnp.full(1, len(tokens), jnp.int32)
        padded = np.zeros((1, config.segment_length), np.int32)
        padded[0, : len(tokens)] = tokens
        _, state, retrieved = _forward(
            trained.parameters, state, padded, jnp.full(1, opens), count, config
        )
    layer = config.memory_layers[0]
    gate = jax.nn.sigmoid(trained.parameters[f"layers.{layer}.gate_bias"])
    weights = np.asarray(retrieved[layer].weights[0, :, query - start] * gate[:, None])
    head, neighbor = np.unravel_index(weights.argmax(), weights.shape)
    slot = int(retrieved[layer].slots[0, head, query - start, neighbor])
    written = int(before.memories[0].num_written[0])
    # The newest pair that is in this slot: pair t is in slot t mod memory_size.
    pair = written - 1 - (written - 1 - slot) % config.memory_size
    return first + pair, float(weights[head, neighbor])


def _segments(tokens: np.ndarray, config: model.ModelConfig) -> Iterator[tuple]:
    for first in range(0, len(tokens), config.segment_length):
        yield tokens[first : first + config.segment_length], first == 0


_forward = jax.jit(model.forward, static_argnums=5)
