"""Text at the terminal: the prompt, and what follows as it comes."""

from collections.abc import Iterable
from pathlib import Path

from memorizing_data.tokenizer import Tokenizer
from memorizing_jax.errors import InputError


def prompt(text: str | None, file: Path | None) -> str:
    """Returns the text to go on from, of which there must be one.

    Raises:
      InputError: there is none or there are two, or the file is not UTF-8.
    """
    if (text is None) == (file is None):
        raise InputError("give either --prompt or --prompt-file")
    if file is None:
        return text or ""
    try:
        return file.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{file} is not UTF-8: {error.reason} at byte {error.start}"
        ) from None


def stream(tokens: Iterable[int], words: Tokenizer) -> list[int]:
    """Prints the text of tokens as they come; returns the tokens."""
    found: list[int] = []
    printed = ""
    for token in tokens:
        found.append(token)
        # The rest of a character may come with the next token.
        whole = words.decode(found).rstrip("\ufffd")
        print(whole.removeprefix(printed), end="", flush=True)
        printed = whole
    print(words.decode(found).removeprefix(printed))
    return found
