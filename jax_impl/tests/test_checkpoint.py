"""Checkpoints come back whole, and a damaged one says so."""

import dataclasses
import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memorizing_jax import checkpoint, train_step
from memorizing_jax.checkpoint import Checkpoints
from memorizing_jax.errors import InputError


@pytest.fixture
def saved(tmp_path, small):
    """Returns checkpoints of steps 3 and 5, and the run of step 5."""
    runs = [numbered(small, 3), numbered(small, 5)]
    checkpoints = Checkpoints(tmp_path / "checkpoints", kept=2)
    for run in runs:
        checkpoints.save(run, {"position": int(run.step)})
    yield checkpoints, runs[1]
    checkpoints.close()
    gc.collect()  # What failed reads left behind must not surface in other tests.


def numbered(config, step):
    """Returns a run of some step, with numbers that tell every array from others."""
    leaves, tree = jax.tree.flatten(jax.eval_shape(lambda: train_step.init(config)))
    arrays = []
    for i, leaf in enumerate(leaves):
        numbers = np.arange(leaf.size).reshape(leaf.shape) % 64 + 1000 * step + 64 * i
        arrays.append(jnp.asarray(numbers, leaf.dtype))
    run = jax.tree.unflatten(tree, arrays)
    return dataclasses.replace(run, step=jnp.int32(step))


def test_everything_comes_back(saved, small):
    checkpoints, run = saved
    like = jax.eval_shape(lambda: train_step.init(small))
    found, record = checkpoints.restore(None, like)
    assert record["position"] == 5
    assert jax.tree.structure(found) == jax.tree.structure(run)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(run), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


# What tensorstore's threads were doing when the reading failed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_every_altered_or_shortened_number_is_noticed(saved, small, tmp_path):
    checkpoints, _ = saved
    like = jax.eval_shape(lambda: train_step.init(small))
    files = [
        path
        for path in (tmp_path / "checkpoints" / "5").rglob("d/*")
        if path.stat().st_size > 500
    ]
    assert files
    said = []
    for path in files:
        whole = path.read_bytes()
        for broken in (whole[: len(whole) // 2], flipped(whole)):
            path.write_bytes(broken)
            try:
                found, _ = checkpoints.restore(5, like)
            except InputError as error:
                said.append(str(error))
            else:  # orbax keeps some files that it does not read back.
                np.testing.assert_array_equal(found.step, 5)
        path.write_bytes(whole)
    assert len(said) >= 2
    assert all("the checkpoint of step 5 in" in sentence for sentence in said)
    assert all(sentence.endswith("; use --step 3") for sentence in said)
    assert checkpoints.restore(3, like)[1]["position"] == 3


def flipped(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def test_parameters_alone(saved, small):
    checkpoints, run = saved
    other = dataclasses.replace(small, model=small.model.replace(memory_size=0))
    shapes = jax.eval_shape(lambda: train_step.init(other)).parameters
    found, step = checkpoints.restore_parameters(None, shapes)
    assert step == 5
    for name, expected in run.parameters.items():
        np.testing.assert_array_equal(found[name], expected)


def test_says_what_there_is(saved, small):
    checkpoints, _ = saved
    like = jax.eval_shape(lambda: train_step.init(small))
    with pytest.raises(InputError, match=r"no checkpoint of step 4; it has \[3, 5\]"):
        checkpoints.restore(4, like)
    checkpoints.drop_after(3)
    assert checkpoints.steps() == [3]
    checkpoints.drop_after(0)
    with pytest.raises(InputError, match="holds no checkpoint"):
        checkpoints.restore(None, like)


def test_a_full_disk_leaves_earlier_checkpoints(saved, small, monkeypatch):
    checkpoints, _ = saved
    usage = checkpoint.shutil.disk_usage("/")._replace(free=10)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(
        InputError, match=r"step 7 to .* bytes, and 10 are free; earlier"
    ):
        checkpoints.save(numbered(small, 7), {})
    assert checkpoints.steps() == [3, 5]


def test_a_disk_that_fills_while_writing(saved, small, monkeypatch):
    checkpoints, _ = saved

    def fail(*_, **__):
        raise ValueError("Error: Failed: No space left on device [os_error_code='28']")

    monkeypatch.setattr(checkpoints._manager, "save", fail)
    with pytest.raises(InputError, match=": no space left on device; earlier"):
        checkpoints.save(numbered(small, 7), {})
    assert checkpoints.steps() == [3, 5]
