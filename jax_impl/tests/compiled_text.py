"""Reads off a compiled program what arrays it makes."""

import math
import re

# What hands arrays through, or looks at them in another form, makes none. A slice that
# is updated is updated where it is, unless the scratch space tells otherwise.
_MAKES_NONE = {"parameter", "bitcast", "get-tuple-element", "dynamic-update-slice"}


def arrays_in(compiled):
    """Returns the operation and the sizes of every array in the program."""
    found = re.findall(r"= \(?\w+\[([\d,]+)\]\S* (\w[\w-]*)\(", compiled.as_text())
    assert found
    return {(op, tuple(map(int, sizes.split(",")))) for sizes, op in found}


def largest_made(compiled):
    """Returns the number of elements of the largest array that the program makes."""
    made = [sizes for op, sizes in arrays_in(compiled) if op not in _MAKES_NONE]
    return max(map(math.prod, made), default=0)
