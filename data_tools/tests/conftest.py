import json

import numpy as np
import pytest

from memorizing_data import __main__
from memorizing_data.token_files import (
    EncodedDocument,
    open_split,
    write_manifest,
    write_split,
)

BYTES = {"kind": "bytes", "vocab_size": 256, "file": None, "sha256": None}


@pytest.fixture
def dataset(tmp_path):
    """Writes a train split with documents of the given lengths, and opens it."""

    def write(lengths, name="dataset"):
        directory = tmp_path / name
        directory.mkdir()
        numbers = np.random.default_rng(len(lengths))
        documents = [
            EncodedDocument(f"document {i}", numbers.integers(1, 256, length), length)
            for i, length in enumerate(lengths)
        ]
        entry = write_split(directory, "train", documents, 256)
        write_manifest(directory, BYTES, {"train": entry})
        return open_split(directory, "train")

    return write


@pytest.fixture
def tree(tmp_path):
    """Writes a folder of files from their names and contents."""

    def write(files, name="in"):
        root = tmp_path / name
        root.mkdir(exist_ok=True)
        for path, content in files.items():
            file = root / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(
                content if isinstance(content, bytes) else content.encode()
            )
        return root

    return write


@pytest.fixture
def specification():
    """Writes a tokenizer.json with a given model and nothing around it."""

    def write(model):
        parts = ("truncation", "padding", "normalizer", "pre_tokenizer")
        fields = dict.fromkeys((*parts, "post_processor", "decoder"))
        fields |= {"version": "1.0", "added_tokens": [], "model": model}
        return json.dumps(fields)

    return write


@pytest.fixture
def command(capsys):
    """Runs a command; returns its exit status, output and errors."""

    def run(*arguments):
        capsys.readouterr()
        try:
            status = __main__.main([str(argument) for argument in arguments])
        except SystemExit as stop:  # What the command line cannot even parse.
            status = stop.code
        out, err = capsys.readouterr()
        return status, out, err

    return run
