"""Checkpoints: everything that a run needs in order to go on, written atomically.

orbax writes each under another name and renames it when it is complete, so that a
kill or a full disk at any moment leaves the earlier ones whole. Orbax does not notice
an altered byte among the numbers, so each checkpoint also holds their SHA-256.
"""

import contextlib
import dataclasses
import hashlib
import io
import logging
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from memorizing_jax.errors import InputError
from memorizing_jax.parameters import Parameters
from memorizing_jax.train_step import Run

Arrays = dict[str, Any]

_ARGUMENTS = ocp.args


class Checkpoints:
    """The checkpoints of one run.

    Args:
      directory: where they lie, one folder per step.
      kept: how many of the newest stay; left out by those who only read.
    """

    def __init__(self, directory: Path, kept: int | None = None):
        # Whatever orbax logs of failures, its exceptions say as well.
        for name in ("absl", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._directory = directory.absolute()
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
        sha256 = {"parameters": _sha256(parameters), "state": _sha256(state)}
        arguments = _ARGUMENTS.Composite(
            parameters=_ARGUMENTS.StandardSave(parameters),
            state=_ARGUMENTS.StandardSave(state),
            record=_ARGUMENTS.JsonSave(record | {"sha256": sha256}),
        )
        try:
            self._check_room([*parameters.values(), *state.values()])
            # tensorstore's threads print a traceback for each array they give up.
            with contextlib.redirect_stderr(io.StringIO()):
                self._manager.save(step, args=arguments)
        except Exception as error:  # orbax and tensorstore raise many kinds.
            raise InputError(
                f"cannot write the checkpoint of step {step} to {self._directory}: "
                f"{_reason(error)}; earlier checkpoints are intact, so make room and "
                "continue with --resume"
            ) from error

    def _check_room(self, arrays: Sequence[jax.Array]) -> None:
        """Refuses to begin a checkpoint that could not be finished."""
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
          like: shapes and dtypes, as `jax.eval_shape` of the run's beginning gives.

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
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])

        def on_device(array: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=device)

        items = {
            name: _ARGUMENTS.StandardRestore(jax.tree.map(on_device, arrays))
            for name, arrays in wanted.items()
        }
        arguments = _ARGUMENTS.Composite(record=_ARGUMENTS.JsonRestore(), **items)
        found = self._manager.restore(step, args=arguments)
        for name in wanted:
            if _sha256(found[name]) != found["record"]["sha256"][name]:
                raise ValueError(f"the SHA-256 of its {name} is not the one saved")
        return dict(found.items())

    @contextlib.contextmanager
    def _explained(self, step: int) -> Iterator[None]:
        """Turns whatever goes wrong while reading into one sentence."""
        try:
            yield
        except Exception as error:
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


def _sha256(arrays: Arrays) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.view(np.uint8).data)
    return digest.hexdigest()


def _reason(error: BaseException) -> str:
    """Returns what an error says, without the pages that tensorstore adds."""
    text = " ".join(str(error).split())
    if told_by_system := re.search(r"([^:]+) \[os_error_code=", text):
        return told_by_system[1].strip().lower()
    return text.partition(". ")[0][:120] or type(error).__name__
