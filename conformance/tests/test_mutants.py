"""The suite must notice broken implementations, each by the rule that it breaks."""

import collections

import pytest
from mutants import MUTANTS

from memorizing_conformance import runner
from memorizing_conformance.reference_adapter import (
    BucketedReference,
    ReferenceImplementation,
)

# Inputs need not be made small: only whether a test fails matters.
QUICK = {"examples": 20, "shrink": False, "stop_early": True}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_suite_names_the_broken_rule(mutant):
    options = runner.Options(rules=(mutant.breaks,), **QUICK)
    results = runner.run(mutant.implementation(), options)
    assert results, f"no test checks {mutant.breaks}"
    assert "failed" in {result.outcome for result in results}


def test_mutants_have_names_of_their_own():
    names = collections.Counter(mutant.name for mutant in MUTANTS)
    assert names.most_common(1)[0][1] == 1
    assert len(names) >= 60


@pytest.mark.parametrize("adapter", [ReferenceImplementation, BucketedReference])
def test_the_reference_itself_passes(adapter):
    results = runner.run(adapter(), runner.Options(**QUICK))
    failed = [result for result in results if result.outcome == "failed"]
    assert not failed, failed[0].details
