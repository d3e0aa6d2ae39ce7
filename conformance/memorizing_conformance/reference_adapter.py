"""The reference, seen through the interface that every implementation offers."""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from memorizing_conformance import reference_files, reference_model
from memorizing_conformance.features import FEATURES
from memorizing_conformance.implementation import Arrays, StreamSegment
from memorizing_conformance.reference_memory import MemoryMethods, MemoryState
from memorizing_conformance.reference_model import ModelState
from memorizing_reference import (
    bucketed_search,
    parameters,
    perplexity,
    segments,
)


class ReferenceImplementation(MemoryMethods):
    """The reference in float32."""

    name = "reference"
    features = frozenset(FEATURES) - {"bucketed_search", "approximate_search"}
    recall_target = 1.0

    def init_model(
        self, config: Mapping[str, Any], parameters: Arrays, batch: int
    ) -> ModelState:
        """Returns the state before the first segment."""
        return reference_model.init(config, self._cast_all(parameters), batch)

    def forward(
        self,
        model_state: ModelState,
        tokens: np.ndarray,
        start_of_document: np.ndarray,
        num_tokens: np.ndarray,
    ) -> tuple[np.ndarray, ModelState]:
        """Returns the logits of a segment, and the next state."""
        family = reference_model.family_of(model_state.config)
        logits, state = family.forward(
            model_state.parameters,
            model_state.state,
            tokens,
            start_of_document,
            num_tokens,
            model_state.config,
        )
        return logits, dataclasses.replace(model_state, state=state)

    def replace_parameters(
        self, model_state: ModelState, parameters: Arrays
    ) -> ModelState:
        """Returns the state with other parameters."""
        return dataclasses.replace(model_state, parameters=self._cast_all(parameters))

    def model_gradients(
        self,
        model_state: ModelState,
        tokens: np.ndarray,
        start_of_document: np.ndarray,
        num_tokens: np.ndarray,
        targets: np.ndarray,
        num_targets: np.ndarray,
    ) -> tuple[float, Arrays]:
        """Returns the loss of a segment and its gradient."""
        return reference_model.gradients(
            model_state, tokens, start_of_document, num_tokens, targets, num_targets
        )

    def decode(
        self, model_state: ModelState, token: np.ndarray, start_of_document: np.ndarray
    ) -> tuple[np.ndarray, ModelState]:
        """Returns the logits after one more token of every row."""
        return reference_model.decode(model_state, token, start_of_document)

    def save(self, state: MemoryState | ModelState, path: pathlib.Path) -> None:
        """Writes a state to a file."""
        if isinstance(state, ModelState):
            reference_files.save(state, path)
            return
        arrays = reference_files.memory_arrays(state.memory)
        reference_files.write(arrays | {"top_k": np.array(state.top_k)}, path)

    def restore(self, path: pathlib.Path) -> MemoryState | ModelState:
        """Returns the state that was saved."""
        with np.load(path) as arrays:
            if "config" in arrays:
                return reference_files.restore(arrays)
            return MemoryState(reference_files.memory_of(arrays), int(arrays["top_k"]))

    def stream(
        self, documents: Sequence[np.ndarray], batch: int, segment_length: int
    ) -> Iterator[StreamSegment]:
        """Yields segments until every document was read once."""
        for segment in segments.stream(
            documents, batch=batch, segment_length=segment_length
        ):
            yield (
                segment.tokens,
                segment.start_of_document,
                segment.num_tokens,
                segment.targets,
                segment.num_targets,
            )

    def init_parameters(self, config: Mapping[str, Any], seed: int) -> Arrays:
        """Returns initial parameters."""
        return parameters.init(reference_model.config_of(config), seed, self.dtype)

    def evaluate(
        self,
        config: Mapping[str, Any],
        parameters: Arrays,
        documents: Sequence[np.ndarray],
        batch: int,
    ) -> tuple[float, int]:
        """Returns the perplexity and the number of predicted tokens."""
        nats, predicted = perplexity.total_loss(
            self._cast_all(parameters),
            reference_model.config_of(config),
            documents,
            batch=batch,
        )
        return perplexity.perplexity(nats, predicted), predicted

    def _cast_all(self, arrays: Arrays) -> Arrays:
        return {name: self._cast(array) for name, array in arrays.items()}


class Oracle(ReferenceImplementation):
    """The reference in float64: what float32 results are compared with."""

    name = "reference in float64"
    dtype = np.float64


class BucketedReference(ReferenceImplementation):
    """The reference with bucketed search in its memory, at 0.9 recall."""

    name = "reference, bucketed search"
    features = frozenset(
        {
            "attention",
            "bfloat16_memory",
            "bucketed_search",
            "checked_inputs",
            "long_segments",
            "save_restore",
        }
    )
    recall_target = 0.9

    def bucketing(self, memory_size: int, top_k: int) -> tuple[int, int]:
        """Returns the cheapest buckets that reach the recall target."""
        return bucketed_search.choose_buckets(self.recall_target, memory_size, top_k)

    def search(self, state: MemoryState, queries: np.ndarray) -> np.ndarray:
        """Returns the best slots among the winners of the buckets."""
        num_buckets, winners = self.bucketing(state.memory.memory_size, state.top_k)
        return bucketed_search.top_k_slots(
            self._cast(queries),
            state.memory,
            state.top_k,
            num_buckets=num_buckets,
            winners_per_bucket=winners,
        )
