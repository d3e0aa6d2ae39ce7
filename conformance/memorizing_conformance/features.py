"""What not every implementation can do, by name, and what doing it takes."""

from collections.abc import Mapping
from typing import Final

FEATURES: Final[Mapping[str, str]] = {
    "exact_search": "search finds exactly the top_k best slots, in order",
    "bucketed_search": "search is BKT-1, with the buckets that bucketing names",
    "approximate_search": "search may miss neighbors, up to recall_target",
    "long_segments": "insert takes segments longer than the memory",
    "bfloat16_memory": "memory_dtype may be bfloat16",
    "checked_inputs": "search refuses keys and queries that are not finite",
    "attention": "attends to memory and local context, and combines both",
    "gradients": "differentiates one memory layer",
    "model": "runs the whole model over a stream of segments",
    "pretrained": "runs models of the Llama family with memory too",
    "replace_parameters": "goes on with other parameters, as after a training step",
    "model_gradients": "differentiates the loss of the whole model",
    "generation": "decodes token by token",
    "save_restore": "writes a state to a file and reads it back",
    "segments": "cuts documents into rows of segments",
    "parameters": "draws initial parameters",
    "evaluation": "computes the perplexity of whole documents",
}
# The methods that a feature brings.
METHODS: Final[Mapping[str, tuple[str, ...]]] = {
    "bucketed_search": ("bucketing",),
    "attention": ("attend_memory", "attend_local", "combine"),
    "gradients": ("memory_layer_gradients",),
    "model": ("init_model", "forward"),
    "replace_parameters": ("replace_parameters",),
    "model_gradients": ("model_gradients",),
    "generation": ("decode",),
    "save_restore": ("save", "restore"),
    "segments": ("stream",),
    "parameters": ("init_parameters",),
    "evaluation": ("evaluate",),
}
# Every implementation has these.
BASIC_METHODS: Final = ("init", "reset", "insert", "search")
# Of these every implementation names one.
SEARCHES: Final = ("exact_search", "bucketed_search", "approximate_search")
