"""`torch_model` as the conformance suite sees it."""

import copy
import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch_model
from torch import Tensor
from torch.nn import functional
from torch_memory_adapter import TorchMemory, counts, tensor


@dataclasses.dataclass
class ModelState:
    """A model between two segments."""

    model: torch_model.MemorizingTransformer
    state: torch_model.State


class TorchModel(TorchMemory):
    """The whole model in float32 on the CPU."""

    name = "plain PyTorch"
    features = TorchMemory.features | {
        "model",
        "model_gradients",
        "parameters",
        "replace_parameters",
        "save_restore",
    }

    def init_model(
        self, config: Mapping[str, Any], parameters: dict[str, np.ndarray], batch: int
    ) -> ModelState:
        """Returns the state before the first segment."""
        model = model_of(config)
        model_state = ModelState(model, model.empty_state(batch))
        return self.replace_parameters(model_state, parameters)

    def replace_parameters(
        self, model_state: ModelState, parameters: dict[str, np.ndarray]
    ) -> ModelState:
        """Replaces the parameters in place."""
        arrays = {name: tensor(array) for name, array in parameters.items()}
        model_state.model.load_state_dict(arrays)
        return model_state

    @torch.no_grad()
    def forward(
        self,
        model_state: ModelState,
        tokens: np.ndarray,
        start_of_document: np.ndarray,
        num_tokens: np.ndarray,
    ) -> tuple[np.ndarray, ModelState]:
        """Returns the logits of a segment, and the state, moved on in place."""
        logits = logits_of(model_state, tokens, start_of_document, num_tokens)
        return logits.numpy(), model_state

    def model_gradients(
        self,
        model_state: ModelState,
        tokens: np.ndarray,
        start_of_document: np.ndarray,
        num_tokens: np.ndarray,
        targets: np.ndarray,
        num_targets: np.ndarray,
    ) -> tuple[float, dict[str, np.ndarray]]:
        """Returns the loss of a segment and its gradient."""
        # Reading moves a state on, and this one is to stay.
        scratch = copy.deepcopy(model_state)
        logits = logits_of(scratch, tokens, start_of_document, num_tokens)
        has_target = torch.arange(tokens.shape[1]) < counts(num_targets)[:, None]
        loss = functional.cross_entropy(
            logits[has_target], counts(targets)[has_target], reduction="sum"
        )
        loss.backward()
        gradients = {
            name: parameter.grad.numpy()
            for name, parameter in scratch.model.named_parameters()
        }
        return float(loss), gradients

    def save(self, state: Any, path: pathlib.Path) -> None:
        """Writes a state to a file."""
        torch.save(state, path)

    def restore(self, path: pathlib.Path) -> Any:
        """Returns the state that was saved."""
        return torch.load(path, weights_only=False)

    def init_parameters(
        self, config: Mapping[str, Any], seed: int
    ) -> dict[str, np.ndarray]:
        """Returns initial parameters."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = model_of(config)
        return {name: array.numpy() for name, array in model.state_dict().items()}


def model_of(config: Mapping[str, Any]) -> torch_model.MemorizingTransformer:
    """Returns a freshly drawn model of the plain configuration."""
    sizes = dict(config)
    # The module takes segments of any length.
    del sizes["segment_length"]
    sizes["memory_dtype"] = getattr(torch, sizes.get("memory_dtype", "float32"))
    return torch_model.MemorizingTransformer(**sizes)


def logits_of(
    model_state: ModelState,
    tokens: np.ndarray,
    start_of_document: np.ndarray,
    num_tokens: np.ndarray,
) -> Tensor:
    """Reads one segment of every row; the state moves on in place."""
    return model_state.model(
        model_state.state,
        counts(tokens),
        tensor(start_of_document, torch.bool),
        counts(num_tokens),
    )
