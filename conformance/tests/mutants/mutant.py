"""A mutant: the reference with a few words of its source changed."""

import dataclasses
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ADAPTER = "memorizing_conformance.reference_adapter"
# What a mutant has a copy of its own of. The suite goes on using the originals.
COPIED = ("memorizing_reference", "memorizing_conformance.reference_")


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A fault, and the rule that it breaks.

    Attributes:
      name: the fault in a few words.
      breaks: the rule under which the suite must report it.
      module: the module that is changed; bare names are of the reference.
      old: source text that occurs there once.
      new: what stands there instead.
      adapter: the class that offers the changed reference to the suite.
      also: further pairs of old and new text in the same module.
    """

    name: str
    breaks: str
    module: str
    old: str
    new: str
    adapter: str = "ReferenceImplementation"
    also: tuple[tuple[str, str], ...] = ()

    @property
    def full_module(self) -> str:
        """The module's import name."""
        if self.module.startswith("reference_"):
            return f"memorizing_conformance.{self.module}"
        return f"memorizing_reference.{self.module}"

    def implementation(self) -> Any:
        """Returns an implementation with this fault."""
        hidden = {name: sys.modules[name] for name in sys.modules if _is(name)}
        for name in hidden:
            _forget(name)
        finder = _Finder(self)
        sys.meta_path.insert(0, finder)
        try:
            adapter = importlib.import_module(ADAPTER)
            return getattr(adapter, self.adapter)()
        finally:
            sys.meta_path.remove(finder)
            for name in [name for name in sys.modules if _is(name)]:
                _forget(name)
            for name, module in hidden.items():
                _remember(name, module)


def _forget(name: str) -> None:
    del sys.modules[name]
    parent, _, child = name.rpartition(".")
    if parent in sys.modules:
        # Or else `from parent import child` would still find it.
        vars(sys.modules[parent]).pop(child, None)


def _remember(name: str, module: types.ModuleType) -> None:
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, module)


def _is(name: str) -> bool:
    return name.startswith(COPIED)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Loads copies of modules from their source, with one of them changed."""

    def __init__(self, mutant: Mutant):
        self._mutant = mutant
        self._paths: dict[str, str] = {}

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: types.ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        """Takes over the modules that a mutant has its own copy of."""
        if not _is(fullname):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None:
            spec = _editable_spec(fullname)
        assert spec.origin is not None
        self._paths[fullname] = spec.origin
        return importlib.util.spec_from_file_location(
            fullname,
            spec.origin,
            loader=self,
            submodule_search_locations=spec.submodule_search_locations,
        )

    def get_filename(self, fullname: str) -> str:
        """Returns where a module's source is."""
        return self._paths[fullname]

    def get_data(self, path: str) -> bytes:
        """Returns the source, changed if it is the mutant's module."""
        source = Path(path).read_text()
        if path == self._paths.get(self._mutant.full_module):
            mutant = self._mutant
            for old, new in ((mutant.old, mutant.new), *mutant.also):
                count = source.count(old)
                assert count == 1, f"{mutant.name}: {path} has {count} of {old!r}"
                source = source.replace(old, new)
        if path.endswith("search.py"):
            # The NumPy definitions stand in for their compiled twins: they are what
            # is changed, and compiling each mutant would take most of the time.
            source += "\ntop_k_slots = top_k_slots_numpy\n"
        return source.encode()

    def path_stats(self, path: str) -> dict[str, Any]:
        """Refuses, so that no bytecode of a mutant is kept or used."""
        raise OSError(path)


def _editable_spec(fullname: str) -> importlib.machinery.ModuleSpec:
    """Finds a top-level package through whatever else finds modules."""
    for finder in sys.meta_path:
        if not isinstance(finder, _Finder):
            spec = finder.find_spec(fullname, None)
            if spec is not None:
                return spec
    raise ModuleNotFoundError(fullname)
