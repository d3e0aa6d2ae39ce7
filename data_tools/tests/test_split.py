"""A document's split depends on its name, and on nothing else."""

import collections

import pytest

from memorizing_data.errors import InputError
from memorizing_data.split import SplitRule


def test_the_split_of_a_name_never_changes():
    # Worked by hand: printf '\na' | sha256sum gives 7361a6f4b374745d..., and
    # 0x7361a6f4b374745d / 2**64 is 0.45070...
    assert SplitRule(0.5, 0.4507).split_of("a") == "validation"
    assert SplitRule(0.5, 0.4508).split_of("a") == "test"
    names = [f"document {i}" for i in range(6)]
    found = [SplitRule(0.3, 0.3).split_of(name) for name in names]
    assert found == ["train", "validation", "train", "train", "test", "validation"]


def test_shares_are_about_the_fractions():
    rule = SplitRule(validation_fraction=0.2, test_fraction=0.1)
    found = collections.Counter(rule.split_of(str(i)) for i in range(10_000))
    # Five standard deviations of a binomial are at most 5 sqrt(10,000 / 4) = 250.
    assert found["test"] == pytest.approx(1000, abs=250)
    assert found["validation"] == pytest.approx(2000, abs=250)


def test_another_salt_draws_another_split():
    names = [str(i) for i in range(100)]
    one, two = SplitRule(0.3, 0.3), SplitRule(0.3, 0.3, salt="2")
    assert [one.split_of(name) for name in names] != [two.split_of(n) for n in names]


def test_patterns_come_first_and_test_before_validation():
    rule = SplitRule(0.0, 0.0, validation=("a*",), test=("*/x", "ab"))
    found = {name: rule.split_of(name) for name in ("a", "ab", "a/x", "b", "B/X")}
    assert found == {
        "a": "validation",
        "ab": "test",
        "a/x": "test",
        "b": "train",
        "B/X": "train",
    }


def test_fractions_may_be_nothing_or_all():
    names = [str(i) for i in range(50)]
    assert {SplitRule(0.0, 0.0).split_of(name) for name in names} == {"train"}
    assert {SplitRule(1.0, 0.0).split_of(name) for name in names} == {"validation"}
    assert {SplitRule(0.0, 1.0).split_of(name) for name in names} == {"test"}


@pytest.mark.parametrize("fractions", [(-0.1, 0.5), (0.6, 0.5), (float("nan"), 0.1)])
def test_refuses_fractions_that_are_none(fractions):
    with pytest.raises(InputError, match="must not be negative nor exceed 1"):
        SplitRule(*fractions)
