"""Documents from a folder tree."""

import dataclasses
import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from memorizing_data.documents import (
    File,
    Skip,
    SourceDocument,
    Wanted,
    join_files,
    reason,
)

VERSION_CONTROL = frozenset({".git", ".hg", ".svn"})


@dataclasses.dataclass(frozen=True)
class Folder:
    """A folder tree, its files taken one by one or joined by top-level folder.

    Attributes:
      path: the root.
      document_per: "file", or "folder": everything in a folder right below the root
        makes one document. A file right below the root is one by itself.
      extensions: endings of the files to read, in lower case; all files if empty.
      order_seed: None reads files in the order of their paths. A number reads them
        as the paper does: every folder in an order of its own, drawn from the seed,
        each subfolder as a unit.
      leave_out: relative paths that match are passed over; those of folders end in
        a slash.
    """

    path: Path
    document_per: Literal["file", "folder"] = "file"
    extensions: tuple[str, ...] = ()
    order_seed: int | None = None
    leave_out: re.Pattern[str] | None = None

    def description(self) -> dict[str, Any]:
        """Returns what the manifest says about the source."""
        return {"kind": "folder", "folder": self.path.resolve().name}

    def documents(self, skip: Skip, wanted: Wanted) -> Iterator[SourceDocument]:
        """Yields the documents whose name is wanted."""
        groups: dict[str, list[File]] = {}
        for path in sorted(_Walk(self, skip).files, key=self._order):
            name = _printable(path)
            document = name.split("/")[0] if self.document_per == "folder" else name
            file = File(name, (self.path / path).read_bytes)
            groups.setdefault(document, []).append(file)
        yield from join_files(groups.items(), skip, wanted)

    def _order(self, path: str) -> list[str]:
        """Returns a sort key: one word for every folder on the way, and the file."""
        parts = path.split("/")
        if self.order_seed is None:
            return parts
        ways = ("/".join(parts[: depth + 1]) for depth in range(len(parts)))
        return [
            hashlib.sha256(os.fsencode(f"{self.order_seed}/{way}")).hexdigest()
            for way in ways
        ]


class _Walk:
    """Finds the regular files of a folder tree.

    Symbolic links come last and are followed only to what was not found before, so
    that a loop ends and no text is read twice.

    Attributes:
      files: relative paths.
    """

    def __init__(self, folder: Folder, skip: Skip):
        self.files: list[str] = []
        self._folder = folder
        self._skip = skip
        self._links: list[str] = []
        self._seen: set[tuple[int, int]] = set()
        self._enter("")
        while self._links:
            links, self._links = sorted(self._links), []
            for link in links:
                self._follow(link)

    def _enter(self, top: str) -> None:
        """Finds everything below a folder, but for links, which it remembers."""
        pending = [top]
        while pending:
            folder = pending.pop()
            try:
                status = os.stat(self._folder.path / folder)
                entries = list(os.scandir(self._folder.path / folder))
            except OSError as error:
                self._skip(_printable(folder), reason(error))
                continue
            if (status.st_dev, status.st_ino) in self._seen:
                self._skip(_printable(folder), "folder already read")
                continue
            self._seen.add((status.st_dev, status.st_ino))
            for entry in entries:
                path = f"{folder}/{entry.name}" if folder else entry.name
                is_folder = entry.is_dir(follow_symlinks=False)
                if self._is_left_out(path + "/" * is_folder):
                    continue
                if entry.is_symlink():
                    self._links.append(path)
                elif is_folder and entry.name in VERSION_CONTROL:
                    self._skip(_printable(path), "version control")
                elif is_folder:
                    pending.append(path)
                else:
                    self._add(path, entry.stat(follow_symlinks=False))

    def _follow(self, link: str) -> None:
        """Finds what a symbolic link leads to, unless it was found before."""
        try:
            status = os.stat(self._folder.path / link)
        except OSError as error:
            known = {errno.ELOOP: "symbolic link loop", errno.ENOENT: "broken link"}
            self._skip(_printable(link), known.get(error.errno or 0, reason(error)))
            return
        if not stat.S_ISDIR(status.st_mode):
            if (status.st_dev, status.st_ino) in self._seen:
                self._skip(_printable(link), "symbolic link to a file already read")
            else:
                self._add(link, status)
        elif (status.st_dev, status.st_ino) not in self._seen:
            self._enter(link)
        else:
            target = os.path.realpath(self._folder.path / link)
            parent = os.path.realpath((self._folder.path / link).parent)
            loop = os.path.commonpath([target, parent]) == target
            self._skip(
                _printable(link),
                "symbolic link loop"
                if loop
                else "symbolic link to a folder already read",
            )

    def _add(self, path: str, status: os.stat_result) -> None:
        extensions = self._folder.extensions
        if not stat.S_ISREG(status.st_mode):
            self._skip(_printable(path), "not a regular file")
        elif not extensions or path.lower().endswith(extensions):
            self.files.append(path)
            self._seen.add((status.st_dev, status.st_ino))

    def _is_left_out(self, path: str) -> bool:
        leave_out = self._folder.leave_out
        return leave_out is not None and leave_out.search(path) is not None


def _printable(path: str) -> str:
    """Returns a path as Unicode, also where the file system holds other bytes."""
    return os.fsencode(path or ".").decode("utf-8", "backslashreplace")
