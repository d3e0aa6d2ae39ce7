"""What travels between devices, read off a compiled program."""

import re
from typing import NamedTuple

_KINDS = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"


class Traveling(NamedTuple):
    """One array that a collective makes on each device."""

    kind: str
    dtype: str
    shape: tuple[int, ...]
    groups: str


def traveling(text):
    """Returns every array that a collective of a program makes."""
    text = re.sub(r"/\*.*?\*/", "", text)
    pattern = rf"= (\(?[^=]*?\)?) ({_KINDS})(?:-start)?\((.*)"
    found = []
    for result, kind, rest in re.findall(pattern, text):
        named = re.search(r"(?:replica_groups|source_target_pairs)=(\S+)", rest)
        for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", result):
            sizes = tuple(int(size) for size in shape.split(",") if size)
            found.append(Traveling(kind, dtype, sizes, named[1] if named else ""))
    return found
