"""A dataset appears whole or not at all, and the one before it is safe."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from memorizing_data import prepare as prepare_module
from memorizing_data import staging
from memorizing_data.errors import InputError

TEXTS = {f"{n}.txt": "text\n" * n for n in range(1, 10)}


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_a_full_disk_leaves_what_was_there(tree, command, monkeypatch):
    root = tree(TEXTS)
    output = root.parent / "out"
    arguments = ("prepare", "--input", root, "--output", output)
    command(*arguments)
    before = contents(output)

    def no_space(*_arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(prepare_module, "write_manifest", no_space)
    status, _, said = command(*arguments, "--overwrite")
    assert status == 2
    assert said.endswith("No space left on device; what was there is unchanged\n")
    assert contents(output) == before
    assert sorted(path.name for path in root.parent.iterdir()) == ["in", "out"]


def test_a_write_that_the_system_refuses_is_one_sentence(tree):
    """The limit on file sizes stands for a full disk: a real error of the system."""
    root = tree({str(i): "x" * 10_000 for i in range(20)})
    limited = "import resource, runpy, sys; sys.argv = ['-'] + sys.argv[1:];"
    limited += "resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192));"
    limited += "runpy.run_module('memorizing_data', run_name='__main__')"
    arguments = ["prepare", "--input", str(root), "--output", str(root.parent / "out")]
    done = subprocess.run(
        [sys.executable, "-c", limited, *arguments, "--quiet"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done
    assert "File too large; what was there is unchanged" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in root.parent.iterdir()) == ["in"]


def test_a_killed_run_harms_nothing_and_is_cleared_away(tree, command):
    root = tree(TEXTS)
    output = root.parent / "out"
    arguments = ("prepare", "--input", root, "--output", output)
    command(*arguments)
    before = contents(output)
    tree({"old.tokens": "half"}, ".out.partial")  # What a killed run leaves.
    assert command("inspect", output, "--verify")[0] == 0
    assert command(*arguments, "--overwrite", "--quiet")[0] == 0
    assert contents(output) == before
    output.rename(root.parent / ".out.previous")  # Killed between the two renames.
    assert command(*arguments, "--quiet")[0] == 0
    assert contents(output) == before
    assert sorted(path.name for path in root.parent.iterdir()) == ["in", "out"]


def test_an_interruption_between_the_renames_puts_the_old_back(tree, monkeypatch):
    output = tree({"old": "x"}, "out")
    rename = Path.rename

    def interrupted(path, target):
        if path.name.endswith(".partial"):
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), staging.staged(output) as folder:
        (folder / "new").touch()
    assert [path.name for path in output.iterdir()] == ["old"]
    assert os.listdir(output.parent) == ["out"]


def test_two_runs_do_not_write_the_same_folder(tmp_path):
    with staging.staged(tmp_path / "out") as folder:
        (folder / "x").touch()
        with (
            pytest.raises(InputError, match="another process"),
            staging.staged(tmp_path / "out"),
        ):
            pass
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(tmp_path / "out") == ["x"]
