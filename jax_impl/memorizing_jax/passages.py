"""The passages that a pre-trained model looked at when it predicted a token."""

import collections
import dataclasses
from typing import Final

import numpy as np
import numpy.typing as npt

from memorizing_data.tokenizer import Tokenizer
from memorizing_jax.generate import Looked
from memorizing_jax.llama_config import LlamaConfig
from memorizing_jax.memory_file import MemoryFile

_AROUND: Final = 12  # Tokens shown before and after the one looked at.
_HERE: Final = -1  # Stands for the document being written.


@dataclasses.dataclass(frozen=True)
class Passage:
    """A stretch of text around a retrieved position.

    Attributes:
      share: of the attention that went there, over all heads of all memory layers.
      source: name of the document; "this text" for the one being written.
      position: of the token that most of it went to.
      before: the text before that token.
      at: that token's.
      after: what follows, whose first token is what the pair foretells.
    """

    share: float
    source: str
    position: int
    before: str
    at: str
    after: str

    def __str__(self) -> str:
        """Returns a line, the token looked at in brackets."""
        text = f"{self.before}[{self.at}]{self.after}".replace("\n", "\\n")
        return f"{self.share:7.2%}  {self.source}:{self.position}  {text}"


class Sources:
    """Where slots come from: a memory file, and the document being written.

    Args:
      file: whose pairs all rows share, if there is one.
      config: of the model that writes, of "joint" combination.
      words: its tokenizer.
    """

    def __init__(self, file: MemoryFile | None, config: LlamaConfig, words: Tokenizer):
        self._file = file
        self._config = config
        self._words = words
        self._starts = np.cumsum(
            [0, *(source.num_tokens for source in file.documents)] if file else [0]
        )

    def passages(
        self, looked: Looked, tokens: npt.NDArray[np.int32], count: int
    ) -> list[Passage]:
        """Returns the passages that got most attention, the most first.

        Positions closer than a passage is long count as one passage.

        Args:
          looked: what the query of the last token retrieved.
          tokens: of the document being written, up to that query.
          count: how many to return at most.
        """
        shares: dict[tuple[int, int], float] = collections.defaultdict(float)
        for slots, weights in looked.values():
            of_each = 1.0 / (len(looked) * len(slots))
            for slot, weight in zip(slots.ravel(), weights.ravel(), strict=True):
                if slot >= 0:
                    place = self._place(int(slot), len(tokens))
                    shares[place] += float(weight) * of_each
        chosen: dict[tuple[int, int], float] = {}
        for place in sorted(shares, key=lambda place: -shares[place]):
            near = [
                other
                for other in chosen
                if other[0] == place[0] and abs(other[1] - place[1]) <= _AROUND
            ]
            if near:
                chosen[near[0]] += shares[place]
            else:
                chosen[place] = shares[place]
        best = sorted(chosen, key=lambda place: -chosen[place])[:count]
        return [self._passage(*place, chosen[place], tokens) for place in best]

    def _place(self, slot: int, num_read: int) -> tuple[int, int]:
        """Returns the document and the position that a slot's pair comes from."""
        if self._file is not None:
            if slot < len(self._file.position):
                return int(self._file.document[slot]), int(self._file.position[slot])
            slot -= len(self._file.position)
        config = self._config
        # As of the last segment that was complete before the query (PRE-6).
        complete = (num_read - 1) // config.segment_length * config.segment_length
        written = complete - config.cache_length - config.num_sinks
        newest = written - 1 - (written - 1 - slot) % config.memory_size
        return _HERE, config.num_sinks + newest

    def _passage(
        self, document: int, position: int, share: float, tokens: npt.NDArray[np.int32]
    ) -> Passage:
        source = "this text"
        if document != _HERE and self._file is not None:
            source = self._file.documents[document].name
            first, last = self._starts[document : document + 2]
            tokens = self._file.tokens[first:last]
        before = tokens[max(0, position - _AROUND) : position]
        after = tokens[position + 1 : position + 1 + _AROUND]
        at = tokens[position : position + 1]
        return Passage(
            share, source, position, *map(self._words.decode, (before, at, after))
        )
