"""The tokenizer inside a GGUF file, as a tokenizer.json."""

import json
from typing import Any, Final

from memorizing_jax.errors import InputError
from memorizing_jax.gguf_files import GgufFile

_CONTROL, _USER_DEFINED = 3, 4  # Kinds of tokens that no merge makes.

_WORDS: Final = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}
_DIGITS: Final = {"type": "Digits", "individual_digits": True}
# How text is cut into words before merges apply, by what `tokenizer.ggml.pre` names.
_PRE_TOKENIZERS: Final[dict[str, Any]] = {
    "gpt-2": _WORDS,
    "default": _WORDS,
    "smollm": {"type": "Sequence", "pretokenizers": [_DIGITS, _WORDS]},
}


def tokenizer_json(file: GgufFile) -> str:
    """Returns the content of a tokenizer.json that splits text as the file says.

    Raises:
      InputError: it is not byte-level BPE, or cuts words in a way not known here.
    """
    kind = file["tokenizer.ggml.model"]
    if kind != "gpt2":
        raise InputError(
            f"{file.path} has a tokenizer of kind {kind!r}; only byte-level BPE, "
            "'gpt2', can be rebuilt; take the model as a Hugging Face folder"
        )
    cut = file.get("tokenizer.ggml.pre", "gpt-2")
    if cut not in _PRE_TOKENIZERS:
        raise InputError(
            f"{file.path} cuts words by {cut!r}, and only "
            f"{', '.join(_PRE_TOKENIZERS)} are known; take the model as a Hugging "
            "Face folder"
        )
    tokens = file["tokenizer.ggml.tokens"]
    kinds = file["tokenizer.ggml.token_type"]
    merges = [pair.split(" ") for pair in file["tokenizer.ggml.merges"]]
    special = [
        {
            "id": number,
            "content": content,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind == _CONTROL,
        }
        for number, (content, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in (_CONTROL, _USER_DEFINED)
    ]
    return json.dumps(
        {
            "version": "1.0",
            "added_tokens": special,
            "normalizer": None,
            "pre_tokenizer": _PRE_TOKENIZERS[cut],
            "post_processor": None,
            "decoder": _WORDS,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": {content: number for number, content in enumerate(tokens)},
                "merges": merges,
            },
        }
    )
