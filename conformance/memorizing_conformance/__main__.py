"""Checks an implementation: `python -m memorizing_conformance --implementation M:C`."""

import argparse
import os
import pathlib
import sys
import tempfile
from collections.abc import Sequence

from memorizing_conformance import known_failures, page, report, runner
from memorizing_conformance.loading import UsageError, load
from memorizing_conformance.rules import RULES

REFERENCE = "memorizing_conformance.reference_adapter:ReferenceImplementation"


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status: 0 if no rule is broken, 1 if one is, 2 for misuse."""
    options = parser().parse_args(arguments)
    try:
        return check(options)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def parser() -> argparse.ArgumentParser:
    """Returns the command line."""
    # `make fuzz` asks for a long search by its profile.
    fuzz = os.environ.get("HYPOTHESIS_PROFILE") == "fuzz"
    result = argparse.ArgumentParser(
        prog="python -m memorizing_conformance",
        description="Checks an implementation of the Memorizing Transformer, and names "
        "the rules that it breaks. Exit status: 0 no rule is broken, 1 some are, "
        "2 the check could not start.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = result.add_argument
    add(
        "--implementation",
        default=REFERENCE,
        metavar="MODULE:CLASS",
        help="a class that offers what memorizing_conformance.implementation says",
    )
    add(
        "--rule",
        action="append",
        default=[],
        metavar="ID",
        help="check only this rule, such as MEM-2; may be repeated",
    )
    add(
        "--test",
        default="",
        metavar="NAME",
        help="run only tests whose name contains this",
    )
    add(
        "--examples",
        type=_at_least_one,
        default=2000 if fuzz else 30,
        metavar="N",
        help="inputs that each property is tried on",
    )
    add("--seed", type=int, default=0, help="which inputs are drawn")
    for option, what in (("--json", "JSON"), ("--html", "one HTML page")):
        add(option, type=pathlib.Path, metavar="FILE", help=f"write it as {what}")
    add(
        "--known-failures",
        type=pathlib.Path,
        metavar="FILE",
        help="TOML list of failures that break no rule (README.md shows one)",
    )
    add("--details", action="store_true", help="show tracebacks")
    add("--quiet", action="store_true", help="no progress bar, no table of rules")
    return result


def _at_least_one(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"is {text!r}, expected 1 or more")
    return int(text)


def check(options: argparse.Namespace) -> int:
    """Runs the suite and says what came of it."""
    if unknown := sorted(set(options.rule) - set(RULES)):
        raise UsageError(f"--rule is {unknown[0]}, expected one of {', '.join(RULES)}")
    for path in (options.json, options.html):
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            raise UsageError(f"cannot write {path}: there must be a folder to hold it")
    known = []
    if options.known_failures is not None:
        known = known_failures.read(options.known_failures, list(runner.marks()))
    implementation = load(options.implementation)
    results = runner.run(
        implementation,
        runner.Options(
            rules=tuple(options.rule),
            test=options.test,
            examples=options.examples,
            seed=options.seed,
            progress=not options.quiet,
        ),
    )
    if not results:
        raise UsageError(
            f"no test is called {options.test!r} and checks {options.rule or 'a rule'}"
        )
    stale = known_failures.apply(known, results)
    rerun = (
        f"python -m memorizing_conformance --implementation {options.implementation} "
        f"--examples {options.examples} --seed {options.seed}"
    )
    whole = report.make(implementation.name, rerun, results)
    _print(whole, stale, options)
    if options.json is not None:
        _write(options.json, report.as_json(whole))
    if options.html is not None:
        _write(options.html, page.as_html(whole))
    return 1 if whole.broken or stale else 0


def _print(
    whole: report.Report, stale: Sequence[str], options: argparse.Namespace
) -> None:
    if not options.quiet:
        print(f"{whole.name}: the rules of memorizing transformers\n")
        print(report.table(whole))
    if found := report.failures(whole, details=options.details):
        print(f"\n{found}")
    for sentence in stale:
        print(f"\n{sentence}")
    if whole.begin_with:
        print(f"\nbegin with: {whole.begin_with}")
    print(f"\nrules broken: {' '.join(whole.broken) or 'none'}")


def _write(path: pathlib.Path, text: str) -> None:
    """Writes a file whole, or not at all."""
    try:
        with tempfile.NamedTemporaryFile(
            "w", dir=path.parent, delete=False, encoding="utf-8"
        ) as file:
            file.write(text)
        os.chmod(file.name, 0o644)
        os.replace(file.name, path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error}") from error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
