"""Rows of segments: every row reads whole documents, segment by segment (SEG-1, 2).

A row that has finished its document takes the next unread one. Which one depends on
nothing but the documents' lengths, so each worker follows all rows and reads tokens
only for its own: the stream of a row is the same whatever the number of workers.
"""

import dataclasses
import reprlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from memorizing_data.token_files import TokenFileError, TokenFiles


@dataclasses.dataclass(frozen=True)
class SegmentBatch:
    """One segment for every row. Padding is 0, on the right (SEG-1).

    Attributes:
      tokens: `[batch, segment_length]`.
      targets: `[batch, segment_length]`; each the token that follows in the same
        document, also when it is the next segment's first (SEG-3).
      start_of_document: `[batch]`; true where the segment opens a document (SEG-2).
      num_tokens: `[batch]`; real tokens, 0 in a row that has run out of documents.
      num_targets: `[batch]`; real targets: as `num_tokens`, but one fewer in a
        document's last segment.
      document: `[batch]`; index of the document in its split, -1 for none.
      position: `[batch]`; offset in tokens of the segment in its document.
      total_tokens: real tokens of all rows, those of other workers too.
    """

    tokens: npt.NDArray[np.int32]
    targets: npt.NDArray[np.int32]
    start_of_document: npt.NDArray[np.bool_]
    num_tokens: npt.NDArray[np.int32]
    num_targets: npt.NDArray[np.int32]
    document: npt.NDArray[np.int32]
    position: npt.NDArray[np.int64]
    total_tokens: int


class RowReader(Iterator[SegmentBatch]):
    """Iterates over the segments of `batch` rows.

    Args:
      token_files: the split to read.
      batch: rows in all, over all workers.
      segment_length: tokens of a full segment.
      seed: documents come in an order drawn from the seed and the epoch; with None
        as they lie in the file, or in `documents`.
      repeat: go on with the next epoch, without a gap, when all documents are taken.
        Otherwise a row without a further document yields `num_tokens` 0, and the
        iteration ends when every row has.
      rows: the rows that this worker reads; all if left out.
      documents: indices of the documents to read, each once; all if left out.

    Raises:
      ValueError: a size is below 1, or `rows` or `documents` name nothing, something
        twice, or something that is not there.
    """

    def __init__(
        self,
        token_files: TokenFiles,
        *,
        batch: int,
        segment_length: int,
        seed: int | None,
        repeat: bool,
        rows: slice | None = None,
        documents: Sequence[int] | None = None,
    ):
        if batch < 1 or segment_length < 1:
            raise ValueError(f"{batch=} and {segment_length=} must be at least 1")
        if seed is not None and not 0 <= seed < 2**63:
            raise ValueError(f"{seed=} must be from 0 to 2**63 - 1, or None")
        self._rows = range(batch)[rows or slice(None)]
        if not self._rows:
            raise ValueError(f"{rows=} selects none of {batch} rows")
        self._token_files = token_files
        self._segment_length = segment_length
        self._documents = _chosen(documents, len(token_files.documents))
        self._lengths = np.array([d.num_tokens for d in token_files.documents])
        # What a saved position must agree with.
        self._identity = {
            "fingerprint": token_files.fingerprint,
            "split": token_files.split,
            "batch": int(batch),
            "segment_length": int(segment_length),
            "seed": None if seed is None else int(seed),
            "repeat": repeat,
            "documents": None if documents is None else self._documents.tolist(),
        }
        self._epoch = 0
        self._taken = 0  # Documents of this epoch that rows have taken.
        self._order = self._order_of_epoch()
        self._document = np.full(batch, -1, np.int32)
        self._position = np.zeros(batch, np.int64)

    def __next__(self) -> SegmentBatch:
        """Returns the next segment of every row.

        Raises:
          StopIteration: every row has run out of documents.
        """
        for row in np.flatnonzero(self._document < 0):
            self._document[row] = self._take_document()
        if (self._document < 0).all():
            raise StopIteration
        segments = self._read()
        self._advance()
        return segments

    def state(self) -> dict[str, Any]:
        """Returns the position before the next segment, fit for JSON (CKP-1)."""
        return self._identity | {
            "epoch": self._epoch,
            "taken": self._taken,
            "document": self._document.tolist(),
            "position": self._position.tolist(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes to a position that `state` returned, at once.

        Workers may differ in number from those that saved the state.

        Args:
          state: as returned by `state`, possibly through JSON.

        Raises:
          TokenFileError: the state belongs to other token files, another batch,
            segment length, seed or choice of documents, or is damaged. The reader
            then stays where it was.
        """
        for key, here in self._identity.items():
            if key not in state or state[key] != here:
                raise TokenFileError(
                    f"the saved data position has {key} "
                    f"{reprlib.repr(state.get(key))}, and this run has "
                    f"{reprlib.repr(here)}; continue with the settings of the saved run"
                )
        if not self._is_position(state):
            raise TokenFileError("the saved data position is damaged; start afresh")
        self._epoch, self._taken = state["epoch"], state["taken"]
        self._document[:], self._position[:] = state["document"], state["position"]
        self._order = self._order_of_epoch()

    def _is_position(self, state: dict[str, Any]) -> bool:
        """Returns whether a reader with these settings could stand there."""
        numbers = [state.get("epoch"), state.get("taken")]
        for key in ("document", "position"):
            rows = state.get(key)
            if not isinstance(rows, list) or len(rows) != len(self._document):
                return False
            numbers += rows
        if not all(type(n) is int and -1 <= n < 2**63 for n in numbers):
            return False
        lengths = {int(index): self._lengths[index] for index in self._documents}
        lengths[-1] = 1  # A row between documents stands at 0.
        return (
            state["epoch"] >= 0
            and 0 <= state["taken"] <= len(self._documents)
            and all(
                0 <= position < lengths.get(document, 0)
                for document, position in zip(
                    state["document"], state["position"], strict=True
                )
            )
        )

    def _order_of_epoch(self) -> npt.NDArray[np.int32]:
        """Returns the documents in the order in which this epoch's rows take them."""
        seed = self._identity["seed"]
        if seed is None:
            return self._documents
        # NumPy keeps the raw stream of a bit generator for ever, but not what
        # Generator.permutation makes of it.
        stream = np.random.Philox(key=np.array([seed, self._epoch], np.uint64))
        draws = stream.random_raw(len(self._documents))
        return self._documents[np.argsort(draws, kind="stable")]

    def _take_document(self) -> int:
        """Returns the next unread document, or -1 if there is none."""
        if self._taken == len(self._order):
            if not self._identity["repeat"]:
                return -1
            self._epoch += 1
            self._taken = 0
            self._order = self._order_of_epoch()
        self._taken += 1
        return int(self._order[self._taken - 1])

    def _read(self) -> SegmentBatch:
        """Returns the segments at which this worker's rows stand."""
        rows = np.array(self._rows)
        document, position = self._document[rows], self._position[rows]
        tokens = np.zeros((len(rows), self._segment_length), np.int32)
        targets = np.zeros_like(tokens)
        num_tokens = np.zeros(len(rows), np.int32)
        num_targets = np.zeros(len(rows), np.int32)
        for row in np.flatnonzero(document >= 0):
            index, first = int(document[row]), int(position[row])
            last = min(first + self._segment_length + 1, int(self._lengths[index]))
            found = self._token_files.tokens(index, first, last)
            num_targets[row] = len(found) - 1
            num_tokens[row] = min(len(found), self._segment_length)
            tokens[row, : num_tokens[row]] = found[: self._segment_length]
            targets[row, : num_targets[row]] = found[1:]
        return SegmentBatch(
            tokens=tokens,
            targets=targets,
            start_of_document=(document >= 0) & (position == 0),
            num_tokens=num_tokens,
            num_targets=num_targets,
            document=document,
            position=position,
            total_tokens=self._total_tokens(),
        )

    def _total_tokens(self) -> int:
        """Returns how many tokens the segments of all rows hold."""
        left = self._lengths[self._document] - self._position
        left[self._document < 0] = 0
        return int(np.minimum(left, self._segment_length).sum())

    def _advance(self) -> None:
        """Moves every row, this worker's or not, to its next segment."""
        self._position += self._segment_length
        finished = self._position >= self._lengths[self._document]
        finished |= self._document < 0
        self._document[finished] = -1
        self._position[finished] = 0


def _chosen(documents: Sequence[int] | None, available: int) -> npt.NDArray[np.int32]:
    """Returns the indices of the documents to read, each checked."""
    if documents is None:
        return np.arange(available, dtype=np.int32)
    chosen = [int(index) for index in documents]
    if not chosen:
        raise ValueError("documents=[] leaves nothing to read")
    if len(set(chosen)) != len(chosen):
        raise ValueError("documents names a document twice")
    if not 0 <= min(chosen) <= max(chosen) < available:
        raise ValueError(
            f"documents reaches from {min(chosen)} to {max(chosen)}, and the split "
            f"from 0 to {available - 1}"
        )
    return np.array(chosen, np.int32)
