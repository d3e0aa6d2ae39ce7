"""Writes tiny models and their logits as `transformers` computes them.

Needs PyTorch and transformers (transformers 5.24.0 and torch 2.13.0 made what lies
here): `python jax_impl/tests/llama/make_golden.py jax_impl/tests/llama`.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig

# No two sizes alike, and in no model are all heads together as wide as the model.
SIZES = {
    "vocab_size": 61,
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "head_dim": 4,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
}
MODELS = {
    "grouped": {"num_key_value_heads": 2, "rms_norm_eps": 1e-3},
    "every_head": {"num_key_value_heads": 6, "tie_word_embeddings": False},
    "one_head": {"num_key_value_heads": 1, "rope_theta": 300.0, "head_dim": 6},
    "mistral": {"num_key_value_heads": 3, "sliding_window": None},
    "bfloat16": {"num_key_value_heads": 2, "tie_word_embeddings": False},
}
NUM_TOKENS = 40


def main(folder):
    for name, settings in MODELS.items():
        torch.manual_seed(len(name))
        kind = MistralConfig if name == "mistral" else LlamaConfig
        config = kind(**SIZES | settings)
        model = AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():  # Gains start at 1, where a mistake would not show.
            for parameter_name, parameter in model.named_parameters():
                if "norm" in parameter_name:
                    parameter.uniform_(0.5, 1.5)
        if name == "bfloat16":
            model = model.to(torch.bfloat16)
        shard = "20KB" if name == "every_head" else "1GB"
        model.save_pretrained(folder / name, max_shard_size=shard)
        (folder / name / "generation_config.json").unlink(missing_ok=True)
        rng = np.random.default_rng(0)
        tokens = rng.integers(0, config.vocab_size, (1, NUM_TOKENS))
        # Read again: `to` has rounded the table of angles too, which no file holds.
        model = AutoModelForCausalLM.from_pretrained(folder / name, dtype="float32")
        with torch.no_grad():
            logits = model(torch.tensor(tokens)).logits.numpy()
        found = {"tokens": tokens.astype(np.int32), "logits": logits}
        save_file(found, folder / name / "golden.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
