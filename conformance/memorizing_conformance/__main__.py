"""Checks an implementation: `python -m memorizing_conformance --implementation M:C`."""

import argparse
import os
import sys
from collections.abc import Sequence

from memorizing_conformance import report, runner
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
    add("--details", action="store_true", help="show tracebacks")
    add("--quiet", action="store_true", help="no progress bar, no table of rules")
    return result


def _at_least_one(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"is {text!r}, expected 1 or more")
    return int(text)


def check(options: argparse.Namespace) -> int:
    """Runs the suite and prints what came of it."""
    if unknown := sorted(set(options.rule) - set(RULES)):
        raise UsageError(f"--rule is {unknown[0]}, expected one of {', '.join(RULES)}")
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
        raise UsageError(f"no test has {options.test!r} in its name and such a rule")

    rerun = (
        f"python -m memorizing_conformance --implementation {options.implementation} "
        f"--examples {options.examples} --seed {options.seed}"
    )
    if not options.quiet:
        print(f"{implementation.name}: the rules of memorizing transformers\n")
        print(report.table(report.by_rule(results)))
    if found := report.failures(results, rerun, details=options.details):
        print(f"\n{found}")
    broken = report.broken_rules(results)
    print(f"\nrules broken: {' '.join(broken) if broken else 'none'}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
