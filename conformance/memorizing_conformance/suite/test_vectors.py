"""The golden vectors, replayed."""

import re

import numpy as np
import pytest

from memorizing_conformance import vectors
from memorizing_conformance.handlers import HANDLERS, NEEDS, needs


def parameters():
    """Every case, marked with its rules, its level and what it needs."""
    for vector in vectors.read_all():
        handler = vector.content["handler"]
        marks = [pytest.mark.rule(rule) for rule in reversed(vector.content["rules"])]
        marks += [pytest.mark.level(NEEDS[handler][0])]
        marks += [pytest.mark.needs(*needs(vector.content))]
        yield pytest.param(vector, id=vector.name, marks=marks)


@pytest.mark.parametrize("vector", list(parameters()))
def test_vector(implementation, vector):
    content, settings = vector.content, vector.content["settings"]
    if "bucketing" in settings:
        sizes = settings["sizes"]
        own = implementation.bucketing(sizes["memory_size"], sizes["top_k"])
        if list(own) != settings["bucketing"]:
            pytest.skip("lacks these buckets")

    def replay():
        return HANDLERS[content["handler"]](implementation, settings, vector.arrays)

    if "refused" in settings:
        refused = settings["refused"]
        words = [re.escape(refused["array"]), *map(str, refused["index"])]
        with pytest.raises(ValueError, match=r"\D+".join(words)):
            replay()
        return
    found = replay()
    if "shapes" in settings:
        shapes = {name: np.asarray(shape).tolist() for name, shape in found.items()}
        assert shapes == settings["shapes"]
    for name, expected in vector.expected.items():
        if name in found:  # memory_output is not, without the feature "attention".
            vectors.compare(found[name], expected, content["compare"][name], name)
