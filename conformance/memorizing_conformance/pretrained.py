"""Small models of the Llama family, and what they compute without memory."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from memorizing_conformance.implementation import Arrays, StreamSegment
from memorizing_conformance.models import Config, changed

# All sizes differ. Three of six query heads share a key-value head; sinks are still in
# the cache when the second segment of a document begins, and not when the third does.
JOINT: Final[Config] = {
    "family": "llama",
    "vocab_size": 41,
    "num_layers": 3,
    "model_dim": 12,
    "num_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "mlp_dim": 17,
    "rope_base": 50.0,
    "norm_epsilon": 1e-5,
    "tied_embedding": True,
    "memory_layers": (0, 2),
    "memory_size": 16,
    "top_k": 5,
    "memory_distance": 19,
    "combination": "joint",
    "num_sinks": 3,
    "local_window": 13,
    "cache_length": 8,
    "segment_length": 6,
}
GATED: Final[Config] = {**JOINT, "combination": "gate", "local_window": 9}
# Memory keeps and finds all of a document of the suite.
EVERYTHING: Final = {"memory_size": 43, "top_k": 43}
# No position is ever dropped, so this is the model as it was trained.
ORDINARY: Final[Config] = {
    **JOINT,
    "tied_embedding": False,
    "memory_layers": (),
    "local_window": 50,
    "cache_length": 46,
}
# What is read comes from the local context alone.
LOCAL: Final[Config] = {**JOINT, "memory_layers": ()}
# With this base only the first pair of components turns at all.
STILL: Final = 1e30


def without_positions(parameters: Arrays, config: Config) -> Arrays:
    """Returns parameters that, with `rope_base` STILL, do not notice any rotation."""
    first = [0, config["head_dim"] // 2]

    def silenced(kernel: np.ndarray) -> np.ndarray:
        kernel = kernel.copy()
        kernel[:, :, first] = 0
        return kernel

    return changed(parameters, "query_kernel", silenced)


def one_layer_attends(parameters: Arrays) -> Arrays:
    """Returns parameters with which only layer 0 attends.

    Its keys and values depend on their token alone, so a token shows in the logits
    of another position only if that one sees it.
    """
    for name in ("layers.1.output_kernel", "layers.2.output_kernel"):
        parameters = changed(parameters, name, 0)
    return parameters


def local_positions(config: Config, num_read: int, length: int) -> list[int]:
    """Returns which positions a segment's local context holds (PRE-3, PRE-4).

    Args:
      config: sizes.
      num_read: tokens of the document before the segment.
      length: tokens of the segment.
    """
    oldest = num_read - config["cache_length"]
    return [
        t for t in range(num_read + length) if t < config["num_sinks"] or t >= oldest
    ]


def cut_at(
    config: Config, document: np.ndarray, lengths: Sequence[int]
) -> list[StreamSegment]:
    """Returns one row's segments of a document, padded from the given lengths on."""
    assert sum(lengths) == len(document)
    segments, first = [], 0
    for length in lengths:
        tokens = np.zeros((1, config["segment_length"]), np.int64)
        tokens[0, :length] = document[first : first + length]
        start, num_tokens = np.array([first == 0]), np.array([length])
        segments.append((tokens, start, num_tokens, tokens, num_tokens))
        first += length
    return segments


def grouped_as_ungrouped(parameters: Arrays, config: Config) -> Arrays:
    """Returns parameters in which each query head has keys and values of its own."""
    group = config["num_heads"] // config["num_key_value_heads"]
    result = dict(parameters)
    for name, array in parameters.items():
        if name.endswith(("key_kernel", "value_kernel")):
            result[name] = np.repeat(array, group, axis=1)
    return result


def logits_of_llama(
    config: Config, parameters: Arrays, tokens: np.ndarray
) -> np.ndarray:
    """Returns the logits of full attention over one document, [length, vocab_size].

    Written out here, apart from the reference, in float64 and with complex numbers
    (PRE-7 to PRE-9).
    """
    p = {name: array.astype(np.float64) for name, array in parameters.items()}
    group = config["num_heads"] // config["num_key_value_heads"]
    x = p["embedding"][tokens]
    causal = np.tril(np.ones((len(tokens), len(tokens)), bool))
    for i in range(config["num_layers"]):
        layer = {
            n.split(".")[2]: a for n, a in p.items() if n.startswith(f"layers.{i}.")
        }
        normed = _normed(x, layer["attention_norm_gain"], config)
        for head in range(config["num_heads"]):
            query = _turned(normed @ layer["query_kernel"][:, head], config)
            key = _turned(normed @ layer["key_kernel"][:, head // group], config)
            value = normed @ layer["value_kernel"][:, head // group]
            scores = (query[:, None] * key[None].conj()).real.sum(-1)
            weights = np.where(causal, np.exp(scores / config["head_dim"] ** 0.5), 0)
            read = weights @ value / weights.sum(-1, keepdims=True)
            x = x + read @ layer["output_kernel"][head]
        normed = _normed(x, layer["mlp_norm_gain"], config)
        gate = normed @ layer["mlp_gate_kernel"]
        inside = gate / (1 + np.exp(-gate)) * (normed @ layer["mlp_up_kernel"])
        x = x + inside @ layer["mlp_out_kernel"]
    output = p["embedding" if config["tied_embedding"] else "output_embedding"]
    return np.asarray(_normed(x, p["final_norm_gain"], config) @ output.T)


def _turned(x: np.ndarray, config: Config) -> np.ndarray:
    half = x.shape[1] // 2
    slower = config["rope_base"] ** (-2.0 * np.arange(half) / x.shape[1])
    angle = np.arange(len(x))[:, None] * slower
    return np.asarray((x[:, :half] + 1j * x[:, half:]) * np.exp(1j * angle))


def _normed(x: np.ndarray, gain: np.ndarray, config: Config) -> np.ndarray:
    mean_square = (x**2).mean(-1, keepdims=True)
    return np.asarray(x / np.sqrt(mean_square + config["norm_epsilon"]) * gain)
