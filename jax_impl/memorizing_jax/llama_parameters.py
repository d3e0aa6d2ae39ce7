"""Names and shapes of the parameters of the Llama family, in the manner of MOD-6."""

from memorizing_jax.llama_config import LlamaConfig


def shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every parameter."""
    embed, dim, inner = config.model_dim, config.head_dim, config.mlp_dim
    heads, few = config.num_heads, config.num_key_value_heads
    result: dict[str, tuple[int, ...]] = {
        "embedding": (config.vocab_size, embed),
        "final_norm_gain": (embed,),
    }
    if not config.tied_embedding:
        result["output_embedding"] = (config.vocab_size, embed)
    for i in range(config.num_layers):
        layer: dict[str, tuple[int, ...]] = {
            "attention_norm_gain": (embed,),
            "query_kernel": (embed, heads, dim),
            "key_kernel": (embed, few, dim),
            "value_kernel": (embed, few, dim),
            "output_kernel": (heads, dim, embed),
            "mlp_norm_gain": (embed,),
            "mlp_gate_kernel": (embed, inner),
            "mlp_up_kernel": (embed, inner),
            "mlp_out_kernel": (inner, embed),
        }
        if config.combination == "gate" and i in config.memory_layers:
            layer["gate_bias"] = (heads,)
        result |= {f"layers.{i}.{name}": shape for name, shape in layer.items()}
    return result
