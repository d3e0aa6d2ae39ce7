"""Documents become a stream of segments, several rows side by side (SEG-1 to SEG-4)."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Int


@dataclasses.dataclass(frozen=True)
class Segment:
    """One step of every row.

    Attributes:
      tokens: the rows' segments, padded on the right with 0 (SEG-1).
      start_of_document: rows whose segment opens a document (SEG-2).
      num_tokens: real tokens of each row; 0 once a row has run out of documents.
      targets: `targets[b, i]` is the token that follows `tokens[b, i]` in its
        document. That of the last position comes from the next segment (SEG-3).
      num_targets: positions of each row that have a target: `num_tokens`, less
        one where the document ends.
    """

    tokens: Int[np.ndarray, "batch segment_length"]
    start_of_document: Bool[np.ndarray, " batch"]
    num_tokens: Int[np.ndarray, " batch"]
    targets: Int[np.ndarray, "batch segment_length"]
    num_targets: Int[np.ndarray, " batch"]


def stream(
    documents: Sequence[Int[np.ndarray, " _"]], *, batch: int, segment_length: int
) -> Iterator[Segment]:
    """Yields segments until every document was read once, from start to end.

    A row that has finished a document takes the next unread one. Rows that find
    none left stand idle, with `num_tokens` 0. Empty documents are passed over.

    Args:
      documents: token ids, one array per document.
      batch: number of rows, `B`.
      segment_length: tokens of a row per segment, `N`.

    Raises:
      ValueError: if `batch` or `segment_length` is less than 1.
    """
    for name, size in (("batch", batch), ("segment_length", segment_length)):
        if size < 1:
            raise ValueError(f"{name} is {size}, must be 1 or more")
    unread = iter([np.asarray(d) for d in documents if len(d)])
    reading: list[Int[np.ndarray, " _"] | None] = [None] * batch
    position = [0] * batch
    while True:
        segment = _blank(batch, segment_length)
        for row in range(batch):
            document = reading[row]
            if document is None or position[row] >= len(document):
                document = next(unread, None)
                reading[row], position[row] = document, 0
                segment.start_of_document[row] = document is not None
            if document is not None:
                _fill(segment, row, document, position[row])
                position[row] += segment_length
        if not segment.num_tokens.any():
            return
        yield segment


def _blank(batch: int, segment_length: int) -> Segment:
    return Segment(
        tokens=np.zeros((batch, segment_length), np.int64),
        start_of_document=np.zeros(batch, bool),
        num_tokens=np.zeros(batch, np.int64),
        targets=np.zeros((batch, segment_length), np.int64),
        num_targets=np.zeros(batch, np.int64),
    )


def _fill(
    segment: Segment, row: int, document: Int[np.ndarray, " _"], position: int
) -> None:
    segment_length = segment.tokens.shape[1]
    tokens = document[position : position + segment_length]
    targets = document[position + 1 : position + 1 + segment_length]
    segment.tokens[row, : len(tokens)] = tokens
    segment.targets[row, : len(targets)] = targets
    segment.num_tokens[row] = len(tokens)
    segment.num_targets[row] = len(targets)
