"""Broken implementations, each one line or one idea away from the reference."""

from mutants import (
    attention,
    gradients,
    local,
    local_context,
    memory,
    model,
    model_memory,
    pretrained,
    pretrained_memory,
    search,
    streams,
)
from mutants.mutant import Mutant

MUTANTS: list[Mutant] = [
    *memory.MUTANTS,
    *search.MUTANTS,
    *attention.MUTANTS,
    *local.MUTANTS,
    *gradients.MUTANTS,
    *model.MUTANTS,
    *model_memory.MUTANTS,
    *local_context.MUTANTS,
    *pretrained.MUTANTS,
    *pretrained_memory.MUTANTS,
    *streams.MUTANTS,
]
