"""Segments from token files to the device, read ahead by a thread."""

import contextlib
import dataclasses
import functools
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from memorizing_data.row_reader import RowReader, SegmentBatch
from memorizing_jax import sharding
from memorizing_jax.train_step import Segments


@dataclasses.dataclass(frozen=True)
class Read:
    """One segment of every row, and where the reader stood after it.

    Attributes:
      segments: on the devices.
      num_tokens: real tokens of all rows together.
      position: the reader's state after this segment, fit for JSON (CKP-1).
      waited: seconds that the taker waited for it.
    """

    segments: Segments
    num_tokens: int
    position: dict[str, Any]
    waited: float = 0.0


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where the rows of a batch live.

    Attributes:
      mesh: of all processes.
      batch: rows of all processes.
    """

    mesh: Mesh
    batch: int

    @functools.cached_property
    def rows(self) -> slice:
        """The rows that this process has to read: those of its own devices."""
        of_row = self._sharding("num_tokens", (self.batch,))
        held = of_row.addressable_devices_indices_map((self.batch,)).values()
        ranges = [range(self.batch)[index[0]] for index in held if index is not None]
        return slice(min(r.start for r in ranges), max(r.stop for r in ranges))

    def place(self, name: str, array: np.ndarray) -> jax.Array:
        """Returns one array of all rows, given all of it or its part for `rows`."""
        first = 0 if len(array) == self.batch else self.rows.start
        shape = (self.batch, *array.shape[1:])

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None  # Every device holds a part.
            held = range(self.batch)[index[0]]
            return array[held.start - first : held.stop - first]

        where = self._sharding(name, shape)
        return jax.make_array_from_callback(shape, where, part)

    def _sharding(self, name: str, shape: tuple[int, ...]) -> NamedSharding:
        like = jax.ShapeDtypeStruct(shape, np.int32)
        tree = sharding.shardings({"segments": {name: like}}, self.mesh)
        found: NamedSharding = tree["segments"][name]
        return found


def to_device(batch: SegmentBatch, placement: Placement | None = None) -> Segments:
    """Returns what the model needs of a batch, on its way to the device or devices."""
    arrays = {f.name: getattr(batch, f.name) for f in dataclasses.fields(Segments)}
    if placement is None:
        return Segments(**jax.device_put(arrays))
    return Segments(**{name: placement.place(name, a) for name, a in arrays.items()})


@contextlib.contextmanager
def read_ahead(
    reader: RowReader, placement: Placement | None = None, depth: int = 4
) -> Iterator[Iterator[Read]]:
    """Gives an iterator over what `reader` yields, up to `depth` segments ahead.

    An error while reading is raised where the segment would have come.

    Args:
      reader: used by the thread alone until the context ends. With a placement it
        reads the rows that this names.
      placement: where the segments go; to the first device if left out.
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
                segments = to_device(batch, placement)
                put(Read(segments, batch.total_tokens, reader.state()))
            put(StopIteration())
        except BaseException as error:
            put(error)

    def take() -> Iterator[Read]:
        while True:
            since = time.monotonic()
            item = ready.get()
            if isinstance(item, StopIteration):
                return
            if isinstance(item, BaseException):
                raise item
            yield dataclasses.replace(item, waited=time.monotonic() - since)

    thread = threading.Thread(target=work, name="read-ahead", daemon=True)
    thread.start()
    try:
        yield take()
    finally:
        stopped.set()
        thread.join()
