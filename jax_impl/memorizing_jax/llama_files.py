"""Models of the Llama family in the files of Hugging Face.

A folder with config.json, the tokenizer's tokenizer.json, and the weights in
model.safetensors, or in several such files that model.safetensors.index.json names.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import safetensors

from memorizing_jax import llama_config, llama_layout, llama_parameters
from memorizing_jax.errors import InputError
from memorizing_jax.llama_config import LlamaConfig
from memorizing_jax.llama_layout import Dtype
from memorizing_jax.parameters import Parameters

WEIGHTS: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
# Architectures that are one model where `_refuse_unsupported` lets them pass.
MODEL_TYPES: Final = ("llama", "mistral")

_TOP: Final = {
    "embedding": "model.embed_tokens.weight",
    "final_norm_gain": "model.norm.weight",
    "output_embedding": "lm_head.weight",
}
_LAYER: Final = {
    "attention_norm_gain": "input_layernorm.weight",
    "query_kernel": "self_attn.q_proj.weight",
    "key_kernel": "self_attn.k_proj.weight",
    "value_kernel": "self_attn.v_proj.weight",
    "output_kernel": "self_attn.o_proj.weight",
    "mlp_norm_gain": "post_attention_layernorm.weight",
    "mlp_gate_kernel": "mlp.gate_proj.weight",
    "mlp_up_kernel": "mlp.up_proj.weight",
    "mlp_out_kernel": "mlp.down_proj.weight",
}


def read_config(folder: Path) -> LlamaConfig:
    """Returns the sizes that config.json states; no layer has a memory yet.

    Raises:
      InputError: it is missing or damaged, or asks for what is not supported.
    """
    path = folder / "config.json"
    fields = _json(path)
    _refuse_unsupported(path, fields)
    try:
        heads = fields["num_attention_heads"]
        return llama_config.without_memory(
            vocab_size=fields["vocab_size"],
            num_layers=fields["num_hidden_layers"],
            model_dim=fields["hidden_size"],
            num_heads=heads,
            num_key_value_heads=fields.get("num_key_value_heads") or heads,
            head_dim=fields.get("head_dim") or fields["hidden_size"] // heads,
            mlp_dim=fields["intermediate_size"],
            rope_base=_rope(fields).get("rope_theta", 10_000.0),
            norm_epsilon=fields["rms_norm_eps"],
            tied_embedding=fields.get("tie_word_embeddings", False),
            max_positions=fields["max_position_embeddings"],
        )
    except KeyError as error:
        raise InputError(f"{path} lacks {error}; was it altered?") from None
    except (TypeError, ZeroDivisionError) as error:
        raise InputError(f"{path} has an impossible setting: {error}") from None


def _refuse_unsupported(path: Path, fields: dict[str, Any]) -> None:
    """Refuses by name what would change the result and is not implemented."""
    layers = fields.get("layer_types") or []
    rope = _rope(fields)
    window = fields.get("sliding_window")
    if not fields.get("use_sliding_window", True):
        window = None
    asked = {
        "model_type": (fields.get("model_type"), MODEL_TYPES),
        "hidden_act": (fields.get("hidden_act", "silu"), ("silu", "swish")),
        "attention_bias": (fields.get("attention_bias", False), (False,)),
        "mlp_bias": (fields.get("mlp_bias", False), (False,)),
        "rope scaling": (next(iter(_rope_kinds(fields)), None), (None,)),
        "partial_rotary_factor": (rope.get("partial_rotary_factor", 1.0), (1.0,)),
        "sliding_window": (window, (None,)),
        "layer_types": (
            next((kind for kind in layers if kind != "full_attention"), None),
            (None,),
        ),
        "quantization_config": (fields.get("quantization_config"), (None,)),
    }
    for name, (value, supported) in asked.items():
        if value not in supported:
            choices = " or ".join(repr(choice) for choice in supported)
            raise InputError(
                f"{path} asks for {name} {value!r}, which is not supported; it can "
                f"only be {choices}"
            )


def _rope(fields: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings of rotary positions, wherever they stand."""
    found = {
        name: fields[name]
        for name in ("rope_theta", "partial_rotary_factor")
        if fields.get(name) is not None
    }
    return found | (fields.get("rope_parameters") or {})


def _rope_kinds(fields: dict[str, Any]) -> set[Any]:
    """Returns how positions are scaled, by the old setting and by the new."""
    both = [fields.get(name) or {} for name in ("rope_scaling", "rope_parameters")]
    kinds = {one.get("rope_type", one.get("type", "default")) for one in both}
    return kinds - {"default"}


def read_parameters(folder: Path, config: LlamaConfig, dtype: Dtype) -> Parameters:
    """Returns the weights.

    Args:
      folder: of the model.
      config: as `read_config` returned it.
      dtype: of the result, whatever the files hold.

    Raises:
      InputError: a file is missing, damaged or cut short, or an array is missing,
        surplus, misshapen or not finite.
    """
    with _opened(folder) as file_of:
        names = {_published(name) for name in llama_parameters.shapes(config)}
        allowed = names | {"lm_head.weight"}

        def read(name: str) -> np.ndarray:
            published = _published(name)
            if published not in file_of:
                raise InputError(f"{folder} has no array {published}")
            array: np.ndarray = file_of[published].get_tensor(published)
            return array

        for published in sorted(set(file_of) - allowed):
            # Files of old versions carry this table, which follows from the base.
            if not published.endswith("rotary_emb.inv_freq"):
                raise InputError(
                    f"{folder} has an array {published}, which is not supported"
                )
        return llama_layout.arrange(read, config, dtype)


def weight_files(folder: Path) -> list[Path]:
    """Returns the files that hold the weights, in order of their names.

    Raises:
      InputError: the index is damaged.
    """
    path = folder / INDEX
    if not path.exists():
        return [folder / WEIGHTS]
    index = _json(path).get("weight_map")
    if not isinstance(index, dict) or not index:
        raise InputError(f"{path} has no weight_map; was it altered?")
    # Names alone: an index has no business outside its folder.
    return [
        folder / name for name in sorted({Path(str(n)).name for n in index.values()})
    ]


def _published(name: str) -> str:
    """Returns the name under which files hold a parameter."""
    if name in _TOP:
        return _TOP[name]
    _, layer, kind = name.split(".")
    return f"model.layers.{layer}.{_LAYER[kind]}"


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[dict[str, Any]]:
    """Opens all files of weights; gives the one that holds each array."""
    file_of: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        for path in weight_files(folder):
            file = stack.enter_context(_open(path))
            file_of |= dict.fromkeys(file.keys(), file)
        yield file_of


def _open(path: Path) -> Any:
    try:
        return safetensors.safe_open(path, "numpy")
    except FileNotFoundError:
        raise InputError(f"there is no file {path}") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except safetensors.SafetensorError as error:
        raise InputError(
            f"{path} is not a safetensors file, or was cut short ({error})"
        ) from None


def _json(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"there is no file {path}") from None
    except ValueError:
        raise InputError(f"{path} is not valid JSON; was it cut short?") from None
    if not isinstance(fields, dict):
        raise InputError(f"{path} is not a JSON object; was it altered?")
    return fields
