"""The suite must notice broken implementations, each by the rule that it breaks."""

import collections
from pathlib import Path

import pytest
from mutants import MUTANTS
from mutants.mutant import Mutant

from memorizing_conformance import runner
from memorizing_conformance.reference_adapter import (
    BucketedReference,
)

# Inputs need not be made small: only whether a test fails matters.
QUICK = {"examples": 20, "shrink": False, "stop_early": True}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_suite_names_the_broken_rule(mutant):
    options = runner.Options(rules=(mutant.breaks,), **QUICK)
    results = runner.run(mutant.implementation(), options)
    assert results, f"no test checks {mutant.breaks}"
    assert "failed" in {result.outcome for result in results}


def test_an_unchanged_copy_passes():
    """Mutants fail for their fault, not for being copies."""
    copy = Mutant(
        "nothing", "MEM-1", "memory", "import dataclasses", "import dataclasses"
    )
    results = runner.run(copy.implementation(), runner.Options(examples=1))
    failed = [result for result in results if result.outcome == "failed"]
    assert not failed, failed[0].details


def test_the_bucketed_reference_passes():
    results = runner.run(BucketedReference(), runner.Options(examples=20))
    failed = [result for result in results if result.outcome == "failed"]
    assert not failed, failed[0].details


def test_mutants_have_names_of_their_own():
    names = collections.Counter(mutant.name for mutant in MUTANTS)
    assert names.most_common(1)[0][1] == 1


def test_the_guide_tells_the_mutation_score():
    guide = (Path(__file__).parents[1] / "README.md").read_text()
    assert f"mutation score {len(MUTANTS)} of {len(MUTANTS)}" in guide
