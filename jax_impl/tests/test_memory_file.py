"""A memory as a file: what it holds, going on after a kill, and what is refused."""

import dataclasses
import hashlib
import json
import shutil

import numpy as np
import pytest
import safetensors.numpy
from llama_helpers import ALPHABET, READING, Plain, forward, make_documents, make_model
from test_commands import lines_of, refused

from memorizing_data import token_files
from memorizing_data.row_reader import RowReader
from memorizing_jax import (
    llama_model,
    memory_file,
    memory_reading,
    pretrained,
    text_documents,
)
from memorizing_jax.__main__ import main
from memorizing_jax.errors import InputError
from memorizing_jax.pretrained_reading import Reading
from memorizing_jax.reading_journal import Journal

SETTINGS = Reading(
    segment_length=8,
    cache_length=6,
    num_sinks=2,
    memory_distance=5,
    top_k=3,
    search="exact",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("pretrained") / "model")


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    return make_documents(tmp_path_factory.mktemp("documents"))


@pytest.fixture(scope="module")
def made(model, documents, tmp_path_factory):
    """Returns a memory file of both documents, as the command makes it."""
    path = tmp_path_factory.mktemp("memory") / "memory.safetensors"
    arguments = ["read", str(documents), f"--model={model}", f"--save={path}"]
    assert main([*arguments, "--memory-size=16", *READING]) == 0
    return path


def test_the_file_holds_every_pair_but_the_sinks_and_where_it_is_from(
    made,
    model,
    documents,
):
    found = memory_file.load(made)
    read = text_documents.read([documents], pretrained.load(str(model)), quiet=True)
    assert found.layers == (0, 1)
    assert found.document.tolist() == [0] * 88 + [1] * 68
    assert found.position.tolist() == [*range(2, 90), *range(2, 70)]
    assert [source.name for source in found.documents] == [
        str(documents / "long.txt"),
        str(documents / "nested/short.txt"),
    ]
    np.testing.assert_array_equal(found.tokens, read.mapped)
    digest = hashlib.sha256(read.tokens(1).tobytes()).hexdigest()
    assert found.documents[1].sha256 == digest
    # The first layer's pairs depend on their own token alone.
    loaded = pretrained.load(str(model))
    plain = Plain(loaded.parameters, loaded.config)
    start = np.array([0, 90])[found.document]
    x = plain.p["embedding"][found.tokens[start + found.position]]
    gain = plain.p["layers.0.attention_norm_gain"]
    x = np.array([plain.norm(one, gain) for one in x])
    for kind, stored in (("key", found.keys), ("value", found.values)):
        expected = np.einsum("pe,ehd->hpd", x, plain.p[f"layers.0.{kind}_kernel"])
        np.testing.assert_allclose(stored[0], expected, rtol=0, atol=1e-5)


def test_pairs_are_those_that_the_memory_took_up(made, model, documents):
    """In deeper layers too, which read the memory of the layers below."""
    loaded = pretrained.load(str(model))
    config = SETTINGS.with_memory(loaded.config, (0, 1), 16)
    tokens = text_documents.read([documents], loaded, quiet=True).tokens(0)[:88]
    state = llama_model.init_state(config, 1)
    for first in range(0, 88, 8):
        segment = tokens[None, first : first + 8]
        start, count = np.array([first == 0]), np.array([8], np.int32)
        _, state, _ = forward(
            loaded.parameters, state, segment, start, count, config=config
        )
    found = memory_file.load(made)
    # 88 read, 6 in the cache, 2 sinks: 80 pairs, the last 16 of which stand in order.
    memory = state.memories[1]
    assert memory.num_written.tolist() == [80]
    np.testing.assert_allclose(found.keys[1][:, 64:80], memory.keys[0], atol=1e-6)
    np.testing.assert_allclose(found.values[1][:, 64:80], memory.values[0], atol=1e-6)


@pytest.mark.parametrize("cache_length", [0, 6])
def test_a_killed_reading_goes_on(
    model,
    documents,
    tmp_path,
    monkeypatch,
    cache_length,
):
    loaded = pretrained.load(str(model))
    settings = SETTINGS.__dict__ | {"cache_length": cache_length}
    config = Reading(**settings).with_memory(loaded.config, (1,), 16)
    read = text_documents.read([documents], loaded, quiet=True)

    def make(name, **options):
        path = tmp_path / name
        memory_reading.read(loaded, config, read, path, {}, quiet=True, **options)
        return path

    whole = make("whole")
    step, calls = memory_reading._step, []

    def killed(*args):
        calls.append(args)
        if len(calls) in (5, 19):
            raise KeyboardInterrupt
        return step(*args)

    monkeypatch.setattr(memory_reading, "_step", killed)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            make("killed", interval=0.0)
    assert make("killed").read_bytes() == whole.read_bytes()
    # 12 and 9 segments, none of them read twice.
    assert len(calls) == 21 + 2
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "killed"}


def test_another_reading_does_not_go_on(model, documents, tmp_path, capsys):
    path = tmp_path / "memory"
    loaded = pretrained.load(str(model))
    config = SETTINGS.with_memory(loaded.config, (1,), 16)
    read = text_documents.read([documents], loaded, quiet=True)
    reader = RowReader(read, batch=1, segment_length=8, seed=None, repeat=False)
    segments = memory_reading._segments(
        loaded, config, llama_model.init_state(config, 1), reader, [90, 70]
    )
    state, pairs, _ = next(segments)
    journal = Journal(path, {"model": "another"})
    journal.save(pairs, state, reader)
    arguments = ("read", documents, f"--model={model}", f"--save={path}", *READING)
    said = refused(capsys, *arguments, "--memory-size=16")
    assert "was begun with model another" in said
    assert not path.exists()


def test_files_that_do_not_fit_are_refused(made, model, tmp_path):
    loaded = pretrained.load(str(model))

    def refusal(path, of=loaded):
        with pytest.raises(InputError) as found:
            memory_file.load_for([made, path], of)
        return str(found.value)

    other = dataclasses.replace
    assert "made with the model" in refusal(made, other(loaded, sha256="0" * 64))
    described = loaded.described | {"sha256": "0" * 64}
    assert "a tokenizer whose sha256" in refusal(
        made, other(loaded, described=described)
    )
    assert "there is no file" in refusal(tmp_path / "nothing")
    content = made.read_bytes()
    path = tmp_path / "memory"
    for cut in (0, 7, 100, len(content) - 1):
        path.write_bytes(content[:cut])
        assert "cut short" in refusal(path)
    # Any byte of the arrays or of what is said about them.
    for place in (-1, -9000, content.index(b"long.txt")):
        altered = bytearray(content)
        altered[place] ^= 1
        path.write_bytes(altered)
        assert "was altered" in refusal(path)
    safetensors.numpy.save_file({"keys": np.zeros(3)}, path)
    assert "does not say that it is a memory file" in refusal(path)
    memory = memory_file.load(made)
    first = {name: {0: getattr(memory, name)[0]} for name in ("keys", "values")}
    memory_file.save(path, other(memory, **first))
    assert "remembers layers (0,)" in refusal(path)


def test_files_are_merged_in_order(made, model):
    one = memory_file.load(made)
    both = memory_file.load_for([made, made], pretrained.load(str(model)))
    assert both.document.max() == 3
    assert len(both.documents) == 4
    np.testing.assert_array_equal(both.tokens, np.tile(one.tokens, 2))
    np.testing.assert_array_equal(both.values[1], np.tile(one.values[1], (1, 2, 1)))


def test_data_sets_are_read_with_their_own_tokens(model, tmp_path, capsys):
    loaded = pretrained.load(str(model))
    folder = tmp_path / "tokens"
    folder.mkdir()
    shutil.copy(model / "tokenizer.json", folder)
    document = token_files.EncodedDocument("one", np.arange(20) % len(ALPHABET), 20)
    splits = {
        "train": token_files.write_split(folder, "train", [document], len(ALPHABET))
    }
    token_files.write_manifest(folder, loaded.described, splits)
    found = text_documents.read([folder], loaded, quiet=True)
    assert found.documents[0].name == "one"
    assert found.mapped.tolist() == list(range(20))
    described = json.loads((folder / "dataset.json").read_text())["tokenizer"]
    assert described["sha256"] == loaded.described["sha256"]
    other = tmp_path / "other"
    other.mkdir()
    splits = {"train": token_files.write_split(other, "train", [document], 256)}
    tokenizer = {"kind": "bytes", "vocab_size": 256, "file": None, "sha256": None}
    token_files.write_manifest(other, tokenizer, splits)
    said = refused(
        capsys, "read", other, f"--model={model}", f"--save={tmp_path / 'x'}", *READING
    )
    assert "has vocab_size 256" in said


def test_evaluation_uses_the_file_beside_memories(
    made, model, documents, tmp_path, capsys
):
    output = tmp_path / "found.jsonl"
    new = tmp_path / "new.txt"
    new.write_text("abcdefg" * 9)
    arguments = ["evaluate", f"--model={model}", f"--memory={made}", *READING]
    arguments += ["--no-full-attention", "--memory-size=0,16", f"--output={output}"]
    assert main([*arguments, f"--documents={new}"]) == 0
    assert capsys.readouterr().err == ""
    lines = lines_of(output)
    labels = ["local only", "memory 16", "file", "file + memory 16"]
    assert [line["label"] for line in lines] == labels
    assert len({line["loss"] for line in lines}) == 4
    assert lines[3]["memory_layers"] == [0, 1]
    text = documents / "nested/short.txt"
    assert main([*arguments, f"--documents={text}"]) == 0
    assert "short.txt itself" in capsys.readouterr().err
    said = refused(capsys, *arguments, f"--documents={new}", "--memory-layers=1")
    assert "the memory file remembers layers 0,1" in said


def test_bad_input_is_refused(made, model, documents, tmp_path, capsys):
    def read(*arguments):
        return refused(capsys, "read", f"--model={model}", *READING, *arguments)

    assert "is there already" in read(documents, f"--save={made}")
    save = f"--save={tmp_path / 'memory'}"
    assert "is not a folder" in read(documents, f"--save={tmp_path / 'no' / 'memory'}")
    assert "memory_size is 0" in read(documents, save, "--memory-size=0")
    (tmp_path / "short").write_text("ab")
    assert "longer than the 2 sinks" in read(tmp_path / "short", save)
    assert not (tmp_path / "memory").exists()
