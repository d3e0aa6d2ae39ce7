"""The command line: what it prints, and one sentence for each kind of bad input."""

import json
import shutil

import pytest
from conftest import make_dataset

from memorizing_data import token_files
from memorizing_jax.__main__ import main

SMALL = (
    "--preset=tiny",
    "--batch=2",
    "--segment-length=8",
    "--memory-size=19",
    "--search=exact",
    "--evaluation-interval=0",
    "--log-interval=1",
    "--quiet",
)


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def run(dataset, tmp_path_factory):
    """Returns the folder of a run of two steps."""
    output = tmp_path_factory.mktemp("commands") / "run"
    assert main(train(dataset, output, "--steps=2")) == 0
    return output


def train(data, output, *more):
    return ["train", f"--data={data}", f"--output={output}", *SMALL, *more]


def refused(capsys, *arguments):
    """Returns the one sentence with which a command is refused."""
    assert main([str(argument) for argument in arguments]) == 2
    sentence = capsys.readouterr().err
    assert sentence.startswith("memorizing_jax: ")
    assert sentence.count("\n") == 1
    return sentence


def test_a_run_leaves_what_it_should(run):
    names = {path.name for path in run.iterdir()}
    expected = {"config.json", "metrics.jsonl", "parameters.safetensors", "checkpoints"}
    assert names == expected
    lines = lines_of(run / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2]
    assert lines[0]["tokens_per_second"] > 0


def test_progress_shows_speed_loss_and_gates(dataset, tmp_path, capsys):
    arguments = train(dataset, tmp_path / "run", "--steps=2")
    arguments.remove("--quiet")
    assert main(arguments) == 0
    shown = capsys.readouterr().err
    for part in ("2/2", "loss=", "tokens/s=", "gate 1=0.50-0.50"):
        assert part in shown


def test_a_run_goes_on_from_given_parameters(dataset, tmp_path, capsys):
    """A memory layer that the parameters lack gets a gate, and nothing else."""
    none = tmp_path / "without"
    assert main(train(dataset, none, "--steps=1", "--memory-layers")) == 0
    file = f"--parameters={none / 'parameters.safetensors'}"
    start = train(dataset, tmp_path / "with", "--steps=1", file)
    assert main(start) == 0
    # Needed no more once there is a checkpoint, but another file is another run.
    assert main([*train(dataset, tmp_path / "with", "--steps=2"), "--resume"]) == 0
    other = f"--parameters={tmp_path / 'with' / 'parameters.safetensors'}"
    said = refused(capsys, *train(dataset, tmp_path / "with", other, "--resume"))
    assert "; continue with the same file" in said
    shutil.rmtree(tmp_path / "with" / "checkpoints")  # As if killed before the first.
    said = refused(capsys, *train(dataset, tmp_path / "with", "--resume"))
    assert "and --parameters has none; continue with the same file" in said
    said = refused(capsys, *train(dataset, tmp_path / "x", file, "--model-dim=16"))
    assert "parameter embedding has shape (256, 32), expected (256, 16)" in said


def test_evaluate_prints_and_writes(run, dataset, tmp_path, capsys):
    output = tmp_path / "results.jsonl"
    sizes = ("--memory-size", "0", "19")
    arguments = ("evaluate", f"--data={dataset}", f"--output={output}", "--quiet")
    assert main([*arguments, f"--run={run}", *sizes]) == 0
    table = capsys.readouterr().out
    assert "perplexity" in table
    assert "memory 19" in table
    from_run = lines_of(output)
    assert [line["memory_size"] for line in from_run] == [0, 19]
    assert [line["num_predicted"] for line in from_run] == [73] * 2
    file = run / "parameters.safetensors"
    assert main([*arguments, f"--parameters={file}", *sizes]) == 0
    assert lines_of(output) == from_run


def test_generate_prints_text(run, dataset, tmp_path, capsys):
    arguments = ("generate", f"--data={dataset}", f"--run={run}", "--tokens=5")
    assert main([*arguments, "--prompt", "ABCDEFGHIJK"]) == 0
    text = capsys.readouterr().out
    assert text.endswith("\n")
    assert len(text) > 1
    file = tmp_path / "prompt.txt"
    file.write_text("ABCDEFGHIJK")
    assert main([*arguments, "--prompt-file", str(file)]) == 0
    assert capsys.readouterr().out == text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--top-k=20"], "top_k is 20, more than memory_size 19; lower top_k or"),
        (["--memory-layers=2"], "names layer 2, but the model's layers are 0 to 1"),
        (["--batch=0"], "batch is 0, must be 1 or more"),
        (["--step=3"], "--step 3 goes with --resume; add it"),
        (["--parameters=nowhere"], "there is no file nowhere"),
        (["--schedule=cosine"], "decay_steps is 0, must exceed warmup_steps 20"),
    ],
)
def test_train_refuses_settings(dataset, tmp_path, capsys, flags, message):
    output = tmp_path / "run"
    assert message in refused(capsys, *train(dataset, output, *flags))
    assert not output.exists()


def test_train_refuses_data(tmp_path, capsys):
    output = tmp_path / "run"
    said = refused(capsys, *train(tmp_path / "nowhere", output))
    assert "holds no dataset.json, so it is not a dataset" in said
    damaged = make_dataset(tmp_path / "damaged", seed=1)
    tokens = damaged / "train.tokens"
    tokens.write_bytes(tokens.read_bytes()[:-1])
    assert "was cut short or extended" in refused(capsys, *train(damaged, output))
    assert not output.exists()


def test_train_refuses_folders(run, dataset, tmp_path, capsys):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    said = refused(capsys, *train(dataset, run))
    assert "already holds a run; continue it with --resume, or choose" in said
    said = refused(capsys, *train(dataset, run, "--resume", "--top-k=3"))
    assert "the saved run has model.top_k 8, and this one 3; continue" in said
    other = make_dataset(tmp_path / "other", seed=2)
    said = refused(capsys, *train(other, run, "--resume"))
    assert "continue with the same --data" in said
    said = refused(capsys, *train(dataset, run, "--resume", "--step=7"))
    assert "no checkpoint of step 7; it has [2]" in said
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert after == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    said = refused(capsys, *train(dataset, tmp_path / "full", "--resume"))
    assert "holds files, but no run to continue" in said
    said = refused(capsys, *train(dataset, tmp_path / "full" / "letter.txt"))
    assert "is a file; --output must be a folder" in said


def test_a_damaged_config_is_refused(run, dataset, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    config = copy / "config.json"
    config.write_text(config.read_text()[:-20])
    said = refused(capsys, *train(dataset, copy, "--resume"))
    assert "config.json is not valid JSON; was it altered?" in said


def test_evaluate_refuses(run, dataset, tmp_path, capsys):
    data = f"--data={dataset}"
    assert "give either --run or --par" in refused(capsys, "evaluate", data)
    evaluate = ("evaluate", data, f"--run={run}", "--quiet")
    said = refused(capsys, *evaluate, "--memory-size=4")
    assert "top_k is 8, more than memory_size 4" in said
    said = refused(capsys, *evaluate, "--output=nowhere/x.jsonl")
    assert "nowhere is not a folder, so nowhere/x.jsonl cannot be" in said
    assert "batch is 0, must be 1" in refused(capsys, *evaluate, "--batch=0")
    assert "documents is 0, must be" in refused(capsys, *evaluate, "--documents=0")
    said = refused(capsys, "evaluate", data, f"--run={tmp_path}")
    assert "holds no config.json, so it is not the --output of a run" in said
    other = tmp_path / "other"
    splits = {}
    for split in token_files.SPLITS:
        (tmp_path / "other").mkdir(exist_ok=True)
        documents = [token_files.EncodedDocument("one", [1, 2, 3], 3)]
        splits[split] = token_files.write_split(other, split, documents, 300)
    tokenizer = {"kind": "bpe", "vocab_size": 300, "file": "t.json", "sha256": "0"}
    token_files.write_manifest(other, tokenizer, splits)
    said = refused(capsys, "evaluate", f"--data={other}", f"--run={run}")
    assert "tokenizer has vocab_size 256, and that of" in said


def test_generate_refuses(run, dataset, tmp_path, capsys):
    generate = ("generate", f"--data={dataset}", f"--run={run}")
    assert "give either --prompt or --prompt-file" in refused(capsys, *generate)
    assert "the prompt is empty" in refused(capsys, *generate, "--prompt=")
    said = refused(capsys, *generate, "--prompt=x", "--top-p=0")
    assert "top_p is 0.0, must be above 0" in said
    latin = tmp_path / "latin.txt"
    latin.write_bytes(b"na\xefve")
    said = refused(capsys, *generate, f"--prompt-file={latin}")
    assert "latin.txt is not UTF-8: invalid continuation byte at byte 2" in said
    said = refused(capsys, *generate, f"--prompt-file={tmp_path / 'none'}")
    assert "No such file or directory" in said


def test_help_names_units_and_defaults(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--preset", "base", "--help"])
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("│", "").split())
    assert "Pairs kept per row, head and memory layer" in text
    assert "(default: 500000)" in text


def test_a_flag_that_is_not_there(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--data=x", "--output=y", "--topk=3"])
    assert stopped.value.code == 2
    assert "--top-k" in capsys.readouterr().err
