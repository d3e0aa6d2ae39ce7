"""Inspecting a dataset tells what it holds and what is wrong with it."""

import json

import pytest


@pytest.fixture
def prepared(tree, command):
    root = tree(
        {"short": "abc", "long/☃": "d" * 8193, "new\nline": "e" * 8192, "none": ""}
    )
    output = root.parent / "out"
    options = ("--test", "short", "--validation-fraction", 0, "--test-fraction", 0)
    _, text, _ = command("prepare", "--input", root, "--output", output, *options)
    return output, text


def test_says_what_prepare_said(prepared, command):
    output, text = prepared
    assert command("inspect", output)[1] == text
    assert "train       2 documents, 16,385 tokens, 1.00 bytes a token" in text
    assert "lengths     median 8,192 tokens, longest 8,193 (long/☃)" in text
    assert "8,192 pairs span 67% and 65,536 pairs span 100% of the documents" in text


def test_figures_for_machines(prepared, command):
    summary = json.loads(command("inspect", prepared[0], "--json", "--verify")[1])
    assert summary["splits"]["test"] == {
        "num_documents": 1,
        "num_tokens": 3,
        "num_bytes": 3,
    }
    assert summary["median_tokens"] == 8192
    assert summary["share_spanned"] == {"8192": 2 / 3, "65536": 1.0}
    assert summary["skipped"] == {"empty": {"count": 1, "names": ["none"]}}
    assert summary["verified"] is True


def test_shows_the_head_of_a_document(prepared, command):
    show = ("inspect", prepared[0], "--document", "long/☃", "--tokens", 5)
    assert command(*show)[1].endswith("\n\nddddd\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--document", "shor"), "no document 'shor'; the nearest name is 'short'"),
        (("--document", "short", "--tokens", 0), "--tokens is 0"),
    ],
)
def test_what_cannot_be_shown(prepared, command, options, message):
    status, _, said = command("inspect", prepared[0], *options)
    assert status == 2
    assert message in said


def test_damage_is_found(prepared, command):
    output, _ = prepared
    path = output / "train.tokens"
    path.write_bytes(b"x" + path.read_bytes()[1:])
    assert command("inspect", output)[0] == 0
    status, _, said = command("inspect", output, "--verify")
    assert status == 2
    assert f"{path} was altered" in said
    path.write_bytes(b"")
    assert command("inspect", output)[0] == 2


def test_a_folder_that_is_no_dataset(tmp_path, command):
    for path in (tmp_path, tmp_path / "missing"):
        status, _, said = command("inspect", path)
        assert status == 2
        assert f"{path} holds no dataset.json" in said
