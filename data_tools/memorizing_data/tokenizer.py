"""Tokenizers: text to tokens and back, without loss.

The library `tokenizers` is needed, and imported, only for what is not bytes.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from memorizing_data.errors import InputError
from memorizing_data.manifest import check_file, read_manifest

TOKENIZER_FILE: Final = "tokenizer.json"
# A newline between two visible characters: the pattern by which byte-level BPE cuts
# text into words always makes it a word of its own, so cutting behind it changes none.
_SAFE_CUT: Final = re.compile(r"(?<=\S)\n(?=\S)")
_PIECE: Final = 2**16  # Characters.
_PIECES_AT_ONCE: Final = 16


class Tokenizer(Protocol):
    """Turns text into tokens and back."""

    @property
    def vocab_size(self) -> int:
        """Every token is below it."""
        ...

    def encode(self, text: str) -> npt.NDArray[np.int32]:
        """Returns the tokens of a text, `[num_tokens]`."""
        ...

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """Returns the text of tokens; a character cut in two becomes U+FFFD."""
        ...


class ByteTokenizer:
    """One token for each byte of UTF-8."""

    vocab_size = 256

    def encode(self, text: str) -> npt.NDArray[np.int32]:
        """Returns the tokens of a text, `[num_tokens]`."""
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """Returns the text of tokens; a character cut in two becomes U+FFFD."""
        return bytes(np.asarray(tokens, np.uint8)).decode(errors="replace")


class JsonTokenizer:
    """Any tokenizer that the `tokenizers` library can load.

    Args:
      specification: the content of a `tokenizer.json`.

    Raises:
      InputError: it is not one, or encodes at random.
    """

    def __init__(self, specification: str):
        library = _library()
        try:
            self._tokenizer = library.Tokenizer.from_str(specification)
        except Exception as error:  # The library raises no other class.
            raise InputError(f"not a tokenizer.json ({error})") from None
        fields = json.loads(specification)
        if fields["model"].get("dropout"):
            raise InputError("it drops merges at random; set its dropout to null")
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._can_cut = _is_byte_level(fields)
        # Not the number of entries: tokens need not be numbered without gaps.
        self.vocab_size = max(self._tokenizer.get_vocab().values()) + 1

    def encode(self, text: str) -> npt.NDArray[np.int32]:
        """Returns the tokens of a text, `[num_tokens]`.

        Byte-level BPE is encoded in pieces, which changes no token and keeps the
        memory small; other tokenizers see the whole text at once.
        """
        pieces = list(_pieces(text)) if self._can_cut else [text]
        tokens = []
        for first in range(0, len(pieces), _PIECES_AT_ONCE):
            some = pieces[first : first + _PIECES_AT_ONCE]
            found = self._tokenizer.encode_batch_fast(some, add_special_tokens=False)
            tokens += [np.array(piece.ids, np.int32) for piece in found]
        return np.concatenate(tokens)

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """Returns the text of tokens; a character cut in two becomes U+FFFD."""
        ids = np.asarray(tokens).tolist()
        return str(self._tokenizer.decode(ids, skip_special_tokens=False))


def load(directory: str | os.PathLike[str]) -> Tokenizer:
    """Returns the tokenizer of a dataset.

    Raises:
      TokenFileError: the dataset is missing or damaged.
      InputError: the library `tokenizers` is needed and not installed.
    """
    entry = read_manifest(directory)["tokenizer"]
    if entry["kind"] == "bytes":
        return ByteTokenizer()
    check_file(Path(directory), entry, verify=True)
    return JsonTokenizer(Path(directory, entry["file"]).read_bytes().decode())


def train_bpe(texts: Iterable[str], vocab_size: int) -> str:
    """Returns the `tokenizer.json` of a byte-level BPE trained on texts.

    It can hold any text, and the same texts give the same tokenizer.

    Args:
      texts: read once, in any order.
      vocab_size: 256 bytes and the merges; fewer if the texts hold too few pairs
        that occur twice.
    """
    library = _library()
    tokenizer = library.Tokenizer(library.models.BPE())
    byte_level = library.pre_tokenizers.ByteLevel
    tokenizer.pre_tokenizer = byte_level(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        initial_alphabet=byte_level.alphabet(),
        show_progress=False,
    )
    pieces = (piece for text in texts for piece in _pieces(text))
    tokenizer.train_from_iterator(pieces, trainer)
    return str(tokenizer.to_str(pretty=True))


def first_loss(text: str, decoded: str) -> str | None:
    """Returns the first passage that a tokenizer did not bring back, or None."""
    if text == decoded:
        return None
    both = min(len(text), len(decoded))
    place = next((i for i in range(both) if text[i] != decoded[i]), both)
    return text[max(0, place - 10) : place + 20]


def _pieces(text: str) -> Iterator[str]:
    """Yields a text in pieces of at least `_PIECE` characters, cut where it is safe."""
    start = 0
    while cut := _SAFE_CUT.search(text, start + _PIECE):
        yield text[start : cut.end()]
        start = cut.end()
    yield text[start:]


def _is_byte_level(fields: dict[str, Any]) -> bool:
    """Returns whether text is cut into words as `_SAFE_CUT` supposes."""
    words = fields.get("pre_tokenizer") or {}
    special = fields.get("added_tokens") or []
    return (
        fields["model"].get("type") == "BPE"
        and words.get("type") == "ByteLevel"
        and not words.get("add_prefix_space", True)
        and words.get("use_regex", True)
        and not fields.get("normalizer")
        and not any(
            token["lstrip"] or token["rstrip"] or "\n" in token["content"]
            for token in special
        )
    )


def _library() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise InputError(
            "this tokenizer needs the library `tokenizers`; install "
            "memorizing-transformers[data], or use the tokenizer `bytes`"
        ) from None
    return tokenizers
