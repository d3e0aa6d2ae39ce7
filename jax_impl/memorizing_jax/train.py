"""The training loop: segments, steps, metrics, validation, checkpoints.

The device is waited for at a checkpoint and a validation only: metrics are fetched
when the steps after them are already queued. Where a run has several processes, each
runs this loop with its own rows, and all take the same turns.
"""

import collections
import dataclasses
import signal
import sys
from pathlib import Path
from typing import Any

import jax

from memorizing_data.row_reader import RowReader
from memorizing_data.token_files import TokenFiles, open_split
from memorizing_jax import (
    diagnosis,
    fine_tuning,
    hosts,
    memory_metrics,
    parameter_files,
    parameters,
    search,
    sharding,
    starting,
    train_config,
    train_step,
)
from memorizing_jax.checkpoint import Checkpoints
from memorizing_jax.errors import NotFiniteError
from memorizing_jax.evaluate import evaluate
from memorizing_jax.input_pipeline import Placement, read_ahead
from memorizing_jax.interruption import Interruption
from memorizing_jax.metrics import Log
from memorizing_jax.parameter_files import Trained
from memorizing_jax.profiling import Profile
from memorizing_jax.run_folder import RunFolder
from memorizing_jax.train_config import TrainConfig
from memorizing_jax.train_step import Run
from memorizing_jax.watch import Watch


def train(
    config: TrainConfig,
    data: Path,
    output: Path,
    *,
    checkpoints: str | None = None,
    resume: bool = False,
    step: int | None = None,
    initial: Path | None = None,
    watch: Watch | None = None,
    quiet: bool = False,
) -> signal.Signals | None:
    """Trains until `config.steps`, or until SIGINT or SIGTERM, and saves.

    Args:
      config: settings; the vocabulary is taken from the data.
      data: folder of a data set, with a training and a validation split.
      output: folder of the run.
      checkpoints: folder of its checkpoints, if they are to lie elsewhere.
      resume: continue the run in `output`, bit for bit on one device (CKP-1).
      step: continue from this checkpoint and not from the newest.
      initial: parameters to start from, in place of drawn ones; see
        `fine_tuning.load`.
      watch: what to write down beside the lines of metrics, if anything.
      quiet: show no progress and say nothing.

    Returns:
      The signal that ended it, or None if all steps are done.

    Raises:
      InputError: the settings, the run's folder, the devices or the parameters do not
        fit, the loss is no longer finite, or checked search met what is not (KNN-3).
      TokenFileError: the data set is missing or damaged.
      OSError: a file cannot be written.
    """
    quiet = quiet or not hosts.is_first()
    token_files = open_split(data, "train")
    validation = open_split(data, "validation") if config.evaluation_interval else None
    config = config.with_vocabulary(token_files.vocab_size)
    mesh = sharding.make_mesh(config.mesh)
    sharding.check(mesh, config.model, config.batch)
    given, sha256 = None, None
    if initial is not None:
        start = fine_tuning.load(initial, config.model, token_files)
        given, sha256 = start.parameters, start.sha256
        if not quiet:
            sentence = fine_tuning.describe(start, initial, config.model)
            print(f"memorizing_jax: {sentence}", file=sys.stderr)
    identity = {"data": token_files.fingerprint, "parameters": sha256}
    identity |= {"checkpoints": checkpoints}
    hosts.check_same(train_config.to_json(config) | identity)
    folder = RunFolder(output, checkpoints)
    begun = hosts.from_first(
        lambda: folder.open(config, token_files, sha256, resume=resume)
    )
    parts = _Parts(
        config, token_files, validation, Placement(mesh, config.batch), folder
    )
    checkpointed = Checkpoints(folder.checkpoints, config.checkpoints_kept)
    with checkpointed, jax.set_mesh(mesh):
        run, position, pending = starting.first(config, mesh, checkpointed, step, given)
        hosts.from_first(lambda: folder.update(config))
        if resume and not quiet:
            where = f"continuing from step {run.step}" if begun else "nothing yet"
            print(f"memorizing_jax: {where} in {output}", file=sys.stderr)
        watch = watch or Watch()
        shows = watch.tensorboard and hosts.is_first()
        events = folder.tensorboard if shows else None
        with (
            Log(
                folder.metrics if hosts.is_first() else None,
                config,
                int(run.step),
                pending,
                quiet,
                events=events,
                peak_tflops=watch.peak_tflops,
            ) as log,
            Profile(folder.profile, watch.profile, quiet) as profile,
        ):
            run, stopped_by = _loop(parts, run, position, checkpointed, log, profile)
    if stopped_by is None:
        _save_parameters(parts, run)
    return stopped_by


@dataclasses.dataclass(frozen=True)
class _Parts:
    """What a run works with from beginning to end."""

    config: TrainConfig
    token_files: TokenFiles
    validation: TokenFiles | None
    placement: Placement
    folder: RunFolder

    def reader(self, position: dict[str, Any] | None, rows: slice) -> RowReader:
        """Returns a reader of some rows that stands at a position."""
        reader = RowReader(
            self.token_files,
            batch=self.config.batch,
            segment_length=self.config.model.segment_length,
            seed=self.config.seed,
            repeat=True,
            rows=rows,
        )
        if position is not None:
            reader.restore(position)
        return reader


def _loop(
    parts: _Parts,
    run: Run,
    position: dict[str, Any] | None,
    checkpoints: Checkpoints,
    log: Log,
    profile: Profile,
) -> tuple[Run, signal.Signals | None]:
    """Takes steps until the last, or until a signal; ends with a checkpoint."""
    config, validation = parts.config, parts.validation
    reader = parts.reader(position, parts.placement.rows)
    step = saved = int(run.step)
    position = reader.state()
    # Where those steps began whose loss nobody has looked at yet.
    began: collections.deque[tuple[int, dict[str, Any]]]
    began = collections.deque(maxlen=config.log_interval + 1)
    take_step = train_step.jitted(config, parts.placement.mesh)

    def save() -> None:
        # Refuses a loss that is not finite before it replaces a good checkpoint.
        pending, mesh = log.settle(), dict(parts.placement.mesh.shape)
        record = {"pending": pending, "position": position, "mesh": mesh}
        checkpoints.save(run, record)

    with Interruption() as interruption, read_ahead(reader, parts.placement) as reads:
        try:
            while step < config.steps and not interruption.stops_at(step + 1):
                read = next(reads)
                began.append((step + 1, position))
                looked = memory_metrics.sample(step + 1, run, read.segments, config)
                run, measured = profile.call(step + 1, take_step, run, read.segments)
                for layer, found in measured.not_finite.items():
                    search.raise_if_not_finite(found, layer)
                step, position = step + 1, read.position
                log.add_wait(read.waited)
                log.add(step, measured, read.num_tokens, looked)
                if validation is not None and step % config.evaluation_interval == 0:
                    log.settle()
                    log.write(_validate(parts, run, step, validation))
                if step % config.checkpoint_interval == 0:
                    save()
                    saved = step
            if saved < step:
                save()
        except NotFiniteError as error:
            reader = parts.reader(dict(began)[error.step], slice(None))
            diagnosis.save_and_raise(
                error, parts.token_files, reader, run, position, parts.folder
            )
        return run, interruption.received if step < config.steps else None


def _validate(
    parts: _Parts, run: Run, step: int, validation: TokenFiles
) -> dict[str, Any]:
    """Returns the line for a validation; training's own state stays as it is."""
    config = parts.config
    found = evaluate(
        run.parameters,
        config.model,
        validation,
        config.batch,
        documents=range(min(config.batch, len(validation.documents))),
        max_tokens=config.evaluation_tokens // config.batch,
        mesh=parts.placement.mesh,
    )
    return {
        "step": step,
        "validation_loss": found.loss,
        "validation_perplexity": found.perplexity,
        "validation_predicted": found.num_predicted,
    }


def _save_parameters(parts: _Parts, run: Run) -> None:
    """Writes the file of parameters, from the first process, array by array."""
    whole: dict[str, Any] = {}
    for name, array in run.parameters.items():
        on_host = hosts.whole(array)
        if hosts.is_first():
            whole[name] = on_host
    if hosts.is_first():
        tokenizer, step = parts.token_files.tokenizer, int(run.step)
        flat = parameters.unstack(whole)
        trained = Trained(flat, parts.config.model, tokenizer, step)
        parameter_files.save(parts.folder.parameters, trained)
