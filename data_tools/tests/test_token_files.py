"""Token files come back as they were written, or not at all."""

import hashlib
import json

import numpy as np
import pytest

from memorizing_data.token_files import (
    EncodedDocument,
    TokenFileError,
    open_split,
    write_manifest,
    write_split,
)

BYTES = {"kind": "bytes", "vocab_size": 256, "file": None, "sha256": None}


def write(directory, tokens, vocab_size=256):
    """Writes a train split of the given documents and an empty test split."""
    directory.mkdir()
    documents = [
        EncodedDocument(name, np.array(some), 2 * len(some))
        for name, some in tokens.items()
    ]
    splits = {
        "train": write_split(directory, "train", documents, vocab_size),
        "test": write_split(directory, "test", [], vocab_size),
    }
    return write_manifest(directory, BYTES | {"vocab_size": vocab_size}, splits)


def test_documents_come_back(tmp_path):
    tokens = {"a": [7], "snow ☃\n\t\"'": [255, 0, 3], "": [1, 2, 3, 4, 5]}
    fingerprint = write(tmp_path / "set", tokens)
    files = open_split(tmp_path / "set", "train")
    assert (files.split, files.vocab_size, files.num_tokens) == ("train", 256, 9)
    assert files.fingerprint == fingerprint
    assert files.tokenizer == BYTES
    assert [document.name for document in files.documents] == list(tokens)
    assert [document.start for document in files.documents] == [0, 1, 4]
    assert [document.num_bytes for document in files.documents] == [2, 6, 10]
    for index, some in enumerate(tokens.values()):
        assert files.tokens(index).tolist() == some
    assert files.tokens(2, 1, 4).tolist() == [2, 3, 4]
    assert files.tokens(2, 5).tolist() == []


def test_tokens_are_a_copy(dataset):
    files = dataset([3])
    before = files.tokens(0)
    files.tokens(0)[:] = 0
    assert before.dtype == np.int32
    assert files.tokens(0).tolist() == before.tolist() != [0, 0, 0]


@pytest.mark.parametrize(
    ("vocab_size", "content"),
    [(65536, b"\xff\xff\x01\x00"), (65537, b"\x00\x00\x01\x00\x01\x00\x00\x00")],
)
def test_bytes_on_disk_follow_the_vocabulary(tmp_path, vocab_size, content):
    tokens = [vocab_size - 1, 1]
    write(tmp_path / "set", {"a": tokens}, vocab_size)
    assert (tmp_path / "set/train.tokens").read_bytes() == content
    assert open_split(tmp_path / "set", "train").tokens(0).tolist() == tokens


@pytest.mark.parametrize("tokens", [[], [1, -1], [256]])
def test_refuses_to_write_what_cannot_be_read(tmp_path, tokens):
    with pytest.raises(ValueError, match="document 'odd' has"):
        write(tmp_path / "set", {"odd": tokens})


@pytest.mark.parametrize(("index", "error"), [(-1, IndexError), (1, IndexError)])
def test_refuses_a_document_that_is_not_there(dataset, index, error):
    with pytest.raises(error, match="among 1"):
        dataset([3]).tokens(index)


@pytest.mark.parametrize(("first", "last"), [(-1, 2), (2, 1), (0, 4)])
def test_refuses_tokens_that_are_not_there(dataset, first, last):
    with pytest.raises(ValueError, match=r"num_tokens=3"):
        dataset([3, 5]).tokens(0, first, last)


def flip(path, place=2):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "tokens cut short": (lambda d: cut(d / "train.tokens"), "cut short or extended"),
    "tokens extended": (lambda d: extend(d / "train.tokens"), "should have 6 bytes"),
    "tokens altered": (lambda d: flip(d / "train.tokens"), "train.tokens was altered"),
    "tokens missing": (lambda d: (d / "train.tokens").unlink(), "No such file"),
    "index altered": (lambda d: flip(d / "train.documents.jsonl"), "was altered"),
    "index missing": (lambda d: (d / "train.documents.jsonl").unlink(), "No such"),
    "manifest cut short": (lambda d: cut(d / "dataset.json"), "not valid JSON"),
    "manifest missing": (lambda d: (d / "dataset.json").unlink(), "not a dataset"),
    "other version": (lambda d: change(d, version=9), "has format version 9"),
    "other format": (lambda d: change(d, format="images"), "does not say"),
    "other tokenizer": (lambda d: change(d, tokenizer=None), "was altered"),
    "manifest is a list": (lambda d: (d / "dataset.json").write_text("[]"), "not say"),
}


def cut(path):
    path.write_bytes(path.read_bytes()[:-2])


def extend(path):
    path.write_bytes(path.read_bytes() + b"\0\0")


def change(directory, **values):
    manifest = json.loads((directory / "dataset.json").read_text())
    (directory / "dataset.json").write_text(json.dumps(manifest | values))


@pytest.mark.parametrize("damage", DAMAGE)
def test_notices_damage(tmp_path, damage):
    write(tmp_path / "set", {"a": [1, 2, 3]})
    inflict, message = DAMAGE[damage]
    inflict(tmp_path / "set")
    with pytest.raises(TokenFileError, match=message) as caught:
        open_split(tmp_path / "set", "train")
    assert str(tmp_path / "set") in str(caught.value)


def test_without_verification_only_sizes_are_checked(tmp_path):
    write(tmp_path / "set", {"a": [1, 2, 3]})
    flip(tmp_path / "set/train.tokens", 0)
    files = open_split(tmp_path / "set", "train", verify=False)
    assert files.tokens(0).tolist() == [0, 2, 3]
    cut(tmp_path / "set/train.tokens")
    with pytest.raises(TokenFileError, match="cut short"):
        open_split(tmp_path / "set", "train", verify=False)


def test_a_split_without_documents_says_so(tmp_path):
    write(tmp_path / "set", {"a": [1]})
    with pytest.raises(TokenFileError, match=r"'test' of .* holds no documents"):
        open_split(tmp_path / "set", "test")
    with pytest.raises(TokenFileError, match="no split 'dev'; it has train, test"):
        open_split(tmp_path / "set", "dev")


def test_fingerprint_is_what_the_format_says(tmp_path):
    fingerprint = write(tmp_path / "set", {"ü": [1, 2, 3]})
    manifest = json.loads((tmp_path / "set/dataset.json").read_text("ascii"))
    parts = {key: manifest[key] for key in ("splits", "tokenizer", "version")}
    text = json.dumps(parts, sort_keys=True).encode("ascii")
    assert fingerprint == manifest["fingerprint"] == hashlib.sha256(text).hexdigest()


def test_fingerprint_stands_for_the_tokens(tmp_path):
    same = write(tmp_path / "1", {"a": [1, 2], "b": [3]})
    assert write(tmp_path / "2", {"a": [1, 2], "b": [3]}) == same
    others = [
        write(tmp_path / "3", {"a": [1, 2], "b": [4]}),
        write(tmp_path / "4", {"a": [1], "b": [2, 3]}),
        write(tmp_path / "5", {"b": [3], "a": [1, 2]}),
        write(tmp_path / "6", {"a": [1, 2], "b": [3]}, vocab_size=257),
    ]
    assert len({same, *others}) == 5
