"""A loss that is not finite ends a run with what it was reading, and loses nothing."""

import json

import jax.numpy as jnp
import numpy as np

from memorizing_data.row_reader import RowReader
from memorizing_data.token_files import open_split
from memorizing_jax import loss
from memorizing_jax.__main__ import main

SETTINGS = (
    "--preset=tiny",
    "--batch=3",
    "--steps=9",
    "--segment-length=8",
    "--memory-size=19",
    "--search=exact",
    "--log-interval=4",
    "--evaluation-interval=0",
    "--checkpoint-interval=1",
    "--quiet",
)


def test_names_the_documents_and_saves_beside(dataset, tmp_path, capsys):
    output = tmp_path / "run"
    run = ["train", f"--data={dataset}", f"--output={output}", *SETTINGS]
    # The first update makes the parameters so large that the second loss is not finite.
    assert main([*run, "--optimizer=adamw", "--learning-rate=1e37"]) == 2
    said = capsys.readouterr().err
    files = open_split(dataset, "train")
    reader = RowReader(files, batch=3, segment_length=8, seed=0, repeat=True)
    next(reader)
    batch = next(reader)
    assert said.startswith("memorizing_jax: the loss is not finite in step 2, which")
    for row, document in enumerate(batch.document):
        first, count = batch.position[row], batch.num_tokens[row]
        assert (
            f"in row {row} tokens {first} to {first + count - 1} of document "
            f"{document} ({files.documents[document].name})"
        ) in said
    beside = output / "checkpoints_not_finite"
    assert f"the state after step 2 is in {beside}/2, where --resume does not" in said
    assert [path.name for path in beside.iterdir()] == ["2"]
    record = json.loads((beside / "2" / "record" / "metadata").read_text())
    assert [row["document"] for row in record["rows"]] == batch.document.tolist()
    assert (output / "checkpoints" / "1").is_dir()
    assert not (output / "checkpoints" / "2").exists()


def test_which_rows_are_finite():
    """Padding does not count, whatever the model says there."""
    logits = np.zeros((4, 3, 5), np.float32)
    logits[1, 1] = np.nan
    logits[2, 2] = np.inf
    logits[3, 2] = np.nan
    targets = jnp.zeros((4, 3), jnp.int32)
    num_targets = jnp.array([3, 3, 3, 2], jnp.int32)
    found = loss.finite_rows(jnp.asarray(logits), targets, num_targets)
    assert found.tolist() == [True, False, False, True]
