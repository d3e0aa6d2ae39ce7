"""Sources read what they can and name what they cannot."""

import itertools
import json
import os
import socket

import pytest

from memorizing_data.documents import JsonLines
from memorizing_data.folder import Folder


def read(source, wanted=lambda _name: True):
    """Returns the documents by name, and the skipped by name."""
    skipped = {}
    documents = source.documents(skipped.__setitem__, wanted)
    return {document.name: document for document in documents}, skipped


def texts(source):
    return {name: document.text for name, document in read(source)[0].items()}


def test_a_file_is_a_document(tree):
    files = {"b/ü ☃.txt": "one\r\n\ttwo \u2028", "a.txt": "\ufeffx", "b/a/c": " "}
    assert texts(Folder(tree(files))) == files


def test_files_are_read_in_the_order_of_their_paths(tree):
    root = tree({"b": "1", "a/z": "2", "a.b": "3", "a/b/c": "4", "B": "5"})
    assert list(texts(Folder(root))) == ["B", "a/b/c", "a/z", "a.b", "b"]


def test_a_top_level_folder_is_a_document(tree):
    root = tree({"x/b.py": "B\n", "x/a/c.py": "C", "y.py": "Y", "x/e.py": ""})
    documents, skipped = read(Folder(root, document_per="folder"))
    assert documents["x"].text == "C\nB\n"
    assert documents["x"].files == ("x/a/c.py", "x/b.py")
    assert documents["y.py"].text == "Y"
    assert skipped == {"x/e.py": "empty"}


def test_extensions_choose_files(tree):
    root = tree({"a.py": "1", "b.PY": "2", "c.md": "3", "py": "4", "d.txt": ""})
    assert set(texts(Folder(root, extensions=(".py", ".md")))) == {
        "a.py",
        "b.PY",
        "c.md",
    }


def test_a_random_order_keeps_subfolders_together(tree):
    names = [f"top/{a}/{b}/{c}" for a in "abc" for b in "def" for c in "ghi"]
    root = tree({name: name for name in names})
    orders = set()
    for seed in range(5):
        folder = Folder(root, document_per="folder", order_seed=seed)
        (document,) = read(folder)[0].values()
        assert sorted(document.files) == names
        for depth in (2, 3):
            units = ["/".join(name.split("/")[:depth]) for name in document.files]
            changes = sum(a != b for a, b in itertools.pairwise(units))
            assert changes == len(set(units)) - 1
        orders.add(document.files)
    assert len(orders) == 5


def test_a_random_order_depends_on_nothing_but_the_names(tree):
    names = [f"top/{i}" for i in range(20)]
    one = tree({name: "x" for name in names}, "one")
    two = tree({name: "x" for name in reversed(names)}, "two")
    assert list(texts(Folder(one, order_seed=3))) == list(
        texts(Folder(two, order_seed=3))
    )


def test_what_cannot_be_read_is_named(tree):
    root = tree(
        {
            "good.txt": "good",
            "empty.txt": "",
            "zero.bin": b"a\0b",
            "latin.txt": "ü".encode("latin-1"),
            "cut.txt": "ü".encode()[:1],
            ".git/config": "x",
        }
    )
    os.mkfifo(root / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(root / "socket"))
    documents, skipped = read(Folder(root))
    assert list(documents) == ["good.txt"]
    assert skipped == {
        "empty.txt": "empty",
        "zero.bin": "binary (holds a NUL byte)",
        "latin.txt": "not valid UTF-8",
        "cut.txt": "not valid UTF-8",
        ".git": "version control",
        "pipe": "not a regular file",
        "socket": "not a regular file",
    }


def test_symbolic_links_are_followed_to_what_is_new(tree):
    tree({"new/c": "c", "other": "o"}, "outside")
    root = tree({"a": "a", "sub/b": "b"})
    links = {
        "loop": ".",
        "sub/up": "..",
        "self": "self",
        "broken": "nowhere",
        "again": "a",
        "sub2": "sub",
        "outside": "../outside/new",
        "sub/twice": "../../outside/new",
        "file": "../outside/other",
    }
    for name, target in links.items():
        (root / name).symlink_to(target)
    documents, skipped = read(Folder(root))
    assert list(documents) == ["a", "file", "outside/c", "sub/b"]
    assert skipped == {
        "loop": "symbolic link loop",
        "sub/up": "symbolic link loop",
        "self": "symbolic link loop",
        "broken": "broken link",
        "again": "symbolic link to a file already read",
        "sub2": "symbolic link to a folder already read",
        "sub/twice": "symbolic link to a folder already read",
    }


def test_a_link_above_the_root_does_not_read_the_root_again(tree):
    root = tree({"in/a": "a", "b": "b"}, "top") / "in"
    (root / "above").symlink_to("..")
    documents, skipped = read(Folder(root))
    assert list(documents) == ["a", "above/b"]
    assert skipped == {"above/in": "folder already read"}


def test_two_folders_linked_to_each_other_end(tree):
    root = tree({"x/1": "1", "y/2": "2"})
    (root / "x/y").symlink_to("../y")
    (root / "y/x").symlink_to("../x")
    assert texts(Folder(root)) == {"x/1": "1", "y/2": "2"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_files_and_folders_are_named(tree):
    root = tree({"a": "a", "b": "b", "c/d": "d"})
    (root / "b").chmod(0)
    (root / "c").chmod(0)
    documents, skipped = read(Folder(root))
    (root / "c").chmod(0o700)
    assert list(documents) == ["a"]
    assert skipped == dict.fromkeys("bc", "unreadable (Permission denied)")


def test_a_file_that_vanishes_is_named(tree):
    root = tree({"a": "a", "b": "b"})
    skipped = {}
    documents = Folder(root).documents(skipped.__setitem__, lambda _name: True)
    next(documents)
    (root / "b").unlink()
    assert list(documents) == []
    assert skipped == {"b": "unreadable (No such file or directory)"}


def test_names_that_are_not_unicode_can_be_told(tree):
    root = tree({})
    with open(os.fsencode(root) + b"/\xff.txt", "w") as file:
        file.write("x")
    assert texts(Folder(root)) == {"\\xff.txt": "x"}


def test_unwanted_documents_are_not_read(tree):
    root = tree({"a": "a", "b": b"\0"})
    documents, skipped = read(Folder(root), lambda name: name == "a")
    assert list(documents) == ["a"]
    assert not skipped


def lines(tree, *objects):
    content = b"\n".join(
        each if isinstance(each, bytes) else json.dumps(each).encode()
        for each in objects
    )
    return tree({"x.jsonl": content}) / "x.jsonl"


def test_a_line_is_a_document(tree):
    path = lines(tree, {"text": "ü\n", "id": "☃"}, b"", {"text": "b", "id": "c/d"})
    assert texts(JsonLines(path, name_field="id")) == {"☃": "ü\n", "c/d": "b"}


def test_a_document_without_name_is_called_by_its_text(tree):
    one = lines(tree, {"text": "a"}, {"text": "b"})
    names = list(texts(JsonLines(one)))
    two = lines(tree, {"text": "b"}, {"text": "a"})
    assert list(texts(JsonLines(two))) == names[::-1]
    assert names[0] == "ca978112ca1bbdca"  # The start of SHA-256("a").


def test_lines_that_cannot_be_read_are_named(tree):
    path = lines(
        tree,
        {"text": "good", "id": "1"},
        b"{",
        b"\xff",
        [1],
        {"id": "2"},
        {"text": 3, "id": "2"},
        {"text": "no name"},
        {"text": "", "id": "2"},
        {"text": "\0", "id": "2"},
        b'{"text": "\\ud800", "id": "2"}',
        b"[" * 100_000,
    )
    documents, skipped = read(JsonLines(path, name_field="id"))
    assert list(documents) == ["1"]
    assert skipped == {
        "x.jsonl:2": "not valid JSON",
        "x.jsonl:3": "not valid UTF-8",
        "x.jsonl:4": "not a JSON object",
        "x.jsonl:5": "no text in field 'text'",
        "x.jsonl:6": "no text in field 'text'",
        "x.jsonl:7": "no text in field 'id'",
        "x.jsonl:8": "empty",
        "x.jsonl:9": "binary (holds a NUL byte)",
        "x.jsonl:10": "not valid Unicode (half a surrogate pair)",
        "x.jsonl:11": "not valid JSON",
    }
