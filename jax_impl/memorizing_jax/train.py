"""The training loop: segments, steps, metrics, validation, checkpoints.

The device is waited for at a checkpoint and a validation only: metrics are fetched
when the steps after them are already queued.
"""

import functools
import signal
import sys
from pathlib import Path
from typing import Any

import jax

from memorizing_data.row_reader import RowReader
from memorizing_data.token_files import TokenFiles, open_split
from memorizing_jax import (
    fine_tuning,
    memory_metrics,
    parameter_files,
    search,
    train_step,
)
from memorizing_jax.checkpoint import Checkpoints
from memorizing_jax.evaluate import evaluate
from memorizing_jax.input_pipeline import read_ahead
from memorizing_jax.interruption import Interruption
from memorizing_jax.metrics import Log
from memorizing_jax.parameter_files import Trained
from memorizing_jax.parameters import Parameters
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
      resume: continue the run in `output`, bit for bit on one device (CKP-1).
      step: continue from this checkpoint and not from the newest.
      initial: parameters to start from, in place of drawn ones; see
        `fine_tuning.load`.
      watch: what to write down beside the lines of metrics, if anything.
      quiet: show no progress and say nothing.

    Returns:
      The signal that ended it, or None if all steps are done.

    Raises:
      InputError: the settings, the run's folder or the parameters do not fit, the
        loss is no longer finite, or checked search met what is not (KNN-3).
      TokenFileError: the data set is missing or damaged.
      OSError: a file cannot be written.
    """
    token_files = open_split(data, "train")
    validation = open_split(data, "validation") if config.evaluation_interval else None
    config = config.with_vocabulary(token_files.vocab_size)
    given, sha256 = None, None
    if initial is not None:
        start = fine_tuning.load(initial, config.model, token_files)
        given, sha256 = start.parameters, start.sha256
        if not quiet:
            sentence = fine_tuning.describe(start, initial, config.model)
            print(f"memorizing_jax: {sentence}", file=sys.stderr)
    folder = RunFolder(output)
    begun = folder.open(config, token_files, sha256, resume=resume)
    checkpoints = Checkpoints(folder.checkpoints, config.checkpoints_kept)
    reader = RowReader(
        token_files,
        batch=config.batch,
        segment_length=config.model.segment_length,
        seed=config.seed,
        repeat=True,
    )
    try:
        run, pending = _first(config, checkpoints, reader, step, given)
        folder.update(config)
        if resume and not quiet:
            where = f"continuing from step {run.step}" if begun else "nothing yet"
            print(f"memorizing_jax: {where} in {output}", file=sys.stderr)
        watch = watch or Watch()
        events = folder.tensorboard if watch.tensorboard else None
        with (
            Log(
                folder.metrics,
                config,
                int(run.step),
                pending,
                quiet,
                events=events,
                peak_tflops=watch.peak_tflops,
            ) as log,
            Profile(folder.profile, watch.profile, quiet) as profile,
        ):
            run, stopped_by = _loop(
                config, run, reader, checkpoints, validation, log, profile
            )
    finally:
        checkpoints.close()
    if stopped_by is None:
        tokenizer = token_files.tokenizer
        trained = Trained(run.parameters, config.model, tokenizer, int(run.step))
        parameter_files.save(folder.parameters, trained)
    return stopped_by


def _loop(
    config: TrainConfig,
    run: Run,
    reader: RowReader,
    checkpoints: Checkpoints,
    validation: TokenFiles | None,
    log: Log,
    profile: Profile,
) -> tuple[Run, signal.Signals | None]:
    """Takes steps until the last, or until a signal; ends with a checkpoint."""
    step = saved = int(run.step)
    position = reader.state()

    def save() -> None:
        # Refuses a loss that is not finite before it replaces a good checkpoint.
        record = {"pending": log.settle(), "position": position}
        checkpoints.save(run, record)

    with Interruption() as interruption, read_ahead(reader) as reads:
        while step < config.steps and interruption.received is None:
            read = next(reads)
            looked = memory_metrics.sample(step + 1, run, read.segments, config)
            run, measured = profile.call(
                step + 1, train_step.train_step_jit, run, read.segments, config
            )
            for layer, found in measured.not_finite.items():
                search.raise_if_not_finite(found, layer)
            step, position = step + 1, read.position
            log.add(step, measured, read.num_tokens, looked)
            if validation is not None and step % config.evaluation_interval == 0:
                log.settle()
                log.write(_validate(run, step, config, validation))
            if step % config.checkpoint_interval == 0:
                save()
                saved = step
        if saved < step:
            save()
        return run, interruption.received if step < config.steps else None


def _first(
    config: TrainConfig,
    checkpoints: Checkpoints,
    reader: RowReader,
    step: int | None,
    given: Parameters | None,
) -> tuple[Run, list[dict[str, Any]]]:
    """Returns the run to go on with, and its measured steps that wait for a line."""
    begin = functools.partial(train_step.init, config)
    if checkpoints.steps() or step is not None:
        run, record = checkpoints.restore(step, like=jax.eval_shape(begin))
        reader.restore(record["position"])
        checkpoints.drop_after(int(run.step))
        return run, record["pending"]
    return jax.jit(begin)(given=given), []


def _validate(
    run: Run, step: int, config: TrainConfig, validation: TokenFiles
) -> dict[str, Any]:
    """Returns the line for a validation; training's own state stays as it is."""
    found = evaluate(
        run.parameters,
        config.model,
        validation,
        config.batch,
        documents=range(min(config.batch, len(validation.documents))),
        max_tokens=config.evaluation_tokens // config.batch,
    )
    return {
        "step": step,
        "validation_loss": found.loss,
        "validation_perplexity": found.perplexity,
        "validation_predicted": found.num_predicted,
    }
