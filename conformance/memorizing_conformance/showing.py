"""A pre-trained model that shows what it sees, so that it can be said by hand.

Its queries are zero, so whatever is visible has equal weight. A token stands in the
first half of the residual stream, what attention reads of other tokens in the second,
and the logits show the second half alone. In a document without repetition a logit
then says how much weight its token's position had.
"""

from typing import Final

import numpy as np

from memorizing_conformance.implementation import Arrays
from memorizing_conformance.models import Config
from memorizing_conformance.pretrained import JOINT


def config_of(vocab_size: int, **sizes: object) -> Config:
    """Returns a configuration of one layer, which has a memory."""
    return {
        **JOINT,
        "vocab_size": vocab_size,
        "num_layers": 1,
        "memory_layers": (0,),
        "model_dim": 2 * vocab_size,
        "num_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": vocab_size,
        "mlp_dim": 1,
        "tied_embedding": False,
        **sizes,
    }


CONFIG: Final[Config] = config_of(36)


def parameters_of(config: Config) -> Arrays:
    """Returns the parameters of such a model; its gate, if it has one, is 1/4."""
    size = config["vocab_size"]
    one, none = np.eye(size), np.zeros((size, size))
    layer = {
        "attention_norm_gain": np.ones(2 * size),
        "query_kernel": np.zeros((2 * size, 1, size)),
        "key_kernel": np.concatenate([one, none])[:, None, :],
        "value_kernel": np.concatenate([one, none])[:, None, :],
        "output_kernel": np.concatenate([none, one], axis=1)[None],
        "mlp_norm_gain": np.ones(2 * size),
        "mlp_gate_kernel": np.zeros((2 * size, 1)),
        "mlp_up_kernel": np.zeros((2 * size, 1)),
        "mlp_out_kernel": np.zeros((1, 2 * size)),
    }
    if config["combination"] == "gate":
        layer["gate_bias"] = -np.log([3.0])
    parameters = {
        "embedding": np.concatenate([one, none], axis=1),
        "output_embedding": np.concatenate([none, one], axis=1),
        "final_norm_gain": np.ones(2 * size),
        **{f"layers.0.{name}": array for name, array in layer.items()},
    }
    return {name: array.astype(np.float32) for name, array in parameters.items()}


def logits_of(config: Config, weights: np.ndarray) -> np.ndarray:
    """Returns the logits that show weights, [position, token].

    A token's value is what rms_norm leaves of its 1: `1 / sqrt(1 / E + epsilon)`.
    """
    width, epsilon = config["model_dim"], config["norm_epsilon"]
    read = weights / np.sqrt(1 / width + epsilon)
    mean_square = (1 + (read**2).sum(axis=-1, keepdims=True)) / width
    return np.asarray(read / np.sqrt(mean_square + epsilon))
