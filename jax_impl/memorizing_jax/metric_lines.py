"""Lines of metrics: what the steps measured, as JSON objects."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memorizing_jax.errors import InputError
from memorizing_jax.memory_metrics import MemoryMetrics
from memorizing_jax.train_step import Metrics


def mean_line(steps: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the line for some consecutive steps.

    Args:
      steps: each with `step`, `nats`, `num_predicted`, `gradient_norm`,
        `learning_rate` and `gates`, and some with `memory`.

    Returns:
      The last step's number, learning rate and gates, the loss in nats per
      predicted token over all steps and its exponential, the mean gradient norm,
      and `memory` of the last step that has it.
    """
    predicted = sum(step["num_predicted"] for step in steps)
    loss = sum(step["nats"] for step in steps) / max(predicted, 1)
    sampled = [step for step in steps if "memory" in step]
    return {
        "step": steps[-1]["step"],
        "loss": loss,
        # The exponential of more is no number for JSON.
        "perplexity": math.exp(min(loss, 700.0)),
        "num_predicted": predicted,
        "gradient_norm": sum(step["gradient_norm"] for step in steps) / len(steps),
        "learning_rate": steps[-1]["learning_rate"],
        "gates": steps[-1]["gates"],
        **({"memory": sampled[-1]["memory"]} if sampled else {}),
    }


def to_json(
    step: int, fetched: Metrics, memory: dict[int, MemoryMetrics] | None = None
) -> dict[str, Any]:
    """Returns what a step measured, as `mean_line` takes it and JSON can hold it."""
    return {
        "step": step,
        "nats": float(fetched.nats),
        "num_predicted": int(fetched.num_predicted),
        "gradient_norm": float(fetched.gradient_norm),
        "learning_rate": float(fetched.learning_rate),
        "gates": {str(layer): gate.tolist() for layer, gate in fetched.gates.items()},
        **({} if memory is None else {"memory": _memory_to_json(memory)}),
    }


def _memory_to_json(memory: dict[int, MemoryMetrics]) -> dict[str, Any]:
    """Returns name, then layer, then value; None for what is not a number."""
    return {
        field.name: {
            str(layer): _finite_or_none(getattr(measured, field.name).tolist())
            for layer, measured in memory.items()
        }
        for field in dataclasses.fields(MemoryMetrics)
    }


def _finite_or_none(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite_or_none(inner) for inner in value]
    return value if math.isfinite(value) else None


def shown(line: dict[str, Any]) -> dict[str, str]:
    """Returns what of a line goes behind the progress bar."""
    result = {
        "loss": f"{line['loss']:.4f}",
        "tokens/s": f"{line['tokens_per_second']:,}",
    }
    if "utilization" in line:
        result["utilization"] = f"{line['utilization']:.0%}"
    for layer, gate in line["gates"].items():
        result[f"gate {layer}"] = f"{min(gate):.2f}-{max(gate):.2f}"
    return result


def lines_up_to(path: Path, step: int) -> list[bytes]:
    """Returns the whole lines of a file up to a step.

    Raises:
      InputError: it holds something else.
    """
    kept = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            is_kept = line.endswith(b"\n") and json.loads(line)["step"] <= step
        except (ValueError, KeyError, TypeError):
            raise InputError(
                f"{path} has a line that is not a JSON object with a step: "
                f"{line[:60]!r}; remove that line or move the file away"
            ) from None
        if not is_kept:  # Also a line that a kill cut short.
            break
        kept.append(line)
    return kept
