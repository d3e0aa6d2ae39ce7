"""Models of the Llama family in GGUF files, the format of llama.cpp.

Quantized weights are widened once, when the file is read.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from memorizing_jax import llama_config, llama_layout, llama_parameters
from memorizing_jax.errors import InputError
from memorizing_jax.llama_config import LlamaConfig
from memorizing_jax.llama_layout import Dtype
from memorizing_jax.parameters import Parameters

_TOP: Final = {
    "embedding": "token_embd.weight",
    "final_norm_gain": "output_norm.weight",
    "output_embedding": "output.weight",
}
_LAYER: Final = {
    "attention_norm_gain": "attn_norm.weight",
    "query_kernel": "attn_q.weight",
    "key_kernel": "attn_k.weight",
    "value_kernel": "attn_v.weight",
    "output_kernel": "attn_output.weight",
    "mlp_norm_gain": "ffn_norm.weight",
    "mlp_gate_kernel": "ffn_gate.weight",
    "mlp_up_kernel": "ffn_up.weight",
    "mlp_out_kernel": "ffn_down.weight",
}


class GgufFile:
    """A GGUF file, open for reading.

    Args:
      path: the file.

    Raises:
      InputError: the package `gguf` is not installed, or the file is missing, damaged
        or cut short.
    """

    def __init__(self, path: Path):
        self.path = path
        self._library = _library()
        if not path.is_file():
            raise InputError(f"there is no file {path}")
        try:
            reader = self._library.GGUFReader(path)
            self._fields = {name: field for name, field in reader.fields.items()}
            self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        except (ValueError, IndexError, KeyError, OverflowError) as error:
            # The library reads on past the end of the file, and fails as it may.
            raise InputError(
                f"{path} is not a GGUF file, or was cut short ({error})"
            ) from None

    def get(self, name: str, default: Any = None) -> Any:
        """Returns a setting, or `default` where the file has none."""
        return self._fields[name].contents() if name in self._fields else default

    def __getitem__(self, name: str) -> Any:
        """Returns a setting that must be there."""
        if name not in self._fields:
            raise InputError(f"{self.path} lacks the setting {name}; was it altered?")
        return self._fields[name].contents()

    def names(self) -> Iterator[str]:
        """Returns the names of all arrays."""
        return iter(self._tensors)

    def array(self, name: str) -> np.ndarray:
        """Returns an array, `[out, in]`, widened to float32 if it was quantized."""
        if name not in self._tensors:
            raise InputError(f"{self.path} has no array {name}")
        tensor = self._tensors[name]
        try:
            found: np.ndarray = self._library.quants.dequantize(
                tensor.data, tensor.tensor_type
            )
        except NotImplementedError:
            raise InputError(
                f"{self.path} stores {name} as {tensor.tensor_type.name}, which the "
                "package gguf cannot widen"
            ) from None
        return found


def read_config(file: GgufFile) -> LlamaConfig:
    """Returns the sizes that the file states; no layer has a memory yet.

    Raises:
      InputError: a setting is missing, or asks for what is not supported.
    """
    kind = file["general.architecture"]
    if kind != "llama":
        raise InputError(
            f"{file.path} is of architecture {kind!r}; only 'llama' can be read"
        )
    embed, heads = file["llama.embedding_length"], file["llama.attention.head_count"]
    dim = file.get("llama.attention.key_length", embed // heads)
    _refuse_unsupported(file, dim)
    tokens = file["tokenizer.ggml.tokens"]
    return llama_config.without_memory(
        vocab_size=file.get("llama.vocab_size", len(tokens)),
        num_layers=file["llama.block_count"],
        model_dim=embed,
        num_heads=heads,
        num_key_value_heads=file.get("llama.attention.head_count_kv", heads),
        head_dim=dim,
        mlp_dim=file["llama.feed_forward_length"],
        rope_base=file.get("llama.rope.freq_base", 10_000.0),
        norm_epsilon=file["llama.attention.layer_norm_rms_epsilon"],
        tied_embedding=_TOP["output_embedding"] not in file.names(),
        max_positions=file["llama.context_length"],
    )


def _refuse_unsupported(file: GgufFile, head_dim: int) -> None:
    """Refuses by name what would change the result and is not implemented."""
    asked = {
        "llama.rope.scaling.type": ("none", None),
        "llama.rope.scale_linear": (1.0, None),
        "llama.rope.dimension_count": (head_dim, None),
        "llama.attention.value_length": (head_dim, None),
        "llama.attention.sliding_window": (0, None),
        "llama.expert_count": (0, None),
    }
    for name, supported in asked.items():
        if (value := file.get(name)) not in supported:
            raise InputError(
                f"{file.path} asks for {name} {value!r}, which is not supported; it "
                f"can only be {supported[0]!r}"
            )


def read_parameters(file: GgufFile, config: LlamaConfig, dtype: Dtype) -> Parameters:
    """Returns the weights, with queries and keys in the order of PRE-8.

    Args:
      file: of the model.
      config: as `read_config` returned it.
      dtype: of the result.

    Raises:
      InputError: an array is missing, surplus, misshapen or not finite.
    """
    names = {_published(name) for name in llama_parameters.shapes(config)}
    if surplus := sorted(set(file.names()) - names):
        raise InputError(
            f"{file.path} has an array {surplus[0]}, which is not supported"
        )

    def read(name: str) -> np.ndarray:
        found = file.array(_published(name))
        if name.endswith(("query_kernel", "key_kernel")):
            return _halves(found, config.head_dim)
        return found

    return llama_layout.arrange(read, config, dtype)


def _published(name: str) -> str:
    """Returns the name under which files hold a parameter."""
    if name in _TOP:
        return _TOP[name]
    _, layer, kind = name.split(".")
    return f"blk.{layer}.{_LAYER[kind]}"


def _halves(found: np.ndarray, head_dim: int) -> np.ndarray:
    """Moves the two components of each rotated pair from side by side to half apart."""
    if len(found) % head_dim:
        return found  # Of a wrong shape, which `arrange` refuses.
    pairs = found.reshape(-1, head_dim // 2, 2, *found.shape[1:])
    return pairs.swapaxes(1, 2).reshape(found.shape)


def _library() -> Any:
    try:
        import gguf
    except ImportError:
        raise InputError(
            "GGUF files need the package gguf; install it, or this package with its "
            "extra pretrained"
        ) from None
    return gguf
