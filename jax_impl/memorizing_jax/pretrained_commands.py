"""The commands for pre-trained models, as what the command line fills in and runs."""

import dataclasses
import sys
from pathlib import Path

import tyro

from memorizing_jax import (
    evaluation_report,
    layer_ranking,
    memory_file,
    pretrained,
    pretrained_report,
    text_documents,
)
from memorizing_jax.errors import InputError
from memorizing_jax.pretrained_reading import Reading, Sizes


@dataclasses.dataclass(frozen=True)
class EvaluatePretrained:
    """Measures what a memory gains a pre-trained model, without any training."""

    model: str
    """Folder as Hugging Face's, GGUF file, or smollm2."""
    documents: tuple[Path, ...]
    """Text files, and folders of such; each file is a document."""
    memory_size: Sizes = (0, 8192)
    """Sizes to compare, in pairs per key-value head; 0 is local attention alone."""
    memory_layers: str | None = None
    """Layers that own a memory, such as 10-19,25; rank-layers proposes some. If left
    out, those of --memory, or else all."""
    memory: tuple[Path, ...] = ()
    """Files that read wrote; measure with their pairs too."""
    reading: tyro.conf.OmitArgPrefixes[Reading] = dataclasses.field(
        default_factory=Reading
    )
    full_attention: bool = True
    """Compare with full attention over as much as the model was trained on."""
    batch: int = 1
    """Documents read side by side."""
    max_tokens: int | None = None
    """Tokens to read of each document; to its end if left out."""
    output: Path | None = None
    """File to write the results to, as JSON lines, one per row of the table."""
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
        model = pretrained.load(self.model, self.reading.compute_dtype)
        file = memory_file.load_for(self.memory, model) if self.memory else None
        layers = memory_file.layers_of(
            file, self.memory_layers, model.config.num_layers
        )
        ways = pretrained_report.ways(
            self.reading, model.config, layers, self.memory_size, file
        )
        documents = text_documents.read(self.documents, model, quiet=self.quiet)
        for name in memory_file.held(file, documents) if file else ():
            print(
                f"memorizing_jax: --memory holds {name} itself, so its loss there says "
                "nothing about texts that were not read",
                file=sys.stderr,
            )
        if self.full_attention:
            ways.append(
                pretrained_report.full(
                    self.reading, model.config, documents, self.max_tokens
                )
            )
        lines = pretrained_report.measure(
            model, ways, documents, self.batch, self.max_tokens, quiet=self.quiet
        )
        if self.output is not None:
            evaluation_report.write_lines(self.output, lines)
        print(evaluation_report.table(lines))
        if self.plot is not None:
            evaluation_report.plot(self.plot, lines)
        return 0


@dataclasses.dataclass(frozen=True)
class RankLayers:
    """Measures what memory gains in each layer of a pre-trained model; proposes some.

    What was measured is kept in --output, and not measured again.
    """

    model: str
    """Folder as Hugging Face's, GGUF file, or smollm2."""
    documents: tuple[Path, ...]
    """Text files, and folders of such; each file is a document."""
    output: Path
    """File of what was measured, JSON lines."""
    memory_size: int = 8192
    """Pairs kept per key-value head."""
    reading: tyro.conf.OmitArgPrefixes[Reading] = dataclasses.field(
        default_factory=Reading
    )
    share: float = 0.8
    """Propose the fewest layers that reach this share of the best gain."""
    batch: int = 1
    """Documents read side by side."""
    max_tokens: int = 8192
    """Tokens to read of each document."""
    quiet: bool = False
    """Show no progress."""

    def run(self) -> int:
        """Runs the command; returns the exit status."""
        if not 0.0 < self.share <= 1.0:
            raise InputError(f"share is {self.share}, must be above 0 and at most 1")
        if not self.output.parent.is_dir():
            raise InputError(
                f"{self.output.parent} is not a folder, so {self.output} cannot be"
            )
        model = pretrained.load(self.model, self.reading.compute_dtype)
        documents = text_documents.read(self.documents, model, quiet=self.quiet)
        ranking = layer_ranking.LayerRanking(
            model,
            documents,
            self.reading,
            self.memory_size,
            self.batch,
            self.max_tokens,
            self.output,
        )
        ranking.measure_all(quiet=self.quiet)
        print(ranking.table(self.share))
        return 0
