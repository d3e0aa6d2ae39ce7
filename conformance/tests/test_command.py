"""The command line: what it prints, writes and refuses."""

import json
import subprocess
import sys
import textwrap
from html.parser import HTMLParser
from pathlib import Path

import pytest

from memorizing_conformance.__main__ import main
from memorizing_conformance.features import METHODS
from memorizing_conformance.loading import UsageError, require_complete
from memorizing_conformance.reference_adapter import (
    BucketedReference,
    ReferenceImplementation,
)

TEST = "test_resets.py::test_no_reset_forgets_nothing"
EXAMPLES = Path(__file__).parents[1] / "examples"


class NeverResets(ReferenceImplementation):
    name = "never <resets>"

    def reset(self, state, start_of_document):
        return super().reset(state, 0 * start_of_document > 0)


class NoName:
    pass


class NeedsArguments:
    def __init__(self, size):
        self.size = size


def run(*arguments, quiet=True):
    return main([*arguments, *(["--quiet"] if quiet else []), "--examples", "5"])


def named(cls):
    return f"--implementation={__name__}:{cls.__name__}"


def test_the_reference_breaks_no_rule(capsys):
    assert run("--rule=MEM-5", quiet=False) == 0
    output = capsys.readouterr().out
    assert output.endswith("\nrules broken: none\n")
    assert "MEM-5   a reset comes before" in output


def test_broken_rules_are_named_last(capsys):
    assert run(named(NeverResets), "--rule=MEM-5", "--rule=MEM-6") == 1
    output = capsys.readouterr().out
    # Slots are counted from the last reset, so a reset that never fires breaks both.
    assert output.endswith(
        "\nbegin with: MEM-2 MEM-5 (level: memory)\n\nrules broken: MEM-2 MEM-5\n"
    )
    assert "level: memory" in output
    assert "smallest example: stream=Stream(" in output
    line = next(line for line in output.splitlines() if line.startswith("  rerun: "))
    assert f"--implementation {__name__}:NeverResets --examples 5 --seed 0" in line


def test_reports_are_written(tmp_path, capsys):
    files = [tmp_path / "report.json", tmp_path / "report.html"]
    run(named(NeverResets), "--rule=MEM-5", *(f"--{f.suffix[1:]}={f}" for f in files))
    capsys.readouterr()
    report = json.loads(files[0].read_text())
    assert report["implementation"] == "never <resets>"
    assert report["broken"] == ["MEM-2", "MEM-5"]
    rules = {rule["rule"]: rule for rule in report["rules"]}
    assert rules["MEM-5"]["failed"][0]["rerun"].startswith("python -m memorizing_conf")
    assert rules["PRE-1"]["status"] == "untested"

    page = files[1].read_text()
    HTMLParser().feed(page)
    assert "never &lt;resets&gt;" in page
    assert '<span class="broken">broken' in page
    assert "http" not in page, "the page needs something from elsewhere"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "report.html",
        "report.json",
    ]


def known(tmp_path, test, reason="because"):
    path = tmp_path / "known.toml"
    path.write_text(f'[[known]]\ntest = "{test}"\nreason = "{reason}"\n')
    return f"--known-failures={path}"


def test_a_known_failure_breaks_no_rule(tmp_path, capsys):
    test = "test_resets.py::test_a_reset_row_finds_nothing"
    arguments = [named(NeverResets), f"--test={test}"]
    assert run(*arguments) == 1
    assert run(*arguments, known(tmp_path, test)) == 0
    assert "known: because" in capsys.readouterr().out


def test_a_known_failure_that_passes_is_told(tmp_path, capsys):
    assert run(f"--test={TEST}", known(tmp_path, TEST)) == 1
    assert "take it off the list" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[[known]]\ntest = "test_no.py::test_no"\nreason = "r"\n', "no test has that"),
        (f'[[known]]\ntest = "{TEST}"\n', "exactly a test and a reason"),
        (f'[[known]]\ntest = "{TEST}"\nreason = " "\n', "needs words"),
        ("[[other]]\n", "more than"),
        ("known = 1\n", "more than"),
        ("[[known\n", "cannot read"),
    ],
)
def test_a_bad_list_is_refused(tmp_path, capsys, content, message):
    path = tmp_path / "known.toml"
    path.write_text(content)
    assert run(f"--test={TEST}", f"--known-failures={path}") == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--implementation=nowhere"], "expected MODULE:CLASS"),
        (["--implementation=no_such_module:Class"], "cannot import no_such_module"),
        (["--implementation=json:Class"], "module json has no Class"),
        ([named(NeedsArguments)], "must work without arguments"),
        ([named(NoName)], "NoName has no attribute name"),
        (["--rule=MEM-99"], "--rule is MEM-99, expected one of SEG-1"),
        (["--test=no such test"], "no test is called 'no such test'"),
        (["--json=/no/such/folder/report.json"], "cannot write"),
        (["--html=/"], "cannot write"),
        (["--known-failures=/no/such/file"], "cannot read known failures"),
    ],
)
def test_misuse_is_one_sentence(capsys, arguments, message):
    assert run(*arguments) == 2
    output = capsys.readouterr()
    assert output.err.startswith("error: ")
    assert output.err.count("\n") == 1
    assert message in output.err
    assert output.out == ""


@pytest.mark.parametrize("arguments", [["--examples=0"], ["--seed=x"], ["--what"]])
def test_bad_options_exit_with_2(capsys, arguments):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("feature", METHODS)
def test_a_promised_method_must_be_there(feature):
    base = (
        BucketedReference if feature == "bucketed_search" else ReferenceImplementation
    )
    lame = type("Lame", (base,), {METHODS[feature][0]: None})
    with pytest.raises(UsageError, match=f"no method {METHODS[feature][0]}"):
        require_complete(lame(), "Lame")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": {"exact_search", "speed"}}, "unknown feature 'speed'"),
        ({"features": {"model"}}, "names 0 kinds of search"),
        ({"features": {"exact_search", "bucketed_search"}}, "names 2 kinds of search"),
        ({"recall_target": 0}, "recall_target is 0"),
        ({"insert": None}, "no method insert"),
    ],
)
def test_an_adapter_must_make_sense(changes, message):
    odd = type("Odd", (ReferenceImplementation,), changes)
    with pytest.raises(UsageError, match=message):
        require_complete(odd(), "Odd")


def test_the_example_of_the_guide_passes_from_elsewhere(tmp_path):
    """In a folder of its own, with a configuration that pytest must not take up."""
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --no-such-option\n")
    (tmp_path / "conftest.py").write_text("raise RuntimeError\n")
    for name in ("list_memory.py", "list_memory_adapter.py"):
        (tmp_path / name).write_text((EXAMPLES / name).read_text())
    command = [sys.executable, "-m", "memorizing_conformance", "--quiet"]
    output = subprocess.check_output(
        [*command, "--implementation=list_memory_adapter:ListMemoryImplementation"],
        cwd=tmp_path,
        text=True,
    )
    assert output == "\nrules broken: none\n"
    left = {path.name for path in tmp_path.iterdir()} - {"__pycache__"}
    assert left == {
        "conftest.py",
        "list_memory.py",
        "list_memory_adapter.py",
        "pytest.ini",
    }


def test_the_guide_shows_the_adapter_as_it_is():
    guide = (EXAMPLES.parent / "README.md").read_text()
    source = (EXAMPLES / "list_memory_adapter.py").read_text()
    body = source[source.index("class ListMemoryImplementation") :]
    assert textwrap.dedent(body) in guide
