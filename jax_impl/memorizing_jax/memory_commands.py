"""The commands that make and use memories of pre-trained models."""

import dataclasses
import signal
import sys
from pathlib import Path

import numpy as np
import tyro

from memorizing_jax import (
    memory_file,
    memory_reading,
    pretrained,
    terminal_text,
    text_documents,
)
from memorizing_jax.errors import InputError
from memorizing_jax.generate import Looked, Sampling, generate
from memorizing_jax.passages import Sources
from memorizing_jax.pretrained_reading import Reading, layers_named


@dataclasses.dataclass(frozen=True)
class Read:
    """Reads documents with a pre-trained model and keeps its memory as a file.

    Killed, it goes on where it was when the same command is given again.
    """

    paths: tyro.conf.Positional[tuple[Path, ...]]
    """Text files, folders of such, and data sets of memorizing_data."""
    model: str
    """Folder as Hugging Face's, GGUF file, or smollm2."""
    save: Path
    """File to write, such as memory.safetensors."""
    memory_layers: str = "all"
    """Layers whose pairs are kept, such as 10-19,25; rank-layers proposes some."""
    memory_size: int = 8192
    """Pairs per key-value head that the model itself sees while it reads; the file
    keeps all."""
    reading: tyro.conf.OmitArgPrefixes[Reading] = dataclasses.field(
        default_factory=Reading
    )
    quiet: bool = False
    """Show no progress."""

    def run(self) -> int:
        """Runs the command; returns the exit status."""
        if not self.save.parent.is_dir():
            raise InputError(
                f"{self.save.parent} is not a folder, so {self.save} cannot be"
            )
        if self.save.exists():
            raise InputError(
                f"{self.save} is there already; remove it, or choose another name"
            )
        if self.memory_size < 1:
            raise InputError(f"memory_size is {self.memory_size}, must be 1 or more")
        model = pretrained.load(self.model, self.reading.compute_dtype)
        layers = layers_named(self.memory_layers, model.config.num_layers)
        config = self.reading.with_memory(model.config, layers, self.memory_size)
        documents = text_documents.read(self.paths, model, quiet=self.quiet)
        settings = dataclasses.asdict(self.reading) | {
            "memory_layers": list(layers),
            "memory_size": self.memory_size,
        }
        stopped_by = memory_reading.read(
            model, config, documents, self.save, settings, quiet=self.quiet
        )
        if stopped_by is None:
            return 0
        print(
            f"memorizing_jax: stopped by {stopped_by.name}; the same command goes on",
            file=sys.stderr,
        )
        return 130 if stopped_by is signal.SIGINT else 0


@dataclasses.dataclass(frozen=True)
class GeneratePretrained:
    """Prints a text that goes on from a prompt, by a pre-trained model with a memory.

    The memory grows as it writes; what files hold lies beside it.
    """

    model: str
    """Folder as Hugging Face's, GGUF file, or smollm2."""
    prompt: str | None = None
    """Text to go on from; or give --prompt-file."""
    prompt_file: Path | None = None
    """File with the text to go on from, of any length."""
    memory: tuple[Path, ...] = ()
    """Files that read wrote."""
    memory_layers: str | None = None
    """Layers with a memory, such as 10-19,25; if left out, those of --memory, or
    else all."""
    memory_size: int = 8192
    """Pairs of prompt and text kept per key-value head; 0 for none."""
    reading: tyro.conf.OmitArgPrefixes[Reading] = dataclasses.field(
        default_factory=Reading
    )
    tokens: int = 256
    """Tokens to print."""
    sampling: tyro.conf.OmitArgPrefixes[Sampling] = dataclasses.field(
        default_factory=Sampling
    )
    show_retrieved: int = 0
    """After the text, print for each of its tokens so many passages that its
    prediction looked at in memory."""

    def run(self) -> int:
        """Runs the command; returns the exit status."""
        if self.tokens < 1:
            raise InputError(f"tokens is {self.tokens}, must be 1 or more")
        if self.show_retrieved < 0:
            raise InputError(
                f"show_retrieved is {self.show_retrieved}, must be 0 or more"
            )
        text = terminal_text.prompt(self.prompt, self.prompt_file)
        model = pretrained.load(self.model, self.reading.compute_dtype)
        file = memory_file.load_for(self.memory, model) if self.memory else None
        layers = memory_file.layers_of(
            file, self.memory_layers, model.config.num_layers
        )
        config = self.reading.with_memory(model.config, layers, self.memory_size)
        parameters = model.parameters
        if file is not None:
            dtype = self.reading.memory_dtype
            parameters = parameters | memory_file.parameters(file, dtype)
        prompt = model.tokenizer.encode(text)
        looked: list[Looked] = []
        on_retrieved = looked.append if self.show_retrieved else None
        generated = terminal_text.stream(
            generate(
                parameters, config, prompt, self.tokens, self.sampling, on_retrieved
            ),
            model.tokenizer,
        )
        sources = Sources(file, config, model.tokenizer)
        whole = np.concatenate([prompt, np.array(generated, np.int32)])
        for i, of_token in enumerate(looked):
            read = whole[: len(prompt) + i]
            print(f"\n{i + 1}: {model.tokenizer.decode(generated[i : i + 1])!r}")
            for passage in sources.passages(of_token, read, self.show_retrieved):
                print(passage)
        return 0
