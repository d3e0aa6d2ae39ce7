"""The whole model, as the conformance suite sees it: the other half of `adapter`."""

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from memorizing_data.row_reader import RowReader
from memorizing_data.token_files import Document, TokenFiles
from memorizing_jax import (
    decode,
    evaluate,
    families,
    memory,
    model,
    parameters,
    train_step,
)
from memorizing_jax.config import ModelConfig, SearchEngine
from memorizing_jax.train_config import model_from_json, model_to_json
from memorizing_jax.train_step import Segments

FEATURES = frozenset(
    {
        "model",
        "pretrained",
        "replace_parameters",
        "model_gradients",
        "generation",
        "save_restore",
        "segments",
        "parameters",
        "evaluation",
    }
)
Arrays = Mapping[str, np.ndarray]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MemoryState:
    """One memory, and how many neighbors its searches return."""

    memory: memory.Memory
    top_k: int = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ModelState:
    """A model between two segments or, once it decodes, between two tokens."""

    params: parameters.Parameters
    state: model.State | decode.DecodeState
    config: ModelConfig = dataclasses.field(metadata={"static": True})


class ModelMethods:
    """What an adapter offers beyond one memory layer."""

    engine: SearchEngine
    recall_target: float

    def init_model(
        self, config: Mapping[str, Any], parameters: Arrays, batch: int
    ) -> ModelState:
        """Returns the state before the first segment."""
        sizes = self._config(config)
        state = families.of(sizes).init_state(sizes, batch)
        return ModelState(_on_device(parameters, sizes), state, sizes)

    def forward(
        self,
        model_state: ModelState,
        tokens: np.ndarray,
        start_of_document: np.ndarray,
        num_tokens: np.ndarray,
    ) -> tuple[np.ndarray, ModelState]:
        """Returns the logits of a segment, and the next state."""
        logits, state = _forward(
            model_state.state,
            model_state.params,
            _ints(tokens),
            jnp.asarray(start_of_document),
            _ints(num_tokens),
            model_state.config,
        )
        return np.asarray(logits), dataclasses.replace(model_state, state=state)

    def replace_parameters(
        self, model_state: ModelState, parameters: Arrays
    ) -> ModelState:
        """Returns the state with other parameters."""
        params = _on_device(parameters, model_state.config)
        return dataclasses.replace(model_state, params=params)

    def model_gradients(
        self,
        model_state: ModelState,
        tokens: np.ndarray,
        start_of_document: np.ndarray,
        num_tokens: np.ndarray,
        targets: np.ndarray,
        num_targets: np.ndarray,
    ) -> tuple[float, dict[str, np.ndarray]]:
        """Returns the loss of a segment and its gradient, as training computes them."""
        segments = Segments(
            tokens=_ints(tokens),
            targets=_ints(targets),
            start_of_document=jnp.asarray(start_of_document),
            num_tokens=_ints(num_tokens),
            num_targets=_ints(num_targets),
        )
        (nats, predicted, *_), gradients = _loss_and_gradients(
            model_state.params, model_state.state, segments, model_state.config
        )
        # Training takes the mean over predicted tokens; the suite asks for the sum.
        of_sum = {name: np.asarray(g * predicted) for name, g in gradients.items()}
        return float(nats), of_sum

    def decode(
        self, model_state: ModelState, token: np.ndarray, start_of_document: np.ndarray
    ) -> tuple[np.ndarray, ModelState]:
        """Returns the logits after one more token of every row."""
        state = model_state.state
        if isinstance(state, model.State):
            family = families.of(model_state.config)
            state = family.from_segments(state, model_state.config)
        logits, state = _decode(
            model_state.params,
            state,
            _ints(token),
            jnp.asarray(start_of_document),
            model_state.config,
        )
        return np.asarray(logits), dataclasses.replace(model_state, state=state)

    def save(self, state: MemoryState | ModelState, path: Path) -> None:
        """Writes a state to a folder."""
        leaves = jax.tree_util.tree_leaves_with_path(state)
        arrays = {jax.tree_util.keystr(where): leaf for where, leaf in leaves}
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save((path / "arrays").absolute(), arrays)
        settings: dict[str, Any]
        if isinstance(state, ModelState):
            decodes = isinstance(state.state, decode.DecodeState)
            batch = jax.tree.leaves(state.state)[0].shape[0]
            settings = {
                "config": model_to_json(state.config),
                "batch": batch,
                "decodes": decodes,
            }
        else:
            keys = state.memory.keys
            batch, heads, size, dim = keys.shape
            settings = {
                "batch": batch,
                "memory_size": size,
                "num_heads": heads,
                "head_dim": dim,
                "top_k": state.top_k,
                "memory_dtype": str(keys.dtype),
                "engine": self.engine,
            }
        (path / "settings.json").write_text(json.dumps(settings))

    def restore(self, path: Path) -> MemoryState | ModelState:
        """Returns the state that was saved."""
        settings = json.loads((path / "settings.json").read_text())
        like = jax.eval_shape(lambda: _state_of(settings))
        leaves = jax.tree_util.tree_leaves_with_path(like)
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        wanted = {
            jax.tree_util.keystr(where): jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=device
            )
            for where, leaf in leaves
        }
        with ocp.StandardCheckpointer() as checkpointer:
            arrays = checkpointer.restore((path / "arrays").absolute(), wanted)
        return jax.tree.unflatten(
            jax.tree.structure(like), list(map(arrays.get, wanted))
        )

    def init_parameters(
        self, config: Mapping[str, Any], seed: int
    ) -> dict[str, np.ndarray]:
        """Returns initial parameters."""
        drawn = parameters.init(self._config(config), jax.random.key(seed))
        return {name: np.asarray(array) for name, array in drawn.items()}

    def evaluate(
        self,
        config: Mapping[str, Any],
        parameters: Arrays,
        documents: Sequence[np.ndarray],
        batch: int,
    ) -> tuple[float, int]:
        """Returns the perplexity and the number of predicted tokens."""
        sizes = self._config(config)
        files = _token_files(documents, sizes.vocab_size)
        found = evaluate.evaluate(_on_device(parameters, sizes), sizes, files, batch)
        return found.perplexity, found.num_predicted

    def _config(self, config: Mapping[str, Any]) -> ModelConfig:
        layers = tuple(config["memory_layers"])
        search: dict[str, Any] = {
            "search": self.engine,
            "recall_target": self.recall_target,
        }
        settings = {**config, **search, "memory_layers": list(layers)}
        if config.get("family") == "llama":
            # The suite knows no limit of positions.
            settings["max_positions"] = 2**31 - 1
        return model_from_json(settings)


def stream(
    documents: Sequence[np.ndarray], batch: int, segment_length: int
) -> Iterator[tuple[np.ndarray, ...]]:
    """Yields the rows' segments, as evaluation reads them."""
    files = _token_files(documents, vocab_size=2**31 - 1)
    for read in RowReader(
        files, batch=batch, segment_length=segment_length, seed=None, repeat=False
    ):
        yield (
            read.tokens,
            read.start_of_document,
            read.num_tokens,
            read.targets,
            read.num_targets,
        )


def _token_files(documents: Sequence[np.ndarray], vocab_size: int) -> TokenFiles:
    """Returns documents in memory, in the form that the row reader takes."""
    lengths = [len(document) for document in documents]
    starts = np.cumsum([0, *lengths])
    described = [
        Document(name=str(i), start=int(starts[i]), num_tokens=length, num_bytes=0)
        for i, length in enumerate(lengths)
        if length
    ]
    return TokenFiles(
        directory=Path(),
        split="test",
        vocab_size=vocab_size,
        fingerprint="",
        documents=tuple(described),
        tokenizer={},
        mapped=np.concatenate([np.asarray(d, np.int32) for d in documents]),
    )


def _state_of(settings: Mapping[str, Any]) -> MemoryState | ModelState:
    """Returns an empty state of the saved sizes."""
    if "config" not in settings:
        empty = memory.empty(
            settings["batch"],
            settings["memory_size"],
            settings["num_heads"],
            settings["head_dim"],
            settings["memory_dtype"],
            settings["engine"],
        )
        return MemoryState(empty, settings["top_k"])
    config = model_from_json(settings["config"])
    params = parameters.init(config, jax.random.key(0))
    family = families.of(config)
    init = family.init_decode_state if settings["decodes"] else family.init_state
    return ModelState(params, init(config, settings["batch"]), config)


def _on_device(arrays: Arrays, config: ModelConfig) -> parameters.Parameters:
    parameters.check(arrays, config)
    return {name: jnp.asarray(array, jnp.float32) for name, array in arrays.items()}


def _ints(array: np.ndarray) -> jax.Array:
    return jnp.asarray(array, jnp.int32)


@functools.partial(jax.jit, static_argnums=5, donate_argnums=0)
def _forward(
    state: model.State,
    params: parameters.Parameters,
    tokens: jax.Array,
    start_of_document: jax.Array,
    num_tokens: jax.Array,
    config: ModelConfig,
) -> tuple[jax.Array, model.State]:
    logits, state, _ = families.of(config).forward(
        params, state, tokens, start_of_document, num_tokens, config
    )
    return logits, state


_loss_and_gradients = jax.jit(train_step.loss_and_gradients, static_argnums=3)


@functools.partial(jax.jit, static_argnums=4)
def _decode(
    params: parameters.Parameters,
    state: decode.DecodeState,
    token: jax.Array,
    start_of_document: jax.Array,
    config: ModelConfig,
) -> tuple[jax.Array, decode.DecodeState]:
    step = families.of(config).decode_step
    logits, state = step(params, state, token, start_of_document, config)
    return logits, state
