"""From test results to what became of each rule: as text, JSON or a page."""

import dataclasses
import json
import textwrap
from collections.abc import Sequence
from typing import Any, Literal

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
        implementer has listed did, "skipped" if no test of it could run,
        "untested" if there was none.
      passed: how many of its tests passed.
      failed: the results of those that did not.
      skipped: why tests were skipped, each feature that was lacking once.
    """

    rule: str
    says: str
    status: Status
    passed: int
    failed: tuple[Result, ...]
    skipped: tuple[str, ...]

    @property
    def outcome(self) -> str:
        """The status, and what it is without."""
        without = ", ".join(self.skipped)
        return f"{self.status} (without {without})" if without else self.status


@dataclasses.dataclass(frozen=True)
class Report:
    """A whole run.

    Attributes:
      name: of the implementation.
      rerun: the command line that ran it, without a selection of tests.
      results: of all tests.
      rules: what became of each rule, in the order of SPEC.md.
    """

    name: str
    rerun: str
    results: tuple[Result, ...]
    rules: tuple[RuleReport, ...]

    @property
    def broken(self) -> list[str]:
        """The ids of the rules that are broken."""
        return [rule.rule for rule in self.rules if rule.status == "broken"]

    @property
    def failures(self) -> list[Result]:
        """Tests that failed, the lowest level first: that is where to look."""
        failed = [result for result in self.results if result.outcome == "failed"]
        return sorted(failed, key=lambda result: LEVELS.index(result.level))

    @property
    def begin_with(self) -> str:
        """The broken rules of the lowest level, which others may only suffer from."""
        unknown = [result for result in self.failures if not result.reason]
        if not unknown:
            return ""
        lowest = unknown[0].level
        named = {
            r for result in unknown if result.level == lowest for r in result.rules
        }
        return f"{' '.join(r for r in RULES if r in named)} (level: {lowest})"

    def rerun_of(self, result: Result) -> str:
        """The command line that runs one test again."""
        return f"{self.rerun} --test '{result.test}' --details"


def make(name: str, rerun: str, results: Sequence[Result]) -> Report:
    """Returns the report of a run."""
    rules = tuple(_of_rule(rule, results) for rule in RULES)
    return Report(name, rerun, tuple(results), rules)


def _of_rule(rule: str, results: Sequence[Result]) -> RuleReport:
    own = [result for result in results if rule in result.rules]
    failed = tuple(result for result in own if result.outcome == "failed")
    skipped = sorted(
        {
            feature
            for result in own
            if result.outcome == "skipped"
            for feature in result.message.removeprefix("lacks ").split(", ")
        }
    )
    passed = sum(result.outcome == "passed" for result in own)
    status: Status
    if any(not result.reason for result in failed):
        status = "broken"
    elif failed:
        status = "known"
    elif passed:
        status = "pass"
    else:
        status = "skipped" if own else "untested"
    return RuleReport(rule, RULES[rule], status, passed, failed, tuple(skipped))


def table(report: Report) -> str:
    """Returns one line per rule: id, what it says, what became of it."""
    lines = []
    for rule in report.rules:
        if rule.status != "untested":
            lines.append(f"{rule.rule:8}{rule.says:72}{rule.outcome}")
    return "\n".join(lines)


def failures(report: Report, *, details: bool) -> str:
    """Returns what went wrong, test by test; with tracebacks if `details`.

    Of a test's failing cases only the first is shown.
    """
    cases: dict[str, list[Result]] = {}
    for result in report.failures:
        cases.setdefault(result.test.partition("[")[0], []).append(result)
    parts = []
    for first, *others in cases.values():
        lines = [f"{' '.join(first.rules)}: {first.test} (level: {first.level})"]
        if others:
            lines.append(f"  and {len(others)} more of its cases")
        if first.reason:
            lines.append(f"  known: {first.reason}")
        lines += _indented(first.message)
        if first.example:
            lines += _indented(f"smallest example: {first.example}")
        lines.append(f"  rerun: {report.rerun_of(first)}")
        if details:
            lines.append(textwrap.indent(first.details, "    "))
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _indented(text: str) -> list[str]:
    return textwrap.wrap(text, 84, initial_indent="  ", subsequent_indent="    ")


def as_json(report: Report) -> str:
    """Returns the report for machines; README.md describes the fields."""
    rules: list[dict[str, Any]] = []
    for rule in report.rules:
        failed = [
            {
                "test": result.test,
                "level": result.level,
                "message": result.message,
                "example": result.example,
                "known": result.reason,
                "rerun": report.rerun_of(result),
            }
            for result in rule.failed
        ]
        rules.append(dataclasses.asdict(rule) | {"failed": failed})
    content = {
        "implementation": report.name,
        "rerun": report.rerun,
        "broken": report.broken,
        "begin_with": report.begin_with,
        "rules": rules,
    }
    return json.dumps(content, indent=1) + "\n"
