"""Segments from token files to the device, read ahead by a thread."""

import contextlib
import dataclasses
import queue
import threading
from collections.abc import Iterator
from typing import Any

import jax

from memorizing_data.row_reader import RowReader, SegmentBatch
from memorizing_jax.train_step import Segments


@dataclasses.dataclass(frozen=True)
class Read:
    """One segment of every row, and where the reader stood after it.

    Attributes:
      segments: on the device.
      num_tokens: real tokens of all rows together.
      position: the reader's state after this segment, fit for JSON (CKP-1).
    """

    segments: Segments
    num_tokens: int
    position: dict[str, Any]


def to_device(batch: SegmentBatch) -> Segments:
    """Returns what the model needs of a batch, on its way to the device."""
    names = [field.name for field in dataclasses.fields(Segments)]
    return Segments(*jax.device_put([getattr(batch, name) for name in names]))


@contextlib.contextmanager
def read_ahead(reader: RowReader, depth: int = 4) -> Iterator[Iterator[Read]]:
    """Gives an iterator over what `reader` yields, up to `depth` segments ahead.

    An error while reading is raised where the segment would have come.

    Args:
      reader: used by the thread alone until the context ends.
      depth: segments that wait, at most.
    """
    ready: queue.Queue[Read | BaseException] = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: Read | BaseException) -> None:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                return ready.put(item, timeout=0.1)

    def work() -> None:
        try:
            for batch in reader:
                if stopped.is_set():
                    return
                num_tokens = int(batch.num_tokens.sum())
                put(Read(to_device(batch), num_tokens, reader.state()))
            put(StopIteration())
        except BaseException as error:
            put(error)

    def take() -> Iterator[Read]:
        while True:
            item = ready.get()
            if isinstance(item, StopIteration):
                return
            if isinstance(item, BaseException):
                raise item
            yield item

    thread = threading.Thread(target=work, name="read-ahead", daemon=True)
    thread.start()
    try:
        yield take()
    finally:
        stopped.set()
        thread.join()
