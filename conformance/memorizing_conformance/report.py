"""From test results to what became of each rule, as text."""

import dataclasses
import textwrap
from collections.abc import Sequence
from typing import Literal

from memorizing_conformance.rules import LEVELS, RULES
from memorizing_conformance.runner import Result

Status = Literal["pass", "broken", "known", "skipped", "untested"]


@dataclasses.dataclass(frozen=True)
class RuleReport:
    """What became of one rule.

    Attributes:
      rule: its id.
      says: the rule in one line.
      status: "broken" if a test of it failed, "known" if only failures that the
        implementer has listed did, "skipped" if no test of it could run.
      passed: how many of its tests passed.
      failed: the results of those that did not.
      skipped: why tests were skipped, each reason once.
    """

    rule: str
    says: str
    status: Status
    passed: int
    failed: tuple[Result, ...]
    skipped: tuple[str, ...]


def by_rule(results: Sequence[Result]) -> list[RuleReport]:
    """Returns a report for every rule, in the order of SPEC.md."""
    reports = []
    for rule, says in RULES.items():
        own = [result for result in results if rule in result.rules]
        failed = tuple(result for result in own if result.outcome == "failed")
        skipped = sorted({r.message for r in own if r.outcome == "skipped"})
        passed = sum(result.outcome == "passed" for result in own)
        reports.append(
            RuleReport(
                rule, says, _status(failed, passed, own), passed, failed, tuple(skipped)
            )
        )
    return reports


def _status(failed: tuple[Result, ...], passed: int, own: Sequence[Result]) -> Status:
    if any(not result.reason for result in failed):
        return "broken"
    if failed:
        return "known"
    if passed:
        return "pass"
    return "skipped" if own else "untested"


def broken_rules(results: Sequence[Result]) -> list[str]:
    """Returns the ids of the rules that are broken, in the order of SPEC.md."""
    return [report.rule for report in by_rule(results) if report.status == "broken"]


def table(reports: Sequence[RuleReport]) -> str:
    """Returns one line per rule: id, what it says, what became of it."""
    lines = []
    for report in reports:
        if report.status == "untested":
            continue
        remark = "; ".join(report.skipped) if report.skipped else ""
        if report.status == "skipped":
            outcome = f"skipped: {remark}"
        elif remark:
            outcome = f"{report.status} (in part: {remark})"
        else:
            outcome = report.status
        lines.append(f"{report.rule:8}{report.says:72}{outcome}")
    return "\n".join(lines)


def failures(results: Sequence[Result], rerun: str, *, details: bool) -> str:
    """Returns what went wrong, test by test, the lowest level first.

    Args:
      results: of all tests.
      rerun: the command line that ran them, without a selection.
      details: whether to add the tracebacks.
    """
    failed = [result for result in results if result.outcome == "failed"]
    failed.sort(key=lambda result: LEVELS.index(result.level))
    parts = []
    for result in failed:
        lines = [f"{' '.join(result.rules)}: {result.test} (level: {result.level})"]
        if result.reason:
            lines.append(f"  known: {result.reason}")
        lines += textwrap.wrap(
            result.message, 84, initial_indent="  ", subsequent_indent="    "
        )
        if result.example:
            lines += textwrap.wrap(
                f"example: {result.example}",
                84,
                initial_indent="  ",
                subsequent_indent="    ",
            )
        lines.append(f"  rerun: {rerun} --test '{result.test}' --details")
        if details:
            lines.append(textwrap.indent(result.details, "    "))
        parts.append("\n".join(lines))
    return "\n\n".join(parts)
