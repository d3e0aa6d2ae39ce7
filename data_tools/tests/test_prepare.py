"""From documents to token files and back, whatever happens on the way."""

import collections
import json
import re

import pytest

from memorizing_data import prepare as prepare_module
from memorizing_data import tokenizer
from memorizing_data.row_reader import RowReader
from memorizing_data.token_files import open_split

# Of 1 to 29 characters, so of fewer bytes than a segment, of just as many, and more.
ODD = {f"ü {n}/☃.txt": ("aé\n" * n)[:n] for n in range(1, 30)}
SEGMENT_LENGTH = 8


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("kind", ["bytes", "bpe:280"])
def test_every_token_of_odd_documents_is_predicted_once(tree, command, kind):
    root = tree(ODD)
    output = root.parent / "out"
    options = ("--tokenizer", kind, "--test-fraction", 0.3, "--quiet")
    assert command("prepare", "--input", root, "--output", output, *options)[0] == 0
    loaded = tokenizer.load(output)
    found = {}
    for split in ("train", "validation", "test"):
        files = open_split(output, split)
        predicted = collections.Counter()
        options = {"batch": 3, "segment_length": SEGMENT_LENGTH, "seed": 1}
        for segments in RowReader(files, **options, repeat=False):
            for row, document in enumerate(segments.document):
                places = segments.position[row] + 1 + range(segments.num_targets[row])
                predicted.update((document, place) for place in places)
        for index, document in enumerate(files.documents):
            found[document.name] = loaded.decode(files.tokens(index))
            assert document.num_bytes == len(found[document.name].encode())
            for place in range(1, document.num_tokens):
                assert predicted.pop((index, place)) == 1
        assert not predicted
    assert found == ODD


def test_the_dataset_says_how_it_came_about(tree, command):
    root = tree({"a/1": "x", "a/2": "yz", "b/1": "b", "b/2": ""})
    output = root.parent / "out"
    options = ("--document-per", "folder", "--validation", "b*", "--order-seed", 5)
    _, text, warnings = command(
        "prepare", "--input", root, "--output", output, *options
    )
    assert "skipped     1 empty: b/2" in text
    assert "warning: the test split is empty" in warnings
    manifest = json.loads((output / "dataset.json").read_text())
    assert manifest["skipped"] == [{"name": "b/2", "reason": "empty"}]
    assert manifest["settings"]["validation"] == ["b*"]
    assert manifest["settings"]["order_seed"] == 5
    assert manifest["splits"]["train"]["num_bytes"] == 4  # x, y, z and a newline.
    lines = (output / "train.documents.jsonl").read_text().splitlines()
    (document,) = map(json.loads, lines)
    assert sorted(document["files"]) == ["a/1", "a/2"]
    assert document["num_tokens"] == document["num_bytes"] == 4


def test_a_second_call_changes_nothing(tree, command):
    root = tree(ODD)
    arguments = ("prepare", "--input", root, "--output", root.parent / "out")
    command(*arguments)
    before = contents(root.parent / "out")
    status, text, _ = command(*arguments)
    assert status == 0
    assert "was there already, intact; nothing was written" in text
    assert contents(root.parent / "out") == before


def test_the_same_documents_elsewhere_give_the_same_files(tree, command):
    for name in ("one", "two"):
        root = tree(ODD if name == "one" else dict(reversed(ODD.items())), name)
        options = ("--tokenizer", "bpe:270", "--quiet")
        command(
            "prepare", "--input", root, "--output", root.parent / f"{name}.d", *options
        )
    one, two = (contents(root.parent / f"{name}.d") for name in ("one", "two"))
    del one["dataset.json"], two["dataset.json"]  # Names the input.
    assert one == two


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _root: ("--tokenizer", "bpe:270"), "made with --tokenizer 'bytes'"),
        (lambda _root: ("--split-salt", "x"), "made with --split-salt ''"),
        (lambda root: (root / "new").write_text("x") and (), "made with other texts"),
        (lambda root: (root / "new").touch() or (), "made with other texts"),
        (
            lambda root: (root.parent / "out/test.tokens").write_text("x") and (),
            r"test.tokens was cut short or extended: .* again with --overwrite",
        ),
        (
            lambda root: (root.parent / "out/dataset.json").write_text("{") and (),
            r"not valid JSON.* again with --overwrite",
        ),
    ],
)
def test_never_replaces_another_dataset_unasked(tree, command, change, message):
    root = tree(ODD)
    output = root.parent / "out"
    arguments = ("prepare", "--input", root, "--output", output)
    command(*arguments)
    options = change(root)
    before = contents(output)
    status, _, said = command(*arguments, *options)
    assert status == 2
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert re.search(message, said)
    assert contents(output) == before
    assert command(*arguments, *options, "--overwrite", "--quiet")[0] == 0
    assert command("inspect", output, "--verify")[0] == 0


def test_never_replaces_what_is_no_dataset(tree, command):
    root = tree(ODD)
    for files in ({"precious": "x"}, {"dataset.json": "{}", "precious": "x"}):
        output = tree(files, f"out{len(files)}")
        arguments = ("prepare", "--input", root, "--output", output, "--overwrite")
        status, _, said = command(*arguments)
        assert status == 2
        assert "holds precious, which is not part of a dataset" in said
        assert (output / "precious").read_text() == "x"
    output = tree({}, "empty")
    assert command("prepare", "--input", root, "--output", output)[0] == 0


LOSSY = {
    "type": "WordLevel",
    "vocab": {"aaa": 0, "?": 1},
    "unk_token": "?",
}


def test_a_tokenizer_that_cannot_hold_a_text_is_refused(tree, command, specification):
    root = tree({"1": "aaa", "2": "aaa ☃ b"})
    path = root.parent / "tokenizer.json"
    path.write_text(specification(LOSSY))
    output = root.parent / "out"
    arguments = ("prepare", "--input", root, "--output", output, "--tokenizer", path)
    status, _, said = command(*arguments, "--quiet")
    assert status == 2
    assert "cannot hold the document '2'" in said
    assert "'aaa ☃ b'" in said
    assert sorted(path.name for path in root.parent.iterdir()) == ["in", path.name]
    (root / "2").write_text("aaa")
    assert command(*arguments, "--quiet")[0] == 0
    assert (output / "tokenizer.json").read_bytes() == path.read_bytes()
    assert tokenizer.load(output).decode([0]) == "aaa"
    path.write_text(specification(LOSSY) + "\n")
    assert "another tokenizer" in command(*arguments)[2]


BAD = {
    "missing input": (["--input", "nowhere"], "'nowhere' does not exist"),
    "no input": (["--input", ""], "'' does not exist"),
    "a file": (["--input", "in/a.txt"], "neither a folder nor a file of JSON lines"),
    "empty corpus": (["--input", "bad"], "skipped: 1 binary"),
    "no such ending": (["--extensions", "py"], "check --input and --extensions"),
    "unknown tokenizer": (["--tokenizer", "x"], "neither bytes nor bpe:SIZE nor"),
    "small bpe": (["--tokenizer", "bpe:256"], "no size from 257"),
    "odd bpe": (["--tokenizer", "bpe:²"], "no size from 257"),
    "huge bpe": (["--tokenizer", "bpe:9999999999999"], "no size from 257"),
    "no tokenizer": (["--tokenizer", "in/a.txt"], "not a tokenizer.json"),
    "binary tokenizer": (["--tokenizer", "bad/b"], "cannot use the tokenizer bad/b"),
    "fraction": (["--test-fraction", "2"], "must not be negative nor exceed 1"),
    "all to test": (
        [
            "--test-fraction",
            "1",
            "--validation-fraction",
            "0",
            "--tokenizer",
            "bpe:300",
        ],
        "the train split is empty",
    ),
    "pattern": (["--test", "q*"], "matches no document; they are called for example"),
    "wrong option": (["--text-field", "x"], "does not apply to a folder"),
    "wrong option of a corpus": (
        ["--input", "stdlib", "--order-seed", "1"],
        "--order-seed does not apply to a built-in corpus",
    ),
    "output in input": (["--output", "in/out"], "lie in one another"),
    "input in output": (["--output", "."], "lie in one another"),
    "output is a file": (["--output", "file"], "is a file; choose another"),
    "impossible output": (["--output", "file/x"], "cannot write"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_sentence(tree, command, monkeypatch, case):
    root = tree({"a.txt": "text"})
    tree({"b": b"\xff\0"}, "bad")
    (root.parent / "file").touch()
    monkeypatch.chdir(root.parent)
    before = sorted(root.parent.rglob("*"))
    options, message = BAD[case]
    arguments = {"--input": "in", "--output": "out"}
    flat = [
        each for pair in arguments.items() for each in pair if pair[0] not in options
    ]
    status, text, said = command("prepare", *flat, *options)
    assert status == 2
    assert text == ""
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert message in said
    assert sorted(root.parent.rglob("*")) == before


@pytest.mark.parametrize(
    "arguments", [[], ["prepare"], ["prepare", "--bogus"], ["inspect"], ["unknown"]]
)
def test_a_command_line_that_cannot_be_parsed_exits_2(command, arguments):
    assert command(*arguments)[0] == 2


def test_documents_that_change_meanwhile_are_noticed(tree, command, monkeypatch):
    root = tree({"a": "a", "b": "b"})
    train = prepare_module.train_bpe

    def change_and_train(texts, size):
        (root / "b").write_text("c")
        return train(texts, size)

    monkeypatch.setattr(prepare_module, "train_bpe", change_and_train)
    options = ("--tokenizer", "bpe:300", "--test-fraction", 0, "--quiet")
    output = root.parent / "out"
    status, _, said = command("prepare", "--input", root, "--output", output, *options)
    assert status == 2
    assert "'b' changed while it was being read" in said
    assert not output.exists()


def test_the_same_text_in_two_splits_is_told(tree, command):
    root = tree({"a": "same", "b": "same", "c": "other"})
    options = ("--test", "a", "--test-fraction", 0, "--validation-fraction", 0)
    output = root.parent / "out"
    said = command("prepare", "--input", root, "--output", output, *options)[2]
    assert "1 texts stand word for word in more than one split" in said


def test_json_lines_go_the_same_way(tmp_path, command):
    path = tmp_path / "books.jsonl"
    path.write_text('{"body": "one", "id": "1"}\n{"id": "2"}\n')
    fields = ("--text-field", "body", "--name-field", "id", "--test-fraction", 0)
    output = tmp_path / "out"
    _, text, _ = command(
        "prepare", "--input", path, "--output", output, *fields, "--json"
    )
    summary = json.loads(text)
    assert summary["splits"]["train"]["num_tokens"] == 3
    assert summary["skipped"]["no text in field 'body'"]["names"] == ["books.jsonl:2"]
    assert summary["written"] is True
