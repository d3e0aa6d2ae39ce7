"""One step of training as a pure function: segment in, updated run out."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from memorizing_jax import (
    accumulation,
    loss,
    model,
    optimizer,
    parameters,
    search,
    sharding,
)
from memorizing_jax.config import ModelConfig
from memorizing_jax.errors import InputError
from memorizing_jax.parameters import Parameters
from memorizing_jax.train_config import TrainConfig

# By memory layer; None unless the model's search is checked (KNN-3).
NotFinite = dict[int, search.NotFinite | None]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Segments:
    """One segment for every row, on the device (SEG-1 to SEG-4).

    Attributes:
      tokens: [batch, segment_length], padded on the right.
      targets: same shape; the token that follows each in its document.
      start_of_document: [batch]; rows whose segment opens a document.
      num_tokens: [batch]; real tokens.
      num_targets: [batch]; real targets.
    """

    tokens: jax.Array
    targets: jax.Array
    start_of_document: jax.Array
    num_tokens: jax.Array
    num_targets: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Run:
    """All that a run carries from step to step, but for its data position (CKP-1).

    Attributes:
      parameters: in the stacked layout of `parameters`.
      optimizer: the optimizer's own state.
      model: cache, memory and counters of every row.
      key: [2]; the PRNG key that the initial parameters were drawn from.
      step: []; updates made.
    """

    parameters: Parameters
    optimizer: optax.OptState
    model: model.State
    key: jax.Array
    step: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Metrics:
    """What a step measured.

    Attributes:
      nats: []; loss of all predicted tokens together.
      num_predicted: []; how many those are.
      finite_rows: [batch]; rows whose loss is finite.
      gradient_norm: []; of all gradients together, before clipping.
      learning_rate: [].
      gates: by memory layer, [num_heads]; 1 reads the memory alone (GATE-3).
      not_finite: by memory layer, what checked search refuses (KNN-3).
    """

    nats: jax.Array
    num_predicted: jax.Array
    finite_rows: jax.Array
    gradient_norm: jax.Array
    learning_rate: jax.Array
    gates: dict[int, jax.Array]
    not_finite: NotFinite


def init(config: TrainConfig, given: Parameters | None = None) -> Run:
    """Returns a run before its first step, with drawn parameters or given ones."""
    key = jax.random.key(config.seed)
    flat = parameters.init(config.model, key) if given is None else given
    initial = parameters.stack(flat, config.model)
    return Run(
        parameters=initial,
        optimizer=optimizer.init(config.optimizer, initial),
        model=model.init_state(config.model, config.batch, config.mesh.memory),
        key=jax.random.key_data(key),
        step=jnp.zeros((), jnp.int32),
    )


def loss_and_gradients(
    params: Parameters,
    state: model.State,
    segments: Segments,
    config: ModelConfig,
    parts: int = 1,
) -> tuple[tuple[jax.Array, jax.Array, model.State, NotFinite, jax.Array], Parameters]:
    """Returns the loss of one segment of every row, and its gradients.

    The gradients are those of the mean over all predicted tokens. No gradient
    leaves the segment (LOC-7, MEM-8).

    Args:
      params: in either layout of `parameters`; the gradients have the same.
      state: cache and memory before the segment.
      segments: what to read and to predict.
      config: the model's sizes.
      parts: in how many parts to read the rows, one after the other.

    Returns:
      Total nats, number of predicted tokens, the next state, what checked search
      refuses and which rows have a finite loss; and the gradients.
    """
    state = model.reset(state, segments.start_of_document)
    predicted = segments.num_targets.sum()

    def share(params: Parameters, state: model.State, segments: Segments) -> Any:
        """Returns the part of these rows in the mean, and what reading them gives."""
        found = model.read(params, state, segments.tokens, segments.num_tokens, config)
        nats, _ = loss.total(found.logits, segments.targets, segments.num_targets)
        count = jnp.maximum(predicted, 1).astype(nats.dtype)
        bad = {layer: what.not_finite for layer, what in found.retrieved.items()}
        finite = loss.finite_rows(found.logits, segments.targets, segments.num_targets)
        return nats / count, (nats, found.caches, found.pairs, bad, finite)

    def of_rows(state: model.State, segments: Segments) -> Any:
        (_, (nats, *rest)), gradients = jax.value_and_grad(share, has_aux=True)(
            params, state, segments
        )
        return (nats, sharding.constrain_parameters(gradients)), rest

    if parts == 1:
        (nats, gradients), (caches, pairs, bad, finite) = of_rows(state, segments)
    else:
        (nats, gradients), (caches, pairs, bad, finite) = accumulation.accumulate(
            of_rows, parts, state, segments
        )
        caches, pairs, finite = accumulation.joined((caches, pairs, finite))
    after = model.insert(state, caches, pairs, segments.num_tokens, config)
    return (nats, predicted, after, bad, finite), gradients


def train_step(
    run: Run, segments: Segments, config: TrainConfig
) -> tuple[Run, Metrics]:
    """Reads one segment of every row and updates the parameters."""
    measured, gradients = loss_and_gradients(
        run.parameters, run.model, segments, config.model, config.accumulation
    )
    nats, predicted, new_state, not_finite, finite_rows = measured
    updated, optimizer_state = optimizer.update(
        config.optimizer, gradients, run.optimizer, run.parameters
    )
    metrics = Metrics(
        nats=nats,
        num_predicted=predicted,
        finite_rows=finite_rows,
        gradient_norm=optax.tree.norm(gradients),
        learning_rate=optimizer.learning_rate(config.optimizer, run.step),
        gates={
            layer: jax.nn.sigmoid(run.parameters[f"layers.{layer}.gate_bias"])
            for layer in config.model.memory_layers
        },
        not_finite=not_finite,
    )
    new_run = Run(
        parameters=updated,
        optimizer=optimizer_state,
        model=new_state,
        key=run.key,
        step=run.step + 1,
    )
    return new_run, metrics


def jitted(config: TrainConfig, mesh: Mesh) -> jax.stages.Wrapped:
    """Returns the step for a mesh, to be called under `jax.set_mesh(mesh)`.

    `run` is donated, and what comes back is divided as it was.

    Raises:
      InputError: the rows of a part do not divide over the mesh.
    """
    rows, shards = config.batch // config.accumulation, mesh.shape[sharding.DATA]
    if rows % shards:
        raise InputError(
            f"a batch of {config.batch} rows in {config.accumulation} parts "
            f"(accumulation) has {rows} rows a part, which {shards} shards of the mesh "
            "axis data do not divide; choose a larger batch, or fewer parts or shards"
        )
    shapes = jax.eval_shape(functools.partial(init, config))
    run = sharding.shardings(shapes, mesh)
    segments = {"segments": jax.eval_shape(functools.partial(no_segments, config))}
    return jax.jit(
        functools.partial(train_step, config=config),
        in_shardings=(run, sharding.shardings(segments, mesh)["segments"]),
        out_shardings=(run, sharding.replicated(mesh)),
        donate_argnums=0,
    )


def no_segments(config: TrainConfig) -> Segments:
    """Returns rows without a token, of the shapes that every step takes."""
    of_row = jnp.zeros(config.batch, jnp.int32)
    tokens = jnp.zeros((config.batch, config.model.segment_length), jnp.int32)
    return Segments(tokens, tokens, of_row > 0, of_row, of_row)


# Donated, so that memory and parameters are updated where they are.
train_step_jit = jax.jit(train_step, static_argnames="config", donate_argnames="run")
