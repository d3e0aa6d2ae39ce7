"""Which layers of a pre-trained model a memory helps, measured one by one."""

import dataclasses
import json
from pathlib import Path

import numpy as np
from tqdm import tqdm

from memorizing_data.token_files import TokenFiles
from memorizing_jax import evaluation_report
from memorizing_jax.errors import InputError
from memorizing_jax.evaluate import evaluate
from memorizing_jax.pretrained import Pretrained
from memorizing_jax.pretrained_reading import Reading

Layers = tuple[int, ...]


@dataclasses.dataclass
class LayerRanking:
    """Losses by set of layers, kept in a file as they are measured.

    Counted are tokens that follow the first full local context: before, a memory holds
    nothing.

    Attributes:
      model: the model.
      documents: to read.
      reading: how.
      memory_size: pairs per key-value head.
      batch: documents read side by side.
      max_tokens: tokens to read of each document.
      path: the file; what it holds of the same model, documents and settings is not
        measured again.
    """

    model: Pretrained
    documents: TokenFiles
    reading: Reading
    memory_size: int
    batch: int
    max_tokens: int
    path: Path

    def __post_init__(self) -> None:
        """Reads what was measured before.

        Raises:
          InputError: the file is of another model, documents or settings, or the
            documents are too short.
        """
        self._first = self.reading.local(self.model.config).context_length
        longest = max(document.num_tokens for document in self.documents.documents)
        if min(longest, self.max_tokens) <= self._first:
            raise InputError(
                f"no document, read to {self.max_tokens} tokens, is longer than the "
                f"local context of {self._first}; give longer ones"
            )
        self._identity = {
            "model": self.model.sha256,
            "documents": self.documents.fingerprint,
            "memory_size": self.memory_size,
            "max_tokens": self.max_tokens,
        } | dataclasses.asdict(self.reading)
        self._loss: dict[Layers, float] = {}
        if self.path.exists():
            self._restore()

    def _restore(self) -> None:
        try:
            lines = [json.loads(line) for line in self.path.read_text().splitlines()]
            identity, measured = lines[0], lines[1:]
            self._loss = {tuple(x["layers"]): float(x["loss"]) for x in measured}
        except (ValueError, IndexError, KeyError, TypeError):
            raise InputError(
                f"{self.path} is not a file of rank-layers; choose another --output"
            ) from None
        for name, here in self._identity.items():
            if identity.get(name) != here:
                raise InputError(
                    f"{self.path} was measured with {name} {identity.get(name)!r}, and "
                    f"now it is {here!r}; choose another --output"
                )

    def measure_all(self, *, quiet: bool = False) -> None:
        """Measures no memory, each layer alone, and the best layers together."""
        single: list[Layers] = [(i,) for i in range(self.model.config.num_layers)]
        together = _sizes(len(single))
        with tqdm(
            total=1 + len(single) + len(together), unit="set", disable=quiet
        ) as bar:
            for layers in [(), *single]:
                self._measure(layers)
                bar.update()
            for size in together:
                self._measure(self._best(size))
                bar.update()

    def _measure(self, layers: Layers) -> None:
        if layers in self._loss:
            return
        found = evaluate(
            self.model.parameters,
            self.reading.with_memory(self.model.config, layers, self.memory_size),
            self.documents,
            self.batch,
            max_tokens=self.max_tokens,
        )
        # Entry t is the loss of the token at offset t + 1.
        counted = np.concatenate([nats[self._first - 1 :] for nats in found.nats])
        self._loss[layers] = float(counted.mean(dtype=np.float64))
        lines = [{"layers": x, "loss": loss} for x, loss in self._loss.items()]
        evaluation_report.write_lines(self.path, [self._identity, *lines])

    def gain(self, layers: Layers) -> float:
        """Returns how many nats per token a memory in these layers saves."""
        return self._loss[()] - self._loss[layers]

    def _best(self, size: int) -> Layers:
        """Returns the layers that gain most alone, in order of depth."""
        layers = range(self.model.config.num_layers)
        best = sorted(layers, key=lambda i: (-self.gain((i,)), i))[:size]
        return tuple(sorted(best))

    def proposed(self, share: float) -> Layers:
        """Returns the fewest layers that reach a share of the best gain of any set.

        None at all where no set gains anything.
        """
        best = max(map(self.gain, self._loss))
        enough = [x for x in self._loss if self.gain(x) >= share * best]
        return min(enough, key=lambda x: (len(x), -self.gain(x)))

    def table(self, share: float) -> str:
        """Returns the layers by what they gain alone, sets, and the proposal."""
        layers = sorted(
            range(self.model.config.num_layers), key=lambda i: -self.gain((i,))
        )
        lines = [
            f"local only: {self._loss[()]:.4f} nats/token after the first "
            f"{self._first:,} tokens of a document",
            "layer  nats/token saved by a memory there",
            *(f"{i:5}  {self.gain((i,)):+.4f}" for i in layers),
            "layers  nats/token saved by memories in the best so many",
            *(
                f"{size:6}  {self.gain(self._best(size)):+.4f}"
                for size in _sizes(len(layers))
            ),
        ]
        proposed = self.proposed(share)
        names = ",".join(map(str, proposed)) or "none"
        lines.append(
            f"proposed: --memory-layers {names} ({self.gain(proposed):+.4f} nats/token)"
        )
        return "\n".join(lines)


def _sizes(num_layers: int) -> list[int]:
    """Returns 2, 4, 8 and so on, and all layers."""
    doubled = [2**i for i in range(1, num_layers.bit_length())]
    return [size for size in doubled if size < num_layers] + [num_layers]
