"""What a training step would need and cost on a TPU slice, by the TPU's own compiler.

The step is the one that `train` runs, lowered for the slice and compiled on a machine
without a TPU. Nothing is run, so what depends on the data is not known.
"""

import dataclasses
import functools
import math
import re
from typing import Any, Final

import jax
from jax.sharding import Mesh

from memorizing_jax import chips, program_costs, sharding, tpu_compiler, train_step
from memorizing_jax.train_config import TrainConfig
from memorizing_jax.train_step import Run

# What the compiler says of a program too large for a chip.
_TOO_LARGE: Final = "RESOURCE_EXHAUSTED"
_UNITS: Final = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one step is on one slice; bytes and costs are those of each chip.

    Attributes:
      chips: of the slice.
      mesh: shards along `data`, `memory` and `model`.
      tokens: that one step reads, on all chips together.
      parameters: bytes.
      optimizer: bytes of its state.
      memory: bytes of keys, values and counters.
      cache: bytes of the local caches.
      temporaries: bytes of activations, gradients and all else that comes and goes;
        None if the compiler stopped before it knew.
      program: bytes of the instructions.
      capacity: bytes of a chip's large memory.
      fits: whether the compiler found room for all of it.
      reason: why not, in the compiler's words.
      operations: floating-point operations of the products, counted in the jaxpr.
      bytes_moved: to and from the large memory.
      compute_seconds: the compiler's estimate for what it fused, collectives left out.
      roofline_seconds: at the chip's public peaks, the larger of operations and bytes.
      collectives: by kind, how many and how many bytes a chip receives.
      in_place: whether memories are handed from step to step without a copy.
    """

    chips: int
    mesh: tuple[int, int, int]
    tokens: int
    parameters: int
    optimizer: int
    memory: int
    cache: int
    temporaries: int | None
    program: int
    capacity: int
    fits: bool
    reason: str
    operations: int
    bytes_moved: int
    compute_seconds: float | None
    roofline_seconds: float
    collectives: dict[str, tuple[int, int]]
    in_place: bool

    @property
    def total(self) -> int | None:
        """Bytes of each chip together, if all are known."""
        if self.temporaries is None:
            return None
        held = self.parameters + self.optimizer + self.memory + self.cache
        return held + self.temporaries + self.program


def make(config: TrainConfig, topology: str, quick: bool = False) -> Plan:
    """Compiles a step for a slice and reads what it needs off the program.

    Args:
      config: the run's settings. Where its mesh says nothing and there are more chips
        than rows, heads are spread over the rest.
      topology: the slice, such as `v5p:2x2x4`.
      quick: whether the compiler makes the least effort.

    Raises:
      InputError: there is no such slice, libtpu is missing, or the settings do not
        divide over it.
    """
    chip = chips.of_topology(topology)
    devices = tpu_compiler.devices(topology)
    config = spread(config, len(devices))
    mesh = sharding.make_mesh(config.mesh, devices)
    sharding.check(mesh, config.model, config.batch)
    run = jax.eval_shape(functools.partial(train_step.init, config))
    traced = trace(config, run, mesh)
    held = _held(run, mesh)
    common: dict[str, Any] = {
        "chips": len(devices),
        "mesh": tuple(mesh.shape.values()),
        "tokens": config.batch * config.model.segment_length,
        "capacity": chip.capacity,
        "operations": _operations(traced.jaxpr.jaxpr) // len(devices),
        **held,
    }
    try:
        compiled = tpu_compiler.compiled(traced.lower(), quick)
    except jax.errors.JaxRuntimeError as error:
        if _TOO_LARGE not in str(error):
            raise
        return Plan(
            **common,
            temporaries=_needed(str(error)),
            program=0,
            fits=False,
            reason=str(error).partition(": ")[2].partition("\n")[0],
            bytes_moved=0,
            compute_seconds=None,
            roofline_seconds=common["operations"] / chip.peak,
            collectives={},
            in_place=False,
        )
    text, analysis = compiled.as_text(), compiled.memory_analysis()
    assert text is not None  # The TPU compiler has both.
    assert analysis is not None
    found = program_costs.costs(text)
    operations_seconds = common["operations"] / chip.peak
    return Plan(
        **common,
        temporaries=analysis.temp_size_in_bytes,
        program=analysis.generated_code_size_in_bytes,
        fits=True,
        reason="",
        bytes_moved=found.bytes_moved,
        compute_seconds=found.cycles / chip.clock if found.cycles else None,
        roofline_seconds=max(operations_seconds, found.bytes_moved / chip.bandwidth),
        collectives=found.collectives,
        in_place=analysis.alias_size_in_bytes >= sum(held.values()) * 0.99,
    )


def trace(config: TrainConfig, run: Run, mesh: Mesh) -> jax.stages.Traced:
    """Returns the step that `train` runs, for the devices of a mesh."""
    segments = jax.eval_shape(functools.partial(train_step.no_segments, config))
    with jax.set_mesh(mesh):
        return train_step.jitted(config, mesh).trace(run, segments)


def spread(config: TrainConfig, num_devices: int) -> TrainConfig:
    """Returns the settings with heads spread over chips that no row is left for."""
    rows = config.batch // config.accumulation
    if config.mesh != sharding.MeshConfig() or num_devices <= rows:
        return config
    mesh = sharding.MeshConfig(data=rows, model=num_devices // rows)
    return dataclasses.replace(config, mesh=mesh)


def _held(run: Run, mesh: Mesh) -> dict[str, int]:
    """Returns the bytes of a chip's share of each part of a run."""
    placed = sharding.shardings(run, mesh)

    def share(arrays: Any, placed: Any) -> int:
        leaves = zip(jax.tree.leaves(arrays), jax.tree.leaves(placed), strict=True)
        return sum(
            math.prod(where.shard_shape(x.shape)) * x.dtype.itemsize
            for x, where in leaves
        )

    return {
        "parameters": share(run.parameters, placed.parameters),
        "optimizer": share(run.optimizer, placed.optimizer),
        "memory": share(run.model.memories, placed.model.memories),
        "cache": share(run.model.caches, placed.model.caches),
    }


def _needed(message: str) -> int | None:
    """Returns the bytes of temporaries that the compiler asked for in vain."""
    found = re.search(r"HLO temporaries \(([\d.]+)([KMGT])\)", message)
    return found and int(float(found[1]) * _UNITS[found[2]])


def _turns(loop: Any) -> int:
    """Returns how often a `fori_loop` turns; 1 where that is not written down."""
    constants = loop.params["cond_nconsts"] + loop.params["body_nconsts"]
    bounds = loop.invars[constants : constants + 2]
    if not all(hasattr(bound, "val") for bound in bounds):
        return 1
    return int(bounds[1].val) - int(bounds[0].val)


def _operations(jaxpr: Any) -> int:
    """Returns the floating-point operations of all products, on all chips."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            made = math.prod(equation.outvars[0].aval.shape)
            total += 2 * made * math.prod(left[axis] for axis in contracted)
            continue
        if equation.primitive.name == "cond":  # One of them, such as a platform's.
            branches = equation.params["branches"]
            total += max(_operations(branch.jaxpr) for branch in branches)
            continue
        times = equation.params.get("length", 1)
        if equation.primitive.name == "while":
            times = _turns(equation)
        if equation.primitive.name == "shard_map":
            # What stands inside is what one device does.
            times = equation.params["mesh"].size
        inner = jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        )
        nested = [getattr(x, "jaxpr", x) for x in inner]
        total += times * sum(_operations(x) for x in nested if hasattr(x, "eqns"))
    return total
