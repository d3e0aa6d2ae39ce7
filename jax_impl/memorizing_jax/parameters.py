"""Names, shapes and initial values of a model's parameters (MOD-3, MOD-6).

Parameters are one flat dictionary, so that a checkpoint, a vector file and
another implementation can name every array the same way.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from memorizing_jax import llama_parameters, positions
from memorizing_jax.config import ModelConfig
from memorizing_jax.errors import InputError
from memorizing_jax.llama_config import LlamaConfig

Parameters = dict[str, jax.Array]


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every parameter, by the names of MOD-6."""
    if isinstance(config, LlamaConfig):
        return llama_parameters.shapes(config)
    embed, heads, dim = config.model_dim, config.num_heads, config.head_dim
    result: dict[str, tuple[int, ...]] = {
        "embedding": (config.vocab_size, embed),
        "final_norm_gain": (embed,),
    }
    for i in range(config.num_layers):
        layer: dict[str, tuple[int, ...]] = {
            "attention_norm_gain": (embed,),
            "query_kernel": (embed, heads, dim),
            "key_kernel": (embed, heads, dim),
            "value_kernel": (embed, heads, dim),
            "output_kernel": (heads, dim, embed),
            "attention_scale": (heads,),
            "relative_bias": (heads, positions.NUM_BUCKETS),
            "mlp_norm_gain": (embed,),
            "mlp_in_kernel": (embed, config.mlp_dim),
            "mlp_out_kernel": (config.mlp_dim, embed),
        }
        if i in config.memory_layers:
            layer["gate_bias"] = (heads,)
        result |= {f"layers.{i}.{name}": shape for name, shape in layer.items()}
    return result


def init(config: ModelConfig, key: jax.Array) -> Parameters:
    """Returns initial parameters in float32 (MOD-3)."""
    by_name = shapes(config)
    keys = jax.random.split(key, len(by_name))
    return {
        name: _initial(name.rpartition(".")[2], shape, config, keys[i])
        for i, (name, shape) in enumerate(by_name.items())
    }


def _initial(
    kind: str, shape: tuple[int, ...], config: ModelConfig, key: jax.Array
) -> jax.Array:
    if kind.endswith("_gain"):
        return jnp.ones(shape, jnp.float32)
    if kind == "attention_scale":
        return jnp.full(shape, config.attention_scale_init, jnp.float32)
    if kind == "gate_bias":
        return jnp.full(shape, config.gate_bias_init, jnp.float32)
    if kind.endswith("embedding"):
        return jax.random.normal(key, shape, jnp.float32)
    if kind == "relative_bias":
        deviation = 1.0 / math.sqrt(positions.NUM_BUCKETS)
        return deviation * jax.random.normal(key, shape, jnp.float32)
    # output_kernel [H, D, E] reads heads and their dimensions; others read axis 0.
    fan_in = math.prod(shape[:-1]) if kind == "output_kernel" else shape[0]
    # What is left of a normal's deviation after cutting it at +-2.
    deviation = 1.0 / math.sqrt(fan_in) / 0.8796256610342398
    return deviation * jax.random.truncated_normal(key, -2.0, 2.0, shape, jnp.float32)


def check(parameters: Mapping[str, Any], config: ModelConfig) -> None:
    """Refuses parameters that do not belong to the configuration.

    Raises:
      InputError: names the missing, surplus or misshapen parameter.
    """
    expected = shapes(config)
    for name, shape in expected.items():
        if name not in parameters:
            raise InputError(f"parameter {name} is missing, expected shape {shape}")
        if tuple(parameters[name].shape) != shape:
            raise InputError(
                f"parameter {name} has shape {tuple(parameters[name].shape)}, "
                f"expected {shape}"
            )
    if surplus := sorted(set(parameters) - set(expected)):
        raise InputError(f"parameter {surplus[0]} belongs to no part of the model")


def of_layer(parameters: Parameters, i: int) -> Parameters:
    """Returns the parameters of layer `i` under their short names."""
    prefix = f"layers.{i}."
    return {
        name.removeprefix(prefix): array
        for name, array in parameters.items()
        if name.startswith(prefix)
    }
