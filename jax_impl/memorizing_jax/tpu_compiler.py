"""The TPU compiler, for TPUs that are not there.

libtpu compiles for any TPU on a machine that has none, so a CPU can tell whether a
kernel is accepted, what a program will hold and which arrays are written in place.
Such a program cannot run here.
"""

import importlib.util
import os
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Sharding, SingleDeviceSharding

from memorizing_jax.errors import InputError

# What libtpu otherwise asks the network or a lock file about, in the wrong place: there
# is no TPU, and several processes may compile at once.
_ALONE = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_LOG_DIR": "disabled",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


def devices(topology: str) -> list[jax.Device]:
    """Returns the devices of a TPU slice, for programs to be compiled for.

    Args:
      topology: the kind of TPU and how its chips are laid out, "v5e:2x2" or
        "v5p:2x2x4". One host has four chips of v4, v5p, v5e and v6e.

    Raises:
      InputError: libtpu is not installed, or knows no such slice.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise InputError(
            "compiling for TPU needs libtpu; install the extra `tpu`: "
            "pip install 'memorizing-transformers[tpu]' (Linux on x86-64)"
        )
    # On import, JAX itself sets this one where it finds no TPU.
    if "TPU_SKIP_MDS_QUERY" in os.environ:
        for name, value in _ALONE.items():
            os.environ.setdefault(name, value)
    # A chip is one device: the two cores of a v4 work as one, as they do when it runs.
    options = {"chip_config_name": "megacore"} if topology.startswith("v4") else {}
    try:
        found = topologies.get_topology_desc(topology, platform="tpu", **options)
        return list(found.devices)
    except jax.errors.JaxRuntimeError as error:
        raise InputError(
            f"the TPU compiler knows no topology {topology!r}, expected one like "
            f"'v5e:2x2', 'v6e:16x16', 'v4:2x2x1' or 'v5p:2x2x4': {error}"
        ) from error


def placed(arrays: Any, sharding: Sharding) -> Any:
    """Returns the shapes of a pytree of arrays, to be lowered for other devices."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), arrays
    )


def one_device(topology: str = "v5e:2x2") -> Sharding:
    """Returns the placement of whole arrays on the first device of a slice.

    Raises:
      InputError: as `devices`.
    """
    return SingleDeviceSharding(devices(topology)[0])


def compiled(lowered: jax.stages.Lowered, quick: bool = False) -> jax.stages.Compiled:
    """Compiles a program that was lowered for such devices.

    It is not kept among the compiled programs (`jax_compilation_cache_dir`): JAX would
    find it there the next time, and cannot read it without its device.

    Args:
      lowered: the program.
      quick: whether the compiler makes the least effort, a tenth of the time for a
        large step: a program that could run, but a slower one.
    """
    settings = {
        "jax_persistent_cache_min_compile_time_secs": float("inf"),
        "jax_exec_time_optimization_effort": -1.0 if quick else 0.0,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    try:
        return lowered.compile()
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
