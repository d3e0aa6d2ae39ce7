"""Every rule of SPEC.md can be followed: to the reference, a test, a mutant, a vector.

Exceptions stand here, each with its reason, and must be needed.
"""

import re
from pathlib import Path

import pytest
from mutants import MUTANTS

import memorizing_reference
from memorizing_conformance import runner, vectors
from memorizing_conformance.rules import LEVELS, RULE_ID, RULES

REFERENCE = Path(memorizing_reference.__file__).parent
SPEC = REFERENCE.parent / "SPEC.md"

NOT_IN_THE_REFERENCE = {
    "ANN-1": "the reference searches exactly, or by buckets",
    "ANN-2": "the reference searches exactly, or by buckets",
    "GEN-1": "the reference reads whole segments; its adapter decodes",
    "CKP-1": "the state of the reference is data; its adapter writes it",
    "CKP-2": "a function without hidden state has nothing to disturb",
}
NOT_A_VECTOR = {
    "MOD-3": "a distribution is measured, not compared",
    "BKT-2": "a choice of buckets is free as long as its recall is enough",
    "ANN-1": "what is found is free as long as it is sound",
    "ANN-2": "recall is measured",
    "CKP-1": "no file format is prescribed",
    "CKP-2": "two runs of one implementation are compared",
}


def lacking(found, exceptions):
    """Returns the rules that were not found and are no exceptions, and the reverse."""
    missing = set(RULES) - set(found)
    return sorted(missing - set(exceptions)), sorted(set(exceptions) - missing)


def test_the_rules_are_those_of_the_spec():
    headings = re.findall(r"^### .*$", SPEC.read_text(), re.MULTILINE)
    ids = [found.group() for line in headings if (found := RULE_ID.search(line))]
    assert ids == list(RULES)


def test_every_rule_is_cited_where_it_is_implemented():
    cited = set()
    for path in REFERENCE.glob("*.py"):
        source = path.read_text()
        cited.update(RULE_ID.findall(source))
        for family, first, last in re.findall(
            r"([A-Z]+)-(\d+) to (?:\1-)?(\d+)", source
        ):
            cited.update(f"{family}-{i}" for i in range(int(first), int(last) + 1))
    assert lacking(cited, NOT_IN_THE_REFERENCE) == ([], [])


def test_every_rule_is_broken_by_a_mutant():
    assert lacking({mutant.breaks for mutant in MUTANTS}, {}) == ([], [])


def test_every_rule_has_a_vector():
    rules = {rule for vector in vectors.read_all() for rule in vector.content["rules"]}
    assert lacking(rules, NOT_A_VECTOR) == ([], [])


@pytest.fixture(scope="module")
def tests():
    """The rules and level of every test."""
    return runner.marks()


def test_every_rule_is_marked_on_a_test(tests):
    marked = {rule for rules, _ in tests.values() for rule in rules}
    assert lacking(marked, {}) == ([], [])


def test_every_test_has_a_rule_and_a_level(tests):
    for name, (rules, level) in tests.items():
        assert rules, f"{name} checks no rule"
        assert set(rules) <= set(RULES), f"{name}: {rules}"
        assert level in LEVELS, f"{name}: {level}"
