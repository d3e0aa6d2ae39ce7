"""Documents as text, read one at a time, and what is skipped on the way.

A source names its documents and reads them in an order that does not depend on the
file system. What it cannot read it skips, never silently: it calls `skip(name,
reason)` and goes on.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from memorizing_data.errors import InputError

Skip = Callable[[str, str], None]
Wanted = Callable[[str], bool]


@dataclasses.dataclass(frozen=True)
class SourceDocument:
    """One document.

    Attributes:
      name: decides its split; the same wherever the source lies.
      text: all of it.
      files: the files that it was joined from, in order; none for JSON lines.
    """

    name: str
    text: str
    files: tuple[str, ...] = ()


class Source(Protocol):
    """Where documents come from."""

    def description(self) -> dict[str, Any]:
        """Returns what the manifest says about the source."""
        ...

    def documents(self, skip: Skip, wanted: Wanted) -> Iterator[SourceDocument]:
        """Yields the documents whose name is wanted.

        Args:
          skip: told the name of whatever cannot be read, and the reason.
          wanted: told a document's name, answers whether to read it.

        Raises:
          InputError: the source as a whole cannot be read.
        """
        ...


class File(NamedTuple):
    """A file that can be read when its turn comes."""

    name: str
    read: Callable[[], bytes]


def join_files(
    groups: Iterable[tuple[str, list[File]]], skip: Skip, wanted: Wanted
) -> Iterator[SourceDocument]:
    r"""Yields a document for each group: the texts of its files, joined by "\n".

    A group of which no file can be read makes no document.
    """
    for name, files in groups:
        if not wanted(name):
            continue
        texts = {}
        for file in files:
            try:
                texts[file.name] = to_text(file.read())
            except (OSError, ValueError) as error:
                skip(file.name, reason(error))
        if texts:
            yield SourceDocument(name, "\n".join(texts.values()), tuple(texts))


def to_text(content: bytes) -> str:
    """Returns a file's content as text, unchanged.

    Raises:
      ValueError: it is empty, binary, or not UTF-8.
    """
    if not content:
        raise ValueError("empty")
    if b"\0" in content:
        raise ValueError("binary (holds a NUL byte)")
    return content.decode("utf-8")


def reason(error: Exception) -> str:
    """Returns why something was skipped, in words that can be counted."""
    if isinstance(error, UnicodeDecodeError):
        return "not valid UTF-8"
    if isinstance(error, UnicodeEncodeError):
        return "not valid Unicode (half a surrogate pair)"
    if isinstance(error, (json.JSONDecodeError, RecursionError)):
        return "not valid JSON"
    if isinstance(error, OSError):
        return f"unreadable ({error.strerror or error})"
    return str(error)


@dataclasses.dataclass(frozen=True)
class JsonLines:
    """A file with one JSON object per line.

    Attributes:
      path: the file.
      text_field: which field holds the text.
      name_field: which field holds the name. Without one a document is named by
        the SHA-256 of its text, so that its split does not depend on its place.
    """

    path: Path
    text_field: str = "text"
    name_field: str | None = None

    def description(self) -> dict[str, Any]:
        """Returns what the manifest says about the source."""
        return {"kind": "JSON lines", "file": self.path.name}

    def documents(self, skip: Skip, wanted: Wanted) -> Iterator[SourceDocument]:
        """Yields the documents whose name is wanted, in file order."""
        try:
            with self.path.open("rb") as lines:
                for number, line in enumerate(lines, 1):
                    if not line.strip():
                        continue
                    try:
                        document = self._parse(line)
                    except (ValueError, RecursionError) as error:
                        skip(f"{self.path.name}:{number}", reason(error))
                        continue
                    if wanted(document.name):
                        yield document
        except OSError as error:
            raise InputError(f"cannot read {self.path}: {error.strerror}") from None

    def _parse(self, line: bytes) -> SourceDocument:
        fields = json.loads(line.decode("utf-8-sig"))
        if not isinstance(fields, dict):
            raise ValueError("not a JSON object")
        for field in filter(None, (self.text_field, self.name_field)):
            if not isinstance(fields.get(field), str):
                raise ValueError(f"no text in field {field!r}")
        content = fields[self.text_field].encode()
        if self.name_field:
            name = to_text(fields[self.name_field].encode())
        else:
            name = hashlib.sha256(content).hexdigest()[:16]
        return SourceDocument(name, to_text(content))
