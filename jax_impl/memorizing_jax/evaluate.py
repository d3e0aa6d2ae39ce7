"""Loss of every token of held-out documents, from a fresh state (SEG-5, CKP-2)."""

import collections
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence

import jax
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh

from memorizing_data.row_reader import RowReader, SegmentBatch
from memorizing_data.token_files import TokenFiles
from memorizing_jax import families, input_pipeline, loss, model, search, sharding
from memorizing_jax.config import ModelConfig
from memorizing_jax.errors import InputError
from memorizing_jax.input_pipeline import Placement
from memorizing_jax.parameters import Parameters
from memorizing_jax.train_step import NotFinite, Segments

_FIRST_BIN = 256


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What one pass over some documents measured.

    Attributes:
      documents: their indices in the split, in order.
      nats: for each the loss of its tokens but the first, `[num_tokens - 1]`, so
        that entry `t` belongs to the token at offset `t + 1`.
      num_bytes: UTF-8 bytes of their texts together; None where documents were not
        read to their end.
    """

    documents: tuple[int, ...]
    nats: tuple[npt.NDArray[np.float32], ...]
    num_bytes: int | None

    @property
    def total_nats(self) -> float:
        """Loss of all predicted tokens together."""
        return math.fsum(float(n.sum(dtype=np.float64)) for n in self.nats)

    @property
    def num_predicted(self) -> int:
        """Every token but a document's first (SEG-3)."""
        return sum(len(n) for n in self.nats)

    @property
    def loss(self) -> float:
        """Nats per predicted token."""
        return self.total_nats / self.num_predicted

    @property
    def perplexity(self) -> float:
        """exp(loss) (SEG-5)."""
        return math.exp(self.loss)

    @property
    def bits_per_byte(self) -> float | None:
        """Comparable across tokenizers (SEG-5)."""
        if self.num_bytes is None:
            return None
        return self.total_nats / math.log(2.0) / self.num_bytes

    def by_position(self) -> list[tuple[int, int, float, int]]:
        """Returns the loss by offset in the document, in bins that double.

        Returns:
          For each bin that holds tokens its first offset, the offset after its last,
          nats per token, and how many tokens it holds.
        """
        edges = [1, _FIRST_BIN]
        while edges[-1] <= max(map(len, self.nats)):
            edges.append(2 * edges[-1])
        bins = []
        for first, last in itertools.pairwise(edges):
            parts = [n[first - 1 : last - 1] for n in self.nats]
            count = sum(map(len, parts))
            if count:
                nats = math.fsum(float(p.sum(dtype=np.float64)) for p in parts)
                bins.append((first, last, nats / count, count))
        return bins


def evaluate(
    params: Parameters,
    config: ModelConfig,
    token_files: TokenFiles,
    batch: int,
    *,
    documents: Sequence[int] | None = None,
    max_tokens: int | None = None,
    on_progress: Callable[[int], object] | None = None,
    mesh: Mesh | None = None,
) -> Evaluation:
    """Reads documents from start to end and keeps the loss of every token.

    Args:
      params: by the names of MOD-6.
      config: its memory, `top_k` and search need not be those of training (MOD-5).
      token_files: the split to read.
      batch: documents read side by side.
      documents: their indices in the split; all if left out.
      max_tokens: tokens to read of each document; to its end if left out.
      on_progress: told the number of tokens read since it was last told.
      mesh: that of `jax.set_mesh`, if there is one; all its processes call this.

    Returns:
      The loss of every token, document by document.

    Raises:
      InputError: the documents hold no token to predict, the vocabularies differ, or
        checked search met what is not finite (KNN-3).
    """
    if config.vocab_size != token_files.vocab_size:
        raise InputError(
            f"the model knows {config.vocab_size} tokens, and those of "
            f"{token_files.directory} are {token_files.vocab_size}; use the data set "
            "it was trained on, or one with the same tokenizer"
        )
    chosen = tuple(
        range(len(token_files.documents)) if documents is None else documents
    )
    shortened = _shortened(token_files, max_tokens)
    lengths = {i: shortened.documents[i].num_tokens for i in chosen}
    if sum(lengths.values()) == len(lengths):
        raise InputError(
            f"the documents chosen from {token_files.split} hold no token to predict: "
            "each has a single token"
        )
    rows = min(batch, len(chosen))
    if mesh is not None:  # Each shard has as many; those without a document are idle.
        rows += -rows % mesh.shape[sharding.DATA]
    reader = RowReader(
        shortened,
        batch=rows,
        segment_length=config.segment_length,
        seed=None,
        repeat=False,
        # Longest first, so that no row reads on alone for long.
        documents=sorted(chosen, key=lambda i: -lengths[i]),
    )
    nats = {i: np.zeros(lengths[i] - 1, np.float32) for i in chosen}
    placement = None if mesh is None else Placement(mesh, rows)
    _read(params, config, reader, rows, nats, on_progress, placement)
    whole = all(lengths[i] == token_files.documents[i].num_tokens for i in chosen)
    num_bytes = sum(token_files.documents[i].num_bytes for i in chosen)
    return Evaluation(
        documents=chosen,
        nats=tuple(nats[i] for i in chosen),
        num_bytes=num_bytes if whole else None,
    )


def _read(
    params: Parameters,
    config: ModelConfig,
    reader: RowReader,
    batch: int,
    nats: dict[int, npt.NDArray[np.float32]],
    on_progress: Callable[[int], object] | None,
    placement: Placement | None,
) -> None:
    """Fills `nats` with the loss of every target that `reader` yields."""
    state = _init_state(config, batch, placement)
    waiting: collections.deque[tuple[SegmentBatch, jax.Array, NotFinite]]
    waiting = collections.deque()

    def store() -> None:
        segment, losses, not_finite = waiting.popleft()
        for layer, found in not_finite.items():
            search.raise_if_not_finite(found, layer)
        of_row = np.asarray(losses)
        for row in np.flatnonzero(segment.num_targets):
            first, count = segment.position[row], segment.num_targets[row]
            of_document = nats[int(segment.document[row])]
            of_document[first : first + count] = of_row[row, :count]
        if on_progress is not None:
            on_progress(int(segment.num_tokens.sum()))

    for segment in reader:
        losses, state, not_finite = _step(
            params, state, input_pipeline.to_device(segment, placement), config
        )
        waiting.append((segment, losses, not_finite))
        # Fetched a step late: the device is busy with the next one meanwhile.
        if len(waiting) > 1:
            store()
    while waiting:
        store()


def _init_state(
    config: ModelConfig, batch: int, placement: Placement | None
) -> model.State:
    if placement is None:
        return families.of(config).init_state(config, batch)
    shards = placement.mesh.shape[sharding.MEMORY]
    begin = functools.partial(model.init_state, config, batch, shards)
    shapes = {"model": jax.eval_shape(begin)}
    where = sharding.shardings(shapes, placement.mesh)["model"]
    return jax.jit(begin, out_shardings=where)()


@functools.partial(jax.jit, static_argnames="config", donate_argnames="state")
def _step(
    params: Parameters, state: model.State, segments: Segments, config: ModelConfig
) -> tuple[jax.Array, model.State, NotFinite]:
    logits, state, retrieved = families.of(config).forward(
        params,
        state,
        segments.tokens,
        segments.start_of_document,
        segments.num_tokens,
        config,
    )
    not_finite = {layer: found.not_finite for layer, found in retrieved.items()}
    losses = loss.per_token(logits, segments.targets)
    # Every process gets all of them, to come to the same result.
    losses = sharding.constrain(losses, None, None)
    if mesh := sharding.current():
        specs = sharding.specs({"model": state}, mesh)["model"]
        state = jax.lax.with_sharding_constraint(state, specs)
    return losses, state, not_finite


def _shortened(token_files: TokenFiles, max_tokens: int | None) -> TokenFiles:
    """Returns the same split with every document cut to `max_tokens`."""
    if max_tokens is None:
        return token_files
    if max_tokens < 2:
        raise InputError(f"max_tokens is {max_tokens}, must be 2 or more")
    documents = tuple(
        dataclasses.replace(d, num_tokens=min(d.num_tokens, max_tokens))
        for d in token_files.documents
    )
    return dataclasses.replace(token_files, documents=documents)
