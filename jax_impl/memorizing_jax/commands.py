"""The commands, as what the command line fills in and then runs."""

import dataclasses
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from memorizing_data import tokenizer
from memorizing_data.token_files import open_split, read_manifest
from memorizing_jax import evaluation_report, hosts, parameter_files, terminal_text
from memorizing_jax.errors import InputError
from memorizing_jax.generate import Sampling, generate
from memorizing_jax.hosts import HostsConfig
from memorizing_jax.parameter_files import Trained
from memorizing_jax.train import train
from memorizing_jax.train_config import TrainConfig
from memorizing_jax.watch import Watch


@dataclasses.dataclass(frozen=True)
class Train:
    """Trains a model on a data set that `python -m memorizing_data prepare` made."""

    data: Path
    """Folder of the data set."""
    output: Path
    """Folder of the run: settings, metrics, checkpoints and parameters."""
    config: tyro.conf.OmitArgPrefixes[TrainConfig]
    checkpoints: str | None = None
    """Folder for the checkpoints, if not in --output; gs://bucket/folder will do."""
    preset: Literal["tiny", "demo", "base", "1b", "8b"] = "demo"
    """Settings to begin with; --help shows those of the one given."""
    resume: bool = False
    """Continue the run in --output, with its settings where none are given."""
    step: int | None = None
    """With --resume: continue from this checkpoint, and remove later ones."""
    parameters: Path | None = None
    """Start from this file of parameters, or from the newest checkpoint of this run."""
    watch: tyro.conf.OmitArgPrefixes[Watch] = dataclasses.field(default_factory=Watch)
    """What else to write down."""
    hosts: tyro.conf.OmitArgPrefixes[HostsConfig] = dataclasses.field(
        default_factory=HostsConfig
    )
    """How this process finds others of its run."""
    quiet: bool = False
    """Show no progress."""

    def run(self) -> int:
        """Runs the command; returns the exit status."""
        if self.step is not None and not self.resume:
            raise InputError(f"--step {self.step} goes with --resume; add it")
        go_on = f"go on with train --resume --data {self.data} --output {self.output}"
        with hosts.joined(self.hosts, go_on):
            stopped_by = train(
                self.config,
                self.data,
                self.output,
                checkpoints=self.checkpoints,
                resume=self.resume,
                step=self.step,
                initial=self.parameters,
                watch=self.watch,
                quiet=self.quiet,
            )
            if stopped_by is None:
                return 0
            if hosts.is_first():
                print(
                    f"memorizing_jax: stopped by {stopped_by.name} after a checkpoint; "
                    f"{go_on}",
                    file=sys.stderr,
                )
        return 130 if stopped_by is signal.SIGINT else 0


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Measures perplexity on whole documents, at one memory size or several.

    Of a pre-trained model too: see the settings of evaluate --model smollm2 --help.
    """

    data: Path
    """Folder of the data set."""
    run_folder: Annotated[Path | None, tyro.conf.arg(name="run")] = None
    """Folder of a run, whose newest checkpoint is taken; or give --parameters."""
    parameters: Path | None = None
    """File of parameters, such as the parameters.safetensors of a run."""
    step: int | None = None
    """With --run: take this checkpoint."""
    split: Literal["train", "validation", "test"] = "test"
    """Which documents."""
    memory_size: tuple[int, ...] = ()
    """Sizes to compare, in pairs per head; 0 for none; as trained if left out."""
    top_k: int | None = None
    """Neighbors that each query retrieves; as trained if left out."""
    search: Literal["bucketed", "exact", "pallas", "approx_max_k"] | None = None
    """How neighbors are found; as trained if left out."""
    recall_target: float | None = None
    """Share of the true neighbors aimed at; as trained if left out."""
    checked: bool = False
    """Refuse keys and queries that are not finite (KNN-3); slower."""
    batch: int = 8
    """Documents read side by side."""
    documents: int | None = None
    """How many documents to read, the first ones; all if left out."""
    max_tokens: int | None = None
    """Tokens to read of each document; to its end if left out."""
    output: Path | None = None
    """File to write the results to, as JSON lines, one per memory size."""
    plot: Path | None = None
    """File to draw the results in, such as results.png."""
    quiet: bool = False
    """Show no progress."""

    def run(self) -> int:
        """Runs the command; returns the exit status."""
        if self.batch < 1:
            raise InputError(f"batch is {self.batch}, must be 1 or more")
        for path in (self.output, self.plot):
            if path is not None and not path.parent.is_dir():
                raise InputError(f"{path.parent} is not a folder, so {path} cannot be")
        trained = _trained(self.run_folder, self.parameters, self.step)
        token_files = open_split(self.data, self.split)
        parameter_files.check_tokenizer(trained, token_files.tokenizer, self.data)
        changes = _given(self, "top_k", "search", "recall_target", "checked")
        sizes = self.memory_size or (trained.model.memory_size,)
        measured = evaluation_report.measure(
            trained.parameters,
            [trained.model.replace(memory_size=size, **changes) for size in sizes],
            token_files,
            self.batch,
            num_documents=self.documents,
            max_tokens=self.max_tokens,
            quiet=self.quiet,
        )
        lines = [evaluation_report.to_json(found, token_files) for found in measured]
        if self.output is not None:
            evaluation_report.write_lines(self.output, lines)
        print(evaluation_report.table(lines))
        if self.plot is not None:
            evaluation_report.plot(self.plot, lines)
        return 0


@dataclasses.dataclass(frozen=True)
class Generate:
    """Prints a text that goes on from a prompt.

    By a pre-trained model too: see generate --model smollm2 --help.
    """

    data: Path
    """Folder of the data set that the model was trained on: its tokenizer is used."""
    prompt: str | None = None
    """Text to go on from; or give --prompt-file."""
    prompt_file: Path | None = None
    """File with the text to go on from, of any length."""
    run_folder: Annotated[Path | None, tyro.conf.arg(name="run")] = None
    """Folder of a run, whose newest checkpoint is taken; or give --parameters."""
    parameters: Path | None = None
    """File of parameters, such as the parameters.safetensors of a run."""
    step: int | None = None
    """With --run: take this checkpoint."""
    tokens: int = 256
    """Tokens to print."""
    sampling: tyro.conf.OmitArgPrefixes[Sampling] = dataclasses.field(
        default_factory=Sampling
    )
    memory_size: int | None = None
    """Pairs kept per head; 0 for none; as trained if left out."""
    top_k: int | None = None
    """Neighbors that each query retrieves; as trained if left out."""
    search: Literal["bucketed", "exact", "pallas", "approx_max_k"] | None = None
    """How neighbors are found; as trained if left out."""

    def run(self) -> int:
        """Runs the command; returns the exit status."""
        if self.tokens < 1:
            raise InputError(f"tokens is {self.tokens}, must be 1 or more")
        text = terminal_text.prompt(self.prompt, self.prompt_file)
        trained = _trained(self.run_folder, self.parameters, self.step)
        described = read_manifest(self.data)["tokenizer"]
        parameter_files.check_tokenizer(trained, described, self.data)
        try:
            words = tokenizer.load(self.data)
            prompt = words.encode(text)
        except ValueError as error:
            raise InputError(str(error)) from None
        config = trained.model.replace(**_given(self, "memory_size", "top_k", "search"))
        tokens = generate(
            trained.parameters, config, prompt, self.tokens, self.sampling
        )
        terminal_text.stream(tokens, words)
        return 0


Command = Train | Evaluate | Generate


def _given(command: Evaluate | Generate, *names: str) -> dict[str, Any]:
    """Returns those of the settings that the command line gave."""
    values = {name: getattr(command, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def _trained(folder: Path | None, file: Path | None, step: int | None) -> Trained:
    if (folder is None) == (file is None):
        raise InputError("give either --run or --parameters, to say which model")
    if file is not None:
        if step is not None:
            raise InputError(f"--step {step} goes with --run, not with --parameters")
        return parameter_files.load(file)
    assert folder is not None
    return parameter_files.load_run(folder, step)
