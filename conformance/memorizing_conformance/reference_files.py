"""Files of the reference's states: what its adapter saves and restores (CKP-1)."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from memorizing_conformance import reference_model
from memorizing_conformance.implementation import Arrays
from memorizing_conformance.reference_model import ModelState
from memorizing_reference.cache import Cache
from memorizing_reference.config import PretrainedConfig
from memorizing_reference.local_context import Sinks
from memorizing_reference.memory import Memory


def memory_arrays(memory: Memory, prefix: str = "memory") -> Arrays:
    """Returns a memory as arrays for a file."""
    return {
        f"{prefix}.keys": memory.keys,
        f"{prefix}.values": memory.values,
        f"{prefix}.num_written": memory.num_written,
        f"{prefix}.dtype": np.array(memory.dtype),
    }


def memory_of(arrays: Mapping[str, np.ndarray], prefix: str = "memory") -> Memory:
    """Returns the memory that `memory_arrays` took apart."""
    dtype: Any = str(arrays[f"{prefix}.dtype"])
    return Memory(
        arrays[f"{prefix}.keys"],
        arrays[f"{prefix}.values"],
        arrays[f"{prefix}.num_written"],
        dtype,
    )


def save(model_state: ModelState, path: pathlib.Path) -> None:
    """Writes a model with everything it carries."""
    config = dataclasses.asdict(model_state.config)
    if isinstance(model_state.config, PretrainedConfig):
        config["family"] = "llama"
    arrays: Arrays = {
        "config": np.array(json.dumps(config)),
        "tokens": model_state.tokens,
        "num_decoded": model_state.num_decoded,
        "starts": model_state.starts,
    }
    for name, array in model_state.parameters.items():
        arrays[f"parameters.{name}"] = array
    for i, cache in enumerate(model_state.state.caches):
        for field in dataclasses.fields(cache):
            arrays[f"caches.{i}.{field.name}"] = getattr(cache, field.name)
    for i, sinks in enumerate(vars(model_state.state).get("sinks", ())):
        for field in dataclasses.fields(sinks):
            arrays[f"sinks.{i}.{field.name}"] = getattr(sinks, field.name)
    for i, memory in model_state.state.memories.items():
        arrays |= memory_arrays(memory, f"memories.{i}")
    write(arrays, path)


def write(arrays: Arrays, path: pathlib.Path) -> None:
    """Writes arrays to a file of exactly this name."""
    with path.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def restore(arrays: Mapping[str, np.ndarray]) -> ModelState:
    """Returns the model that `save` wrote."""
    config = reference_model.config_of(json.loads(str(arrays["config"])))

    def parts(name: str, kind: Any) -> tuple[Any, ...]:
        fields = [field.name for field in dataclasses.fields(kind)]
        return tuple(
            kind(*(arrays[f"{name}.{i}.{field}"] for field in fields))
            for i in range(config.num_layers)
        )

    carried: dict[str, Any] = {
        "caches": parts("caches", Cache),
        "memories": {
            i: memory_of(arrays, f"memories.{i}") for i in config.memory_layers
        },
    }
    if isinstance(config, PretrainedConfig):
        carried["sinks"] = parts("sinks", Sinks)
    prefix = "parameters."
    return ModelState(
        config=config,
        parameters={
            name.removeprefix(prefix): arrays[name]
            for name in arrays
            if name.startswith(prefix)
        },
        state=reference_model.family_of(config).State(**carried),
        tokens=arrays["tokens"],
        num_decoded=arrays["num_decoded"],
        starts=arrays["starts"],
    )
