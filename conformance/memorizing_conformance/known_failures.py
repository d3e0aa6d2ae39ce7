"""Failures that an implementer knows of, in a file of their own, kept strictly.

    [[known]]
    test = "test_attention.py::test_a_gate_may_be_extreme"
    reason = "the sigmoid overflows beyond 88; gates never get there"

A listed failure breaks no rule. A name that matches no test stops the run, and so
does one whose tests all pass: the list says what is, or nothing.
"""

import dataclasses
import pathlib
import tomllib
from collections.abc import Sequence

from memorizing_conformance.loading import UsageError
from memorizing_conformance.runner import Result


@dataclasses.dataclass(frozen=True)
class Known:
    """One line of the list.

    Attributes:
      test: a test's name; without parameters in brackets, all of its cases.
      reason: why it fails, in the implementer's words.
    """

    test: str
    reason: str

    def matches(self, name: str) -> bool:
        """Whether a test of this name is meant."""
        return name == self.test or name.startswith(f"{self.test}[")


def read(path: pathlib.Path, tests: Sequence[str]) -> list[Known]:
    """Returns the list in a file.

    Args:
      path: a TOML file.
      tests: the names of all tests there are.

    Raises:
      UsageError: if the file cannot be read, or names what is no test.
    """
    try:
        content = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"cannot read known failures from {path}: {error}") from error
    if set(content) - {"known"} or not isinstance(content.get("known", []), list):
        raise UsageError(f"{path} holds more than [[known]] tables; see its format")
    known = []
    for table in content.get("known", []):
        if not isinstance(table, dict) or set(table) != {"test", "reason"}:
            raise UsageError(f"{path}: {table} must have exactly a test and a reason")
        if not all(isinstance(text, str) and text.strip() for text in table.values()):
            raise UsageError(f"{path}: {table} needs words for its test and its reason")
        entry = Known(**table)
        if not any(entry.matches(name) for name in tests):
            raise UsageError(
                f"{path} lists {entry.test!r}, and no test has that name; correct it "
                "or take it out"
            )
        known.append(entry)
    return known


def apply(known: Sequence[Known], results: Sequence[Result]) -> list[str]:
    """Gives known failures their reason.

    Returns:
      One sentence for each entry of the list whose tests ran and did not fail.
    """
    stale = []
    for entry in known:
        own = [result for result in results if entry.matches(result.test)]
        failed = [result for result in own if result.outcome == "failed"]
        for result in failed:
            result.reason = entry.reason
        if own and not failed:
            stale.append(
                f"{entry.test} is listed as a known failure and does not fail; take it "
                "off the list"
            )
    return stale
