"""Broken implementations, each one line or one idea away from the reference."""

from mutants import (
    attention,
    gradients,
    local,
    memory,
    model,
    model_memory,
    pretrained,
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
    *pretrained.MUTANTS,
    *streams.MUTANTS,
]
