"""Checkpoints: everything that a run needs in order to go on, written atomically.

orbax writes each under another name and renames it when it is complete, so that a
kill or a full disk at any moment leaves the earlier ones whole. Every process writes
the parts of the arrays that it holds; any number of processes, on any mesh, can read
them. Orbax does not notice an altered byte among the numbers, so each checkpoint also
holds their checksums.
"""

import contextlib
import dataclasses
import io
import logging
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from memorizing_jax import hosts
from memorizing_jax.checksum import Arrays, checksums
from memorizing_jax.errors import InputError
from memorizing_jax.parameters import Parameters
from memorizing_jax.train_step import Run

_ARGUMENTS = ocp.args


class Checkpoints:
    """The checkpoints of one run. All its processes do the same with them.

    Args:
      directory: where they lie, one folder per step: any path that orbax takes, such
        as gs://bucket/folder.
      kept: how many of the newest stay; left out by those who only read.
    """

    def __init__(self, directory: Path | epath.Path, kept: int | None = None):
        # Whatever orbax logs of failures, its exceptions say as well.
        for name in ("absl", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._directory = epath.Path(directory)
        self._is_local = "://" not in str(directory)
        if self._is_local:
            self._directory = self._directory.absolute()
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=kept,
                create=kept is not None,
                cleanup_tmp_directories=kept is not None,
                # The next step overwrites what an asynchronous save still reads.
                enable_async_checkpointing=False,
            ),
        )

    def steps(self) -> list[int]:
        """Returns the steps that have a checkpoint, in order."""
        return sorted(self._manager.all_steps())

    def close(self) -> None:
        """Ends the work of the manager's threads."""
        self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def save(self, run: Run, record: dict[str, Any]) -> None:
        """Writes a checkpoint, then removes those that are too many.

        Args:
          run: what the device holds.
          record: what the host holds, fit for JSON.

        Raises:
          InputError: it could not be written; earlier checkpoints are intact.
        """
        step = int(run.step)
        parameters, state = _split(run)
        sums = {"parameters": checksums(parameters), "state": checksums(state)}
        arguments = _ARGUMENTS.Composite(
            parameters=_ARGUMENTS.StandardSave(parameters),
            state=_ARGUMENTS.StandardSave(state),
            record=_ARGUMENTS.JsonSave(record | {"checksums": sums}),
        )
        try:
            hosts.from_first(
                lambda: self._check_room([*parameters.values(), *state.values()])
            )
            # tensorstore's threads print a traceback for each array they give up.
            with contextlib.redirect_stderr(io.StringIO()):
                self._manager.save(step, args=arguments)
        except Exception as error:  # orbax and tensorstore raise many kinds.
            hosts.raise_if_lost(error)
            raise InputError(
                f"cannot write the checkpoint of step {step} to {self._directory}: "
                f"{_reason(error)}; earlier checkpoints are intact, so make room and "
                "continue with --resume"
            ) from error

    def _check_room(self, arrays: Sequence[jax.Array]) -> None:
        """Refuses to begin a checkpoint that could not be finished.

        Only on a disk: a bucket does not say how much room it has.
        """
        if not self._is_local:
            return
        needed = sum(array.nbytes for array in arrays)
        free = shutil.disk_usage(self._directory).free
        if free < needed:
            raise OSError(f"it needs {needed:,} bytes, and {free:,} are free")

    def drop_after(self, step: int) -> None:
        """Removes checkpoints of later steps, which a run from `step` writes again."""
        for later in self.steps():
            if later > step:
                self._manager.delete(later)

    def restore(self, step: int | None, like: Run) -> tuple[Run, dict[str, Any]]:
        """Reads a checkpoint, the newest if `step` is None.

        Args:
          step: which.
          like: shapes, dtypes and where each array is to lie, as `jax.eval_shape` of
            the run's beginning gives; on one device where it does not say.

        Returns:
          The run, and the record that was saved with it.

        Raises:
          InputError: there is no such checkpoint, or it is damaged.
        """
        step = self._existing(step)
        parameters, state = _split(like)
        with self._explained(step):
            found = self._read(step, parameters=parameters, state=state)
        return _join(like, found["parameters"], found["state"]), found["record"]

    def record(self, step: int | None) -> dict[str, Any]:
        """Reads what the host held at a checkpoint, the newest if `step` is None.

        Raises:
          InputError: there is no such checkpoint, or it is damaged.
        """
        step = self._existing(step)
        with self._explained(step):
            return dict(self._read(step)["record"])

    def restore_parameters(
        self, step: int | None, like: Parameters
    ) -> tuple[Parameters, int]:
        """Reads the parameters alone, whatever memory they were trained with (MOD-5).

        Args:
          step: which checkpoint; the newest if None.
          like: shapes and dtypes.

        Returns:
          The parameters, and the step they come from.

        Raises:
          InputError: there is no such checkpoint, or it is damaged.
        """
        step = self._existing(step)
        with self._explained(step):
            return dict(self._read(step, parameters=like)["parameters"]), step

    def _existing(self, step: int | None) -> int:
        steps = self.steps()
        if not steps:
            raise InputError(f"{self._directory} holds no checkpoint")
        if step is not None and step not in steps:
            raise InputError(
                f"{self._directory} has no checkpoint of step {step}; it has {steps}"
            )
        return steps[-1] if step is None else step

    def _read(self, step: int, **wanted: Arrays) -> dict[str, Any]:
        items = {
            name: _ARGUMENTS.StandardRestore(jax.tree.map(_placed, arrays))
            for name, arrays in wanted.items()
        }
        arguments = _ARGUMENTS.Composite(record=_ARGUMENTS.JsonRestore(), **items)
        found = self._manager.restore(step, args=arguments)
        for name in wanted:
            saved = found["record"]["checksums"][name]
            for array, checksum in checksums(found[name]).items():
                if saved[array] != checksum:
                    raise ValueError(f"the numbers of {array} are not those saved")
        return dict(found.items())

    @contextlib.contextmanager
    def _explained(self, step: int) -> Iterator[None]:
        """Turns whatever goes wrong while reading into one sentence."""
        try:
            yield
        except Exception as error:
            hosts.raise_if_lost(error)
            earlier = [other for other in self.steps() if other < step]
            hint = f"use --step {earlier[-1]}" if earlier else "there is no earlier one"
            raise InputError(
                f"the checkpoint of step {step} in {self._directory} is damaged or "
                f"belongs to another model ({_reason(error)}); {hint}"
            ) from error


def _split(run: Run) -> tuple[Arrays, Arrays]:
    """Returns parameters and all the rest as flat dictionaries, as orbax names them."""
    leaves = jax.tree_util.tree_leaves_with_path(_rest(run))
    state = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
    return run.parameters, state


def _join(like: Run, parameters: Arrays, state: Arrays) -> Run:
    """Returns a run of the structure of `like`; the inverse of `_split`."""
    leaves = [state[name] for name in _split(like)[1]]
    rest = jax.tree.unflatten(jax.tree.structure(_rest(like)), leaves)
    return Run(parameters=dict(parameters), **rest)


def _rest(run: Run) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(run)]
    return {name: getattr(run, name) for name in names if name != "parameters"}


def _placed(array: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(array, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)


def _reason(error: BaseException) -> str:
    """Returns what an error says, without the pages that tensorstore adds."""
    text = " ".join(str(error).split())
    if told_by_system := re.search(r"([^:]+) \[os_error_code=", text):
        return told_by_system[1].strip().lower()
    return text.partition(". ")[0][:120] or type(error).__name__
