"""How a run begins: with drawn parameters, given ones, or a checkpoint of any mesh."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from memorizing_jax import memory_layout, sharding, train_step
from memorizing_jax.checkpoint import Checkpoints
from memorizing_jax.parameters import Parameters
from memorizing_jax.train_config import TrainConfig
from memorizing_jax.train_step import Run


def first(
    config: TrainConfig,
    mesh: Mesh,
    checkpoints: Checkpoints,
    step: int | None,
    given: Parameters | None,
) -> tuple[Run, dict[str, Any] | None, list[dict[str, Any]]]:
    """Returns a run on `mesh`, from a checkpoint if there is one.

    Args:
      config: settings of the run.
      mesh: that of `jax.set_mesh`.
      checkpoints: of the run; those after the one taken are removed.
      step: which to take; the newest if None.
      given: parameters for a run that has none yet; None to draw them.

    Returns:
      The run, the position of its reader (None at the beginning), and its measured
      steps that wait for a line.

    Raises:
      InputError: there is no such checkpoint, it is damaged, or its memories cannot
        serve this mesh.
    """
    begin = functools.partial(train_step.init, config)
    like = jax.eval_shape(begin)
    where = sharding.shardings(like, mesh)
    if step is None and not checkpoints.steps():
        # On the host: what lies on a device of this process is not for the others.
        given = jax.tree.map(np.asarray, given)
        return jax.jit(begin, out_shardings=where)(given=given), None, []
    before, now = checkpoints.record(step)["mesh"], dict(mesh.shape)
    memory_layout.check(config.model.search, before, now)
    placed = jax.tree.map(
        lambda array, place: jax.ShapeDtypeStruct(
            array.shape, array.dtype, sharding=place
        ),
        like,
        where,
    )
    run, record = checkpoints.restore(step, like=placed)
    memories = memory_layout.moved(
        run.model.memories, before, now, where.model.memories
    )
    model = dataclasses.replace(run.model, memories=memories)
    checkpoints.drop_after(int(run.step))
    run = dataclasses.replace(run, model=model)
    return run, record["position"], record["pending"]
