"""Pre-trained models at the command line: what a memory gains, and which layers."""

import json

import numpy as np
import pytest
from llama_helpers import READING, make_documents, make_model
from test_commands import lines_of, refused

from memorizing_jax import pretrained, text_documents
from memorizing_jax.__main__ import main
from memorizing_jax.errors import InputError
from memorizing_jax.pretrained_reading import layers_named


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("pretrained") / "model")


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    return make_documents(tmp_path_factory.mktemp("documents"))


def test_memory_sizes_stand_beside_local_and_full_attention(
    model, documents, tmp_path, capsys
):
    output = tmp_path / "found.jsonl"
    arguments = ["evaluate", f"--model={model}", f"--documents={documents}"]
    arguments += [f"--output={output}", "--memory-size", "0,9", "16", *READING]
    assert main([*arguments, "--memory-layers=1"]) == 0
    shown = capsys.readouterr().out
    lines = lines_of(output)
    labels = ["local only", "memory 9", "memory 16", "full, first 64"]
    assert [line["label"] for line in lines] == labels
    assert all(label in shown for label in labels)
    assert [line["memory_layers"] for line in lines] == [[], [1], [1], []]
    # Every token but the first of each; full attention ends at 64 positions.
    assert [line["num_predicted"] for line in lines] == [158, 158, 158, 126]
    names = [entry["name"] for entry in lines[0]["by_document"]]
    assert names == [str(documents / "long.txt"), str(documents / "nested/short.txt")]
    losses = [line["loss"] for line in lines]
    assert len(set(losses)) == 4
    assert lines[0]["bits_per_byte"] > 0
    assert lines[0]["model"] == pretrained.load(str(model)).sha256


def test_loss_is_that_of_documents_read_alone(model, documents, tmp_path):
    """Side by side or one after the other, and of a memory no row sees another's."""
    found = []
    for batch in (1, 2):
        output = tmp_path / f"{batch}.jsonl"
        arguments = ["evaluate", f"--model={model}", f"--documents={documents}"]
        arguments += [f"--output={output}", "--memory-size=9", f"--batch={batch}"]
        assert main([*arguments, "--no-full-attention", *READING]) == 0
        found.append([entry["nats"] for entry in lines_of(output)[0]["by_document"]])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)


def test_layers_are_ranked_once(model, documents, tmp_path, capsys):
    output = tmp_path / "ranking.jsonl"
    arguments = ["rank-layers", f"--model={model}", f"--documents={documents}"]
    arguments += [f"--output={output}", "--memory-size=16", *READING]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    lines = lines_of(output)
    assert lines[0]["memory_size"] == 16
    assert [line["layers"] for line in lines[1:]] == [[], [0], [1], [0, 1]]
    assert "proposed: --memory-layers" in shown
    # What is measured stays so; the missing is measured again.
    kept = output.read_text().splitlines()
    altered = json.loads(kept[1]) | {"loss": 99.0}
    output.write_text("\n".join([kept[0], json.dumps(altered), kept[2]]) + "\n")
    assert main(arguments) == 0
    assert "local only: 99.0000" in capsys.readouterr().out
    again = lines_of(output)
    assert again[3:] == lines[3:]
    said = refused(capsys, *arguments, "--top-k=2")
    assert "was measured with top_k 3, and now it is 2" in said
    output.write_text("nothing")
    assert "not a file of rank-layers" in refused(capsys, *arguments)


def test_bad_input_is_refused(model, documents, tmp_path, capsys):
    def evaluate(*arguments):
        return refused(capsys, "evaluate", *READING, *arguments)

    given = f"--documents={documents}"
    assert "there is no model" in evaluate("--model=nothing", given)
    assert "no file or folder" in evaluate(f"--model={model}", "--documents=nowhere")
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    assert "is empty" in evaluate(f"--model={model}", f"--documents={empty}")
    empty.write_bytes(b"a\xff")
    assert "not UTF-8" in evaluate(f"--model={model}", f"--documents={empty}")
    (tmp_path / "folder").mkdir()
    said = evaluate(f"--model={model}", f"--documents={tmp_path / 'folder'}")
    assert "there is no file" in said
    named = (f"--model={model}", given)
    assert "names layer 7" in evaluate(*named, "--memory-layers=0,7")
    assert "must be 'all'" in evaluate(*named, "--memory-layers=some")
    assert "trained on 64" in evaluate(*named, "--cache-length=99")
    (tmp_path / "model").mkdir()
    assert "no file" in evaluate(f"--model={tmp_path / 'model'}", given)
    said = refused(
        capsys,
        *("rank-layers", f"--model={model}", given, f"--output={tmp_path / 'x'}"),
        *READING,
        "--max-tokens=16",
    )
    assert "longer than the local context of 16" in said


def test_layers_are_named_by_ranges():
    assert layers_named("3,0-1", 5) == (0, 1, 3)
    assert layers_named("all", 3) == (0, 1, 2)
    with pytest.raises(InputError, match="names no layer"):
        layers_named("4-2", 5)


def test_documents_are_what_the_tokenizer_makes_of_files(model, documents):
    found = text_documents.read([documents], pretrained.load(str(model)), quiet=True)
    text = (documents / "long.txt").read_text()
    assert len(found.tokens(0)) == found.documents[0].num_bytes == len(text)
    assert found.vocab_size == 61
