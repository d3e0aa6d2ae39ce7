"""Names, shapes and initial values of a model's parameters (MOD-3, MOD-6, PRE-10)."""

import math

import numpy as np

from memorizing_reference import positions
from memorizing_reference.config import ModelConfig, PretrainedConfig

Parameters = dict[str, np.ndarray]


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every parameter, by the names of MOD-6 or PRE-10."""
    embed = config.model_dim
    result: dict[str, tuple[int, ...]] = {
        "embedding": (config.vocab_size, embed),
        "final_norm_gain": (embed,),
    }
    if isinstance(config, PretrainedConfig) and not config.tied_embedding:
        result["output_embedding"] = (config.vocab_size, embed)
    for i in range(config.num_layers):
        if isinstance(config, PretrainedConfig):
            layer = _pretrained_layer(config)
            has_gate = config.combination == "gate"
        else:
            layer = _layer(config)
            has_gate = True
        if has_gate and i in config.memory_layers:
            layer["gate_bias"] = (config.num_heads,)
        result |= {f"layers.{i}.{name}": shape for name, shape in layer.items()}
    return result


def _layer(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    embed, heads = config.model_dim, config.num_heads
    return {
        **_projections(config, heads),
        "attention_scale": (heads,),
        "relative_bias": (heads, positions.NUM_BUCKETS),
        "mlp_norm_gain": (embed,),
        "mlp_in_kernel": (embed, config.mlp_dim),
        "mlp_out_kernel": (config.mlp_dim, embed),
    }


def _pretrained_layer(config: PretrainedConfig) -> dict[str, tuple[int, ...]]:
    embed = config.model_dim
    return {
        **_projections(config, config.num_key_value_heads),
        "mlp_norm_gain": (embed,),
        "mlp_gate_kernel": (embed, config.mlp_dim),
        "mlp_up_kernel": (embed, config.mlp_dim),
        "mlp_out_kernel": (config.mlp_dim, embed),
    }


def _projections(
    config: ModelConfig, num_key_value_heads: int
) -> dict[str, tuple[int, ...]]:
    embed, heads, dim = config.model_dim, config.num_heads, config.head_dim
    return {
        "attention_norm_gain": (embed,),
        "query_kernel": (embed, heads, dim),
        "key_kernel": (embed, num_key_value_heads, dim),
        "value_kernel": (embed, num_key_value_heads, dim),
        "output_kernel": (heads, dim, embed),
    }


def init(
    config: ModelConfig, seed: int, dtype: type[np.floating] = np.float32
) -> Parameters:
    """Returns initial parameters (MOD-3).

    Those of a pre-trained model come with it; drawing them is for experiments.
    """
    rng = np.random.default_rng(seed)
    return {
        name: _initial(name.rpartition(".")[2], shape, config, rng).astype(dtype)
        for name, shape in shapes(config).items()
    }


def _initial(
    kind: str, shape: tuple[int, ...], config: ModelConfig, rng: np.random.Generator
) -> np.ndarray:
    if kind.endswith("_gain"):
        return np.ones(shape)
    if kind == "attention_scale":
        return np.full(shape, config.attention_scale_init)
    if kind == "gate_bias":
        return np.full(shape, config.gate_bias_init)
    if kind.endswith("embedding"):
        return rng.standard_normal(shape)
    if kind == "relative_bias":
        return rng.standard_normal(shape) / math.sqrt(positions.NUM_BUCKETS)
    # output_kernel [H, D, E] reads heads and their dimensions; others read axis 0.
    fan_in = math.prod(shape[:-1]) if kind == "output_kernel" else shape[0]
    return _truncated_normal(shape, rng) / math.sqrt(fan_in)


def _truncated_normal(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Draws a normal variable cut at two deviations, rescaled to variance 1."""
    x = rng.standard_normal(shape)
    while (outside := np.abs(x) > 2.0).any():
        x[outside] = rng.standard_normal(int(outside.sum()))
    # The deviation that is left after cutting a standard normal at +-2.
    return x / 0.8796256610342398


def check(parameters: Parameters, config: ModelConfig) -> None:
    """Refuses parameters that do not belong to the configuration.

    Raises:
      ValueError: names the missing, surplus or misshapen parameter.
    """
    expected = shapes(config)
    for name, shape in expected.items():
        if name not in parameters:
            raise ValueError(f"parameter {name} is missing, expected shape {shape}")
        if parameters[name].shape != shape:
            raise ValueError(
                f"parameter {name} has shape {parameters[name].shape}, expected {shape}"
            )
    if surplus := sorted(set(parameters) - set(expected)):
        raise ValueError(f"parameter {surplus[0]} belongs to no part of the model")
