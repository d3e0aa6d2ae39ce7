"""The commands that make and use memories of pre-trained models."""

import dataclasses
import signal
import sys
from pathlib import Path

import tyro

from memorizing_jax import memory_reading, pretrained, text_documents
from memorizing_jax.errors import InputError
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
