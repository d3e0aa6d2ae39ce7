"""What the golden vectors contain."""

from memorizing_conformance.cases import data, local, memory, model
from memorizing_conformance.cases.case import Case

CASES: tuple[Case, ...] = (*memory.CASES, *local.CASES, *model.CASES, *data.CASES)
