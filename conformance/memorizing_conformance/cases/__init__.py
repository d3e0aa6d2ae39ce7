"""What the golden vectors contain."""

from memorizing_conformance.cases import data, local, memory, model, pretrained
from memorizing_conformance.cases.case import Case

CASES: tuple[Case, ...] = (
    *memory.CASES,
    *local.CASES,
    *model.CASES,
    *pretrained.CASES,
    *data.CASES,
)
