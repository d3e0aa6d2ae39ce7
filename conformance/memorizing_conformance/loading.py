"""Finds the implementation that a person names, or says what is wrong with it."""

import importlib
from typing import Any

from memorizing_conformance.features import (
    BASIC_METHODS,
    FEATURES,
    METHODS,
    SEARCHES,
)


class UsageError(ValueError):
    """One sentence about a mistake on the command line or in an adapter."""


def load(dotted_name: str) -> Any:
    """Returns the implementation that `MODULE:CLASS` names, ready to be checked.

    Raises:
      UsageError: if it cannot be imported or made, or does not offer what its
        features promise.
    """
    module_name, colon, class_name = dotted_name.partition(":")
    if not (module_name and colon and class_name):
        raise UsageError(
            f"--implementation is {dotted_name!r}, expected MODULE:CLASS such as "
            "memorizing_conformance.reference_adapter:ReferenceImplementation"
        )
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # Whatever the module does when it is imported.
        raise UsageError(
            f"cannot import {module_name}: {type(error).__name__}: {error}; run the "
            "command where `import` finds it, or set PYTHONPATH"
        ) from error
    if not hasattr(module, class_name):
        raise UsageError(f"module {module_name} has no {class_name}; check its name")
    try:
        implementation = getattr(module, class_name)()
    except Exception as error:
        raise UsageError(
            f"{class_name}() raised {type(error).__name__}: {error}; the class must "
            "work without arguments"
        ) from error
    require_complete(implementation, class_name)
    return implementation


def require_complete(implementation: Any, class_name: str) -> None:
    """Refuses an adapter that lacks an attribute, or a method it says it has.

    Raises:
      UsageError: names the first thing that is missing.
    """
    for attribute in ("name", "features", "recall_target"):
        if not hasattr(implementation, attribute):
            raise UsageError(f"{class_name} has no attribute {attribute}")
    features = set(implementation.features)
    if unknown := sorted(features - set(FEATURES)):
        raise UsageError(
            f"{class_name} has the unknown feature {unknown[0]!r}; features are "
            + ", ".join(FEATURES)
        )
    if len(searches := [name for name in SEARCHES if name in features]) != 1:
        raise UsageError(
            f"{class_name} names {len(searches)} kinds of search, expected one of "
            + ", ".join(SEARCHES)
        )
    if not 0.0 < implementation.recall_target <= 1.0:
        raise UsageError(
            f"{class_name}.recall_target is {implementation.recall_target}, expected "
            "more than 0 and at most 1"
        )
    _require_methods(implementation, class_name, BASIC_METHODS, "every implementation")
    for feature in sorted(features & set(METHODS)):
        _require_methods(
            implementation, class_name, METHODS[feature], f"feature {feature!r}"
        )


def _require_methods(
    implementation: Any, class_name: str, methods: tuple[str, ...], needed_by: str
) -> None:
    for method in methods:
        if not callable(getattr(implementation, method, None)):
            raise UsageError(f"{class_name} has no method {method}; {needed_by} has it")
