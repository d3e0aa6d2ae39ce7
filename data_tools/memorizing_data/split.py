"""Which split a document belongs to."""

import dataclasses
import fnmatch
import hashlib

from memorizing_data.errors import InputError

DESCRIPTION = (
    "The first 8 bytes of SHA-256(salt + newline + name), as a big-endian fraction of "
    "2**64: below test_fraction it is test, below test_fraction + validation_fraction "
    "validation, else train. A name that matches a pattern goes where the pattern says."
)


@dataclasses.dataclass(frozen=True)
class SplitRule:
    """Splits documents by a stable hash of their name, never by position.

    Adding, removing or reordering documents moves no other document. With few
    documents the shares are far from the fractions, and a split may stay empty.

    Attributes:
      validation_fraction: expected share of the documents.
      test_fraction: expected share of the documents.
      salt: another salt gives another split.
      validation: patterns; a document whose name matches one goes to validation.
      test: patterns; a document whose name matches one goes to test.
    """

    validation_fraction: float = 0.05
    test_fraction: float = 0.05
    salt: str = ""
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        fractions = (self.validation_fraction, self.test_fraction)
        if not (min(fractions) >= 0 and sum(fractions) <= 1):
            raise InputError(
                f"the fractions for validation and test are {fractions[0]} and "
                f"{fractions[1]}; they must not be negative nor exceed 1 together"
            )

    def split_of(self, name: str) -> str:
        """Returns the split of the document with this name.

        A pattern comes before the hash, and test before validation.
        """
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in self.test):
            return "test"
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in self.validation):
            return "validation"
        digest = hashlib.sha256(f"{self.salt}\n{name}".encode()).digest()
        share = int.from_bytes(digest[:8]) / 2**64
        if share < self.test_fraction:
            return "test"
        if share < self.test_fraction + self.validation_fraction:
            return "validation"
        return "train"
