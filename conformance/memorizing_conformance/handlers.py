"""What is done with the inputs of a golden vector: one function per handler.

The generator lets the reference do it, the suite the implementation under test.
Each takes the settings and arrays of a case, and returns results by name.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from memorizing_conformance.implementation import Arrays

Settings = Mapping[str, Any]
# Handler: its level, and the features that it needs.
NEEDS: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "memory": ("search", ()),
    "local": ("attention", ("attention",)),
    "gate": ("attention", ("attention",)),
    "layer_gradients": ("gradients", ("attention", "gradients", "exact_search")),
    "model": ("model", ("model", "exact_search")),
    "decode": ("generation", ("generation", "model", "exact_search")),
    "segments": ("model", ("segments",)),
    "perplexity": ("resume", ("evaluation",)),
    "parameters": ("model", ("parameters",)),
}


def needs(content: Mapping[str, Any]) -> list[str]:
    """Returns the features that a case needs, by its case.json."""
    handler, settings = content["handler"], content["settings"]
    found = list(NEEDS[handler][1])
    if "memory_output" in content["by_hand"]:
        found.append("attention")
    if handler == "memory":
        search = "bucketed_search" if "bucketing" in settings else "exact_search"
        found.append(search)
    if settings.get("config", {}).get("family") == "llama":
        found.append("pretrained")
    if settings.get("memory_dtype") == "bfloat16":
        found.append("bfloat16_memory")
    if "refused" in settings:
        found.append("checked_inputs")
    if "replace_before" in settings:
        found.append("replace_parameters")
    if settings.get("long_segments"):
        found.append("long_segments")
    return found


def memory(implementation: Any, settings: Settings, arrays: Arrays) -> Arrays:
    """Reset, search, attend, insert, segment by segment."""
    dtype = settings.get("memory_dtype", "float32")
    state = implementation.init(**settings["sizes"], memory_dtype=dtype)
    attends = "attention" in implementation.features
    slots, output = [], []
    for step, queries in enumerate(arrays["queries"]):
        state = implementation.reset(state, arrays["start_of_document"][step])
        slots.append(np.array(implementation.search(state, queries)))
        if attends:
            scale = arrays["attention_scale"]
            read = implementation.attend_memory(state, queries, scale)
            output.append(np.array(read))
        state = implementation.insert(
            state,
            arrays["keys"][step],
            arrays["values"][step],
            arrays["num_tokens"][step],
        )
    found = {"slots": np.stack(slots)}
    return found | {"memory_output": np.stack(output)} if attends else found


def local(implementation: Any, settings: Settings, arrays: Arrays) -> Arrays:
    """Local attention."""
    window = settings["local_window"]
    return {"local_output": implementation.attend_local(local_window=window, **arrays)}


def gate(implementation: Any, _settings: Settings, arrays: Arrays) -> Arrays:
    """The gated sum."""
    return {"output": implementation.combine(**arrays)}


def layer_gradients(implementation: Any, settings: Settings, arrays: Arrays) -> Arrays:
    """One insertion, then the gradients of a memory layer."""
    rest = dict(arrays)
    pairs = [rest.pop(name) for name in ("keys", "values", "num_tokens")]
    state = implementation.insert(implementation.init(**settings["sizes"]), *pairs)
    window = settings["local_window"]
    found = implementation.memory_layer_gradients(state, local_window=window, **rest)
    wanted = set(rest) - {"cotangent", "num_cached"}
    return {f"{name}_gradient": found[name] for name in sorted(wanted)}


def model(implementation: Any, settings: Settings, arrays: Arrays) -> Arrays:
    """The model over a stream; logits are zero where a row is padded."""
    inputs = [arrays[name] for name in ("tokens", "start_of_document", "num_tokens")]
    state = implementation.init_model(
        settings["config"], _parameters(arrays, "parameters."), inputs[0].shape[1]
    )
    logits = []
    for step, segment in enumerate(zip(*inputs, strict=True)):
        if step == settings.get("replace_before"):
            later = _parameters(arrays, "later_parameters.")
            state = implementation.replace_parameters(state, later)
        found, state = implementation.forward(state, *segment)
        real = np.arange(found.shape[1])[None, :] < segment[2][:, None]
        logits.append(np.where(real[..., None], np.asarray(found), 0))
    return {"logits": np.stack(logits)}


def decode(implementation: Any, settings: Settings, arrays: Arrays) -> Arrays:
    """The model token by token."""
    tokens, starts = arrays["tokens"], arrays["start_of_document"]
    parameters = _parameters(arrays, "parameters.")
    state = implementation.init_model(settings["config"], parameters, len(tokens))
    logits = []
    for token, start in zip(tokens.T, starts.T, strict=True):
        found, state = implementation.decode(state, token, start)
        logits.append(np.array(found))
    return {"logits": np.stack(logits, axis=1)}


def segments(implementation: Any, settings: Settings, arrays: Arrays) -> Arrays:
    """Documents in one row of segments; targets beyond num_targets are zero."""
    found = [
        [np.asarray(part)[0] for part in segment]
        for segment in implementation.stream(
            _documents(arrays), 1, settings["segment_length"]
        )
    ]
    names = ("tokens", "start_of_document", "num_tokens", "targets", "num_targets")
    result = {
        name: np.stack([segment[i] for segment in found])
        for i, name in enumerate(names)
    }
    position = np.arange(settings["segment_length"])[None, :]
    for name, count in (("tokens", "num_tokens"), ("targets", "num_targets")):
        result[name] = np.where(position < result[count][:, None], result[name], 0)
    return result


def perplexity(implementation: Any, settings: Settings, arrays: Arrays) -> Arrays:
    """The evaluation of whole documents."""
    found, num_predicted = implementation.evaluate(
        settings["config"], _parameters(arrays, "parameters."), _documents(arrays), 2
    )
    return {
        "nats_per_token": np.log(np.array(found)),
        "num_predicted": np.array(num_predicted),
    }


def parameters(implementation: Any, settings: Settings, _arrays: Arrays) -> Arrays:
    """The shapes of initial parameters, by name."""
    found = implementation.init_parameters(settings["config"], 0)
    return {name: np.array(np.shape(array)) for name, array in found.items()}


def _parameters(arrays: Arrays, prefix: str) -> Arrays:
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }


def _documents(arrays: Arrays) -> list[np.ndarray]:
    return np.split(arrays["documents"], np.cumsum(arrays["lengths"])[:-1])


HANDLERS: Final[Mapping[str, Callable[[Any, Settings, Arrays], Arrays]]] = {
    "memory": memory,
    "local": local,
    "gate": gate,
    "layer_gradients": layer_gradients,
    "model": model,
    "decode": decode,
    "segments": segments,
    "perplexity": perplexity,
    "parameters": parameters,
}
