"""Names, shapes and initial values of a model's parameters (MOD-3, MOD-6).

Parameters are one dictionary, in either of two layouts. *Flat* are the names of
MOD-6, for files, vectors and other implementations. *Stacked* is what training
holds: the layers of a group are one array, such as `layers.0:8.query_kernel` of
[8, E, H, D] for layers 0 to 7, so that neither the program nor the optimizer grows
with the model's depth.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from memorizing_jax import positions
from memorizing_jax.config import ModelConfig
from memorizing_jax.errors import InputError

Parameters = dict[str, jax.Array]


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every parameter, by the names of MOD-6."""
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
    if kind == "embedding":
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
    """Returns the parameters of layer `i`, unless stacked, under their short names."""
    return _below(f"layers.{i}.", parameters)


def of_group(parameters: Parameters, group: range) -> Parameters:
    """Returns the stacked parameters of a group of layers, under their short names.

    Nothing where the parameters are flat.
    """
    return _below(_prefix(group), parameters)


def groups(config: ModelConfig) -> tuple[range, ...]:
    """Returns the layers, in order, in groups: those between two memory layers.

    A memory layer stands alone, so that its memory is written where it is.
    """
    result: list[range] = []
    for i in range(config.num_layers):
        alone = {i - 1, i} & {-1, *config.memory_layers}
        result.append(range(i if alone else result.pop().start, i + 1))
    return tuple(result)


def stack(parameters: Parameters, config: ModelConfig) -> Parameters:
    """Returns parameters in the stacked layout, whichever they have."""
    result = dict(parameters)
    for group in groups(config):
        if len(group) > 1:
            for kind in of_layer(parameters, group[0]):
                arrays = [result.pop(f"layers.{i}.{kind}") for i in group]
                result[_prefix(group) + kind] = jnp.stack(arrays)
    return result


def unstack(parameters: Parameters) -> Parameters:
    """Returns parameters in the flat layout, whichever they have."""
    result: Parameters = {}
    for name, array in parameters.items():
        if stacked := _STACKED.fullmatch(name):
            first, last, kind = stacked.groups()
            for i, of_one in zip(range(int(first), int(last)), array, strict=True):
                result[f"layers.{i}.{kind}"] = of_one
        else:
            result[name] = array
    return result


def group_of(name: str) -> str:
    """Returns the group of layers that a name is stacked over, such as `0:8`.

    Empty for the name of an array that is not stacked.
    """
    stacked = _STACKED.fullmatch(name)
    return "" if stacked is None else f"{stacked[1]}:{stacked[2]}"


_STACKED = re.compile(r"layers\.(\d+):(\d+)\.(\w+)")


def _prefix(group: range) -> str:
    return f"layers.{group.start}:{group.stop}."


def _below(prefix: str, parameters: Parameters) -> Parameters:
    return {
        name.removeprefix(prefix): array
        for name, array in parameters.items()
        if name.startswith(prefix)
    }
