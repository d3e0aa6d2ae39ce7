"""Runs the suite on one implementation, inside pytest, and returns what happened."""

import dataclasses
import pathlib
import tempfile
from typing import Any, Literal

import hypothesis
import pytest
from hypothesis.configuration import set_hypothesis_home_dir
from tqdm import tqdm

SUITE = pathlib.Path(__file__).parent / "suite"


@dataclasses.dataclass
class Result:
    """What one test came to.

    Attributes:
      test: file and name, such as "test_memory.py::test_name[parameters]".
      level: the level it belongs to, one of `rules.LEVELS`.
      rules: the rules it checks.
      outcome: how it ended.
      message: why it failed or was skipped, in one line.
      example: the smallest failing example that was found, if inputs were drawn.
      details: the traceback.
      reason: why the failure is known, if it is (`known_failures`).
    """

    test: str
    level: str
    rules: tuple[str, ...]
    outcome: Literal["passed", "failed", "skipped"] = "passed"
    message: str = ""
    example: str = ""
    details: str = ""
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Options:
    """Which tests run, and how hard they look.

    Attributes:
      rules: only tests of these rules; all if empty.
      test: only tests whose name contains this.
      examples: how many inputs each property is tried on.
      seed: which ones.
      shrink: whether failing examples are made small.
      stop_early: whether the first failure ends the run.
      progress: whether a progress bar is shown.
    """

    rules: tuple[str, ...] = ()
    test: str = ""
    examples: int = 30
    seed: int = 0
    shrink: bool = True
    stop_early: bool = False
    progress: bool = False


def run(implementation: Any, options: Options) -> list[Result]:
    """Returns the result of every test that was selected, in suite order.

    Raises:
      RuntimeError: if pytest itself failed, and not a test.
    """
    settings = hypothesis.settings
    phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
    if options.shrink:
        phases.append(hypothesis.Phase.shrink)
    before = settings.get_current_profile_name()
    settings.register_profile(
        "conformance",
        # A first call compiles, so a deadline would only measure the compiler.
        deadline=None,
        database=None,
        max_examples=options.examples,
        phases=phases,
        print_blob=False,
        report_multiple_bugs=False,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    plugin = Plugin(implementation, options)
    with tempfile.TemporaryDirectory() as directory:
        set_hypothesis_home_dir(directory)
        settings.load_profile("conformance")
        try:
            status = pytest.main(_arguments(directory, options), plugins=[plugin])
        finally:
            settings.load_profile(before)
            set_hypothesis_home_dir(None)
    ended = (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
    if status not in (*ended, pytest.ExitCode.NO_TESTS_COLLECTED):
        raise RuntimeError(f"pytest stopped with {status!r}; {plugin.problem}")
    return plugin.results


def marks() -> dict[str, tuple[tuple[str, ...], str]]:
    """Returns the rules and the level of every test, by its name."""
    found: dict[str, tuple[tuple[str, ...], str]] = {}

    class Collector:
        def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
            for item in items:
                found[name_of(item)] = rules_of(item), level_of(item)
            items.clear()

    with tempfile.TemporaryDirectory() as directory:
        pytest.main(_arguments(directory, Options()), plugins=[Collector()])
    return found


def _arguments(directory: str, options: Options) -> list[str]:
    # Only what the suite needs: no configuration, plugin output or cache of the
    # project in whose folder it runs.
    settings = pathlib.Path(directory) / "pytest.ini"
    settings.write_text("[pytest]\nfilterwarnings = ignore\n")
    arguments = [str(SUITE), f"-c={settings}", f"--rootdir={SUITE}"]
    arguments += ["-p", "no:cacheprovider", "-p", "no:terminal", "-p", "no:randomly"]
    arguments += ["--import-mode=importlib", f"--hypothesis-seed={options.seed}"]
    arguments += ["--override-ini=addopts=", "--noconftest"]
    if options.stop_early:
        arguments.append("--exitfirst")
    return arguments


class Plugin:
    """Selects tests, hands them the implementation, and collects results."""

    def __init__(self, implementation: Any, options: Options):
        self._implementation = implementation
        self._options = options
        self._bar: Any = None
        self.results: list[Result] = []
        self.problem = ""

    @pytest.fixture(scope="session")
    def implementation(self) -> Any:
        """The implementation under test."""
        return self._implementation

    def pytest_configure(self, config: pytest.Config) -> None:
        """Declares the marks of the suite."""
        for mark in ("rule(id)", "needs(*features)", "level(name)"):
            config.addinivalue_line("markers", f"{mark}: see memorizing_conformance")

    def pytest_internalerror(self, excrepr: Any) -> None:
        """Remembers what went wrong with pytest itself, or with this plugin."""
        self.problem = str(excrepr)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Remembers why a file of the suite could not be read."""
        if report.failed:
            self.problem = str(report.longrepr)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Selects tests, and skips those that need what is not offered."""
        items[:] = [item for item in items if self._is_selected(item)]
        offered = self._implementation.features
        for item in items:
            needed = {n for mark in item.iter_markers("needs") for n in mark.args}
            # "a or b" is met by either.
            if missing := sorted(n for n in needed if not {*n.split(" or ")} & offered):
                reason = "lacks " + ", ".join(missing)
                item.add_marker(pytest.mark.skip(reason=reason))
        if self._options.progress:
            # No bar where nobody watches: disable=None asks whether it is a terminal.
            self._bar = tqdm(total=len(items), unit="test", leave=False, disable=None)

    def _is_selected(self, item: pytest.Item) -> bool:
        wanted = self._options.rules
        if wanted and not set(wanted) & set(rules_of(item)):
            return False
        return self._options.test in name_of(item)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: Any) -> Any:
        """Keeps the worst outcome of a test's three phases."""
        report = yield
        if call.when == "setup":
            self.results.append(Result(name_of(item), level_of(item), rules_of(item)))
        result = self.results[-1]
        if report.skipped:
            result.outcome = "skipped"
            result.message = str(call.excinfo.value)
        elif report.failed and result.outcome != "failed":
            result.outcome = "failed"
            error = call.excinfo.value
            first_line = str(error).strip().partition("\n")[0]
            kind = "" if isinstance(error, AssertionError) else type(error).__name__
            result.message = ": ".join(part for part in (kind, first_line) if part)
            result.example = _example(error)
            result.details = report.longreprtext
        if call.when == "teardown" and self._bar is not None:
            self._bar.update()
        return report

    def pytest_sessionfinish(self) -> None:
        """Clears the progress bar."""
        if self._bar is not None:
            self._bar.close()


def name_of(item: pytest.Item) -> str:
    """Returns a test's file and name, with its parameters."""
    return f"{item.path.name}::{item.nodeid.partition('::')[2]}"


def level_of(item: pytest.Item) -> str:
    """Returns the level that a test belongs to."""
    mark = item.get_closest_marker("level")
    assert mark is not None, f"{item.nodeid} has no level"
    return str(mark.args[0])


def rules_of(item: pytest.Item) -> tuple[str, ...]:
    """Returns the rules that a test is marked with, in order."""
    marks = [name for mark in item.iter_markers("rule") for name in mark.args]
    return tuple(reversed(marks))


def _example(error: BaseException) -> str:
    """Returns the inputs of a failing example, as hypothesis noted them."""
    notes = "\n".join(getattr(error, "__notes__", []))
    lines = [line.strip() for line in notes.splitlines()]
    # "Failing test case: name(" and its arguments, or the steps of a machine.
    if not lines or not lines[0].startswith(("Falsifying example", "Failing test")):
        return ""
    return " ".join(line for line in lines[1:] if not line.startswith(_NO_INPUT))


_NO_INPUT = ("implementation=", "state = ", "state.teardown", ")")
