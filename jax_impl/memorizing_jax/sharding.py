"""Where every array lives on a mesh of devices: one table.

The mesh has three axes. Rows of the batch, and with them their caches and memories,
are spread over `data`; the slots of each memory over `memory`; heads and the inside of
the MLP over `model`. Parameters are spread over all three, and gathered where they are
used. `RULES` says so for every array of a run; XLA's partitioner does the rest, but for
memories (`memory_shards`).
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

import jax
import tyro
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from memorizing_jax.config import ModelConfig
from memorizing_jax.errors import InputError

DATA, MEMORY, MODEL = "data", "memory", "model"
# Devices along `memory` compute the same but for their searches, so they too can keep
# a share of the parameters each.
FULLY: Final = (DATA, MEMORY)

# Each device keeps an index of its own rows, heads and slots, one after the other.
EVERY: Final = (DATA, MODEL, MEMORY)

Axis = str | tuple[str, ...] | None

# Parameters, and what the optimizer keeps of each in its shape. A name such as
# layers.0:8.query_kernel stands for several layers, stacked along an axis before.
_LIKE_PARAMETER: Final = r"(parameters|optimizer/.*/(mu|nu|ema|v))/(layers\.[\d:]+\.)?"
_INDEX: Final = r"model/memories/\d+/index/"

# A pattern of names, and the mesh axes of the array's last axes; axes before those are
# not cut. Each name matches one pattern exactly.
RULES: Final[tuple[tuple[str, tuple[Axis, ...]], ...]] = (
    (_LIKE_PARAMETER + r"embedding", (MODEL, FULLY)),
    (_LIKE_PARAMETER + r"(query|key|value)_kernel", (FULLY, MODEL, None)),
    (_LIKE_PARAMETER + r"output_kernel", (MODEL, None, FULLY)),
    (_LIKE_PARAMETER + r"mlp_in_kernel", (FULLY, MODEL)),
    (_LIKE_PARAMETER + r"mlp_out_kernel", (MODEL, FULLY)),
    (_LIKE_PARAMETER + r"(attention_scale|gate_bias)", (MODEL,)),
    (_LIKE_PARAMETER + r"relative_bias", (MODEL, None)),
    # Vectors: to gather them would take longer than to keep them.
    (_LIKE_PARAMETER + r"\w+_gain", (None,)),
    # Adafactor's means over an axis are a thousandth of what they stand for.
    (r"optimizer/.*/(v_row|v_col)/.*", ()),
    (r"(optimizer/.*/count|key|step)", ()),
    (r"segments/(tokens|targets)", (DATA, None)),
    (r"segments/(start_of_document|num_tokens|num_targets)", (DATA,)),
    (r"model/(num_cached|position|num_visible)", (DATA,)),
    (r"model/caches/\d+/(keys|values)", (DATA, None, MODEL, None)),
    (r"model/memories/\d+/(keys|values)", (DATA, MODEL, MEMORY, None)),
    (r"model/memories/\d+/num_written", (DATA,)),
    (_INDEX + r"lists/(squares|first|count)", (EVERY, None)),
    (_INDEX + r"lists/(centers|slots|scales)", (EVERY, None, None)),
    (_INDEX + r"lists/keys", (EVERY, None, None, None)),
    (_INDEX + r"list_of", (EVERY, None)),
    (_INDEX + r"stamp", ()),
)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How devices divide the work; their numbers multiply to that of all devices."""

    # The command line shows a run's settings without prefixes; these need theirs.
    data: Annotated[int, tyro.conf.arg(name="mesh.data")] = 0
    """Shards of the batch's rows; 0 for as many as the devices allow."""
    memory: Annotated[int, tyro.conf.arg(name="mesh.memory")] = 1
    """Shards of each memory's slots, for memories larger than a device."""
    model: Annotated[int, tyro.conf.arg(name="mesh.model")] = 1
    """Shards of the heads and the MLP, for models larger than a device."""

    def __post_init__(self) -> None:
        """Refuses numbers that no mesh can have."""
        for name, least in ((DATA, 0), (MEMORY, 1), (MODEL, 1)):
            if getattr(self, name) < least:
                raise InputError(
                    f"mesh.{name} is {getattr(self, name)}, must be {least} or more"
                )


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a mesh of all devices, or of those given.

    Raises:
      InputError: the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    others = config.memory * config.model
    data = config.data or max(1, len(devices) // others)
    if data * others != len(devices):
        raise InputError(
            f"a mesh of data {data}, memory {config.memory} and model {config.model} "
            f"takes {data * others} devices, and there are {len(devices)}; choose "
            "--mesh.data, --mesh.memory and --mesh.model to multiply to that"
        )
    sizes, names = (data, config.memory, config.model), (DATA, MEMORY, MODEL)
    # An axis may take 2 of 8 chips along a TPU's torus, which `jax.make_mesh` refuses.
    placed = mesh_utils.create_device_mesh(
        sizes, devices, allow_split_physical_axes=True
    )
    return Mesh(placed, names, axis_types=(AxisType.Auto,) * 3)


def check(mesh: Mesh, config: ModelConfig, batch: int) -> None:
    """Refuses sizes that do not divide over the mesh.

    Parameters may have any size: those that do not divide stay whole, which costs
    room and no time to speak of.

    Raises:
      InputError: one sentence with the size and the number of shards.
    """
    sizes = [("batch", batch, DATA)]
    sizes += [(n, getattr(config, n), MODEL) for n in ("num_heads", "mlp_dim")]
    if config.remembers:
        sizes.append(("memory_size", config.memory_size, MEMORY))
    for name, size, axis in sizes:
        if size % mesh.shape[axis]:
            raise InputError(
                f"{name} is {size}, which {mesh.shape[axis]} shards of the mesh axis "
                f"{axis} do not divide; choose a multiple, or another --mesh.{axis}"
            )
    if config.remembers and config.search == "scann" and mesh.size > 1:
        raise InputError(
            f"search is 'scann', whose index serves a single device, and the mesh has "
            f"{mesh.size}; choose another search, such as clustered"
        )


def current() -> AbstractMesh | None:
    """Returns the mesh of `jax.set_mesh`, unless it is of a single device or none."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh if mesh.size > 1 else None


def constrain(x: jax.Array, *axes: Axis) -> jax.Array:
    """Tells XLA how to divide an array that a computation makes on the way.

    Left to itself it may divide activations as it finds the parameters divided.
    """
    mesh = current()
    if mesh is None:
        return x
    dividing = (
        _dividing(axis, size, mesh) for axis, size in zip(axes, x.shape, strict=True)
    )
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*dividing))


def constrain_parameters(tree: Any) -> Any:
    """Tells XLA that arrays, such as gradients, are divided as the parameters are."""
    mesh = current()
    if mesh is None:
        return tree
    dividing = specs({"parameters": tree}, mesh)["parameters"]
    return jax.lax.with_sharding_constraint(tree, dividing)


def gathered(layer: Mapping[str, jax.Array], name: str, dtype: Any) -> jax.Array:
    """Returns a parameter as computations use it: rounded, then gathered.

    It stays divided over `model` alone.
    """
    used = layer[name].astype(dtype)
    if current() is None:
        return used
    axes = (None if axis == FULLY else axis for axis in _rule(f"parameters/{name}"))
    return constrain(used, *axes)


def shardings(tree: Any, mesh: Mesh) -> Any:
    """Returns the sharding of every leaf, in the structure of the tree.

    Args:
      tree: a `train_step.Run`, or any part of one under its name there, such as
        `{"parameters": ...}` or `{"model": state}`, or `{"segments": ...}`; of arrays
        or of shapes.
      mesh: where.

    Raises:
      LookupError: a leaf has no rule, or more than one.
    """
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs(tree, mesh))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of what every device holds whole, such as metrics."""
    return NamedSharding(mesh, PartitionSpec())


def specs(tree: Any, mesh: Mesh | AbstractMesh) -> Any:
    """Returns how the table divides every leaf, as `shardings` does."""

    def of_leaf(path: Any, leaf: Any) -> PartitionSpec:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return _spec(name, leaf.shape, mesh)

    return jax.tree_util.tree_map_with_path(of_leaf, tree)


def _rule(name: str) -> tuple[Axis, ...]:
    found = [axes for pattern, axes in RULES if re.fullmatch(pattern, name)]
    if len(found) != 1:
        raise LookupError(f"{len(found)} rules of sharding.RULES match {name!r}, not 1")
    return found[0]


def _spec(name: str, shape: Sequence[int], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    axes = _rule(name)
    if name.startswith("optimizer/") and tuple(shape[-1:]) == (1,):
        axes = ()  # optax keeps an array of one element, a layer, where it needs none.
    if len(axes) > len(shape):
        raise LookupError(f"the rule for {name!r} has more axes than {tuple(shape)}")
    whole = len(shape) - len(axes)
    dividing = (_dividing(a, n, mesh) for a, n in zip(axes, shape[whole:], strict=True))
    return PartitionSpec(*(None,) * whole, *dividing)


def _dividing(axis: Axis, size: int, mesh: Mesh | AbstractMesh) -> Axis:
    """Returns as many of the mesh axes as divide an array's axis.

    Those of a single device do not: JAX would take them for a division nonetheless.
    """
    names = (axis,) if isinstance(axis, str) else axis or ()
    names = tuple(name for name in names if mesh.shape[name] > 1)
    while names and size % math.prod(mesh.shape[name] for name in names):
        names = names[:-1]
    return (names if len(names) > 1 else names[0]) if names else None
