"""SPEC.md and README.md tell the truth: every code block runs, every rule is cited."""

import contextlib
import io
import pathlib
import re

import pytest

import memorizing_reference

FOLDER = pathlib.Path(__file__).parent.parent
PACKAGE = pathlib.Path(memorizing_reference.__file__).parent
# Code, and what it prints if that is shown right below.
BLOCK = re.compile(
    r"^```python\n(.*?)^```$(?:\n```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL
)
RULE = re.compile(r"^### ([A-Z]+-\d+): ", re.MULTILINE)

# Rules for implementations.
NOT_IN_THE_PACKAGE = {"ANN", "GEN", "CKP"}


def blocks(name):
    """Returns line, code and shown output of each block; errors point at its lines."""
    path = FOLDER / name
    text = path.read_text(encoding="utf-8")
    result = []
    for match in BLOCK.finditer(text):
        line = text[: match.start(1)].count("\n")
        code = compile("\n" * line + match[1], path, "exec")
        result.append((line + 1, code, match[2] or ""))
    return result


PREAMBLE, *EXAMPLES = blocks("SPEC.md")


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: f"line {example[0]}")
def test_examples_of_the_rules(example):
    """Each stands alone after the preamble."""
    namespace = {}
    for _, code, _ in (PREAMBLE, example):
        exec(code, namespace)


def test_tour():
    """The blocks of the README build on each other, and print what it shows."""
    namespace = {}
    for line, code, shown in blocks("README.md"):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, namespace)
        assert printed.getvalue() == shown, f"README.md, line {line}"


def sections():
    """Returns the text under the heading of each rule."""
    text = (FOLDER / "SPEC.md").read_text(encoding="utf-8")
    _, *parts = RULE.split(text)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_every_rule_has_one_example():
    missing = [
        rule for rule, text in sections().items() if len(BLOCK.findall(text)) != 1
    ]
    assert missing == []


def test_every_rule_says_where_it_comes_from():
    origin = re.compile(r"^\*\*\[(P|A|O|arXiv|Llama)")
    odd = [
        rule
        for rule, text in sections().items()
        if not origin.match(text.partition("\n")[2])
    ]
    assert odd == []


def test_rules_are_numbered_without_gaps():
    families = {}
    for rule in sections():
        family, _, number = rule.partition("-")
        families.setdefault(family, []).append(int(number))
    for family, numbers in families.items():
        assert numbers == list(range(1, len(numbers) + 1)), family
    assert sum(map(len, families.values())) == 56


def test_every_rule_is_cited_where_it_is_implemented():
    source = "\n".join(
        path.read_text(encoding="utf-8") for path in PACKAGE.glob("*.py")
    )
    cited = set(re.findall(r"\b[A-Z]+-\d+\b", source))
    expected = {r for r in sections() if r.split("-")[0] not in NOT_IN_THE_PACKAGE}
    assert expected - cited == set()


def test_no_rule_is_cited_that_does_not_exist():
    families = {rule.split("-")[0] for rule in sections()}
    pattern = re.compile(rf"\b(?:{'|'.join(families)})-\d+\b")
    for path in [*PACKAGE.glob("*.py"), *FOLDER.glob("**/*.py"), FOLDER / "README.md"]:
        cited = set(pattern.findall(path.read_text(encoding="utf-8")))
        assert cited <= set(sections()), path
