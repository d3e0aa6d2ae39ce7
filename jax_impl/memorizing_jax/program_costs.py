"""What a compiled program does, read off its text: loops count as often as they run.

XLA's own sums count the body of a loop once, and a scanned model is loops. This reads
the bytes that each instruction moves, the collectives, and the cycles that the TPU
compiler estimates for what it fused.
"""

import collections
import dataclasses
import re
from typing import Final

_BITS: Final = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "f8": 8}
_SHAPE: Final = re.compile(r"(pred|bf16|[a-z]+(\d+)\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
_INSTRUCTION: Final = re.compile(r"(ROOT )?%([\w.\-]+) = (.*)")
_CALLED: Final = re.compile(r"(?:calls|to_apply|body|condition)=%([\w.\-]+)")
_CYCLES: Final = re.compile(r'"estimated_cycles":"(\d+)"')
_UNKNOWN: Final = 2**62  # What it writes where it made no estimate is beyond this.
_COLLECTIVE: Final = re.compile(
    r"(all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
    r"|ragged-all-to-all|collective-broadcast)(-start)?"
)
# They name or pass on what others made.
_FREE: Final = frozenset(
    (
        *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "iota"),
        *("after-all", "partition-id", "replica-id", "optimization-barrier"),
    )
)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a program.

    Attributes:
      name: of what it makes.
      is_root: whether that is the result of its computation.
      made: type and layout.
      operation: what it does.
      arguments: all that stands in its parentheses.
      rest: all that stands behind them.
    """

    name: str
    is_root: bool
    made: str
    operation: str
    arguments: str
    rest: str

    @property
    def operands(self) -> tuple[str, ...]:
        """Names of what it reads."""
        return tuple(re.findall(r"%([\w.\-]+)", self.arguments))


@dataclasses.dataclass(frozen=True)
class Costs:
    """What a device does in one run of a program.

    Attributes:
      bytes_moved: read from and written to its large memory, by each instruction.
      cycles: estimated by the compiler for what it fused; 0 where it gives none.
      collectives: by kind, how many, and bytes of what each device receives.
      open_loops: loops whose number of turns is not written down; counted once.
    """

    bytes_moved: int
    cycles: int
    collectives: dict[str, tuple[int, int]]
    open_loops: int


def costs(text: str) -> Costs:
    """Reads a compiled program, `compiled.as_text()`."""
    computations, entry = _parse(text)
    moved = cycles = open_loops = 0
    known = True
    collectives: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
    waiting = [(entry, 1)]
    while waiting:
        name, times = waiting.pop()
        by_name = {i.name: i for i in computations[name]}
        for one in computations[name]:
            if kind := _COLLECTIVE.fullmatch(one.operation):
                collectives[kind[1]][0] += times
                collectives[kind[1]][1] += times * _received(one)
            if found := _CYCLES.search(one.rest):
                known = known and int(found[1]) < _UNKNOWN
                cycles += times * int(found[1])
            called = _CALLED.findall(one.rest)
            if one.operation == "while":
                condition, body = called
                turns = _turns(computations[condition])
                open_loops += turns is None
                waiting.append((body, times * (turns or 1)))
            elif one.operation in ("call", "async-start", "conditional"):
                branches = re.findall(r"branch_computations=\{([^}]*)\}", one.rest)
                called += re.findall(r"%([\w.\-]+)", " ".join(branches))
                called += re.findall(
                    r"(?:true|false)_computation=%([\w.\-]+)", one.rest
                )
                waiting += [(inner, times) for inner in called]
            else:
                if one.operation == "fusion":
                    for inner in computations[called[0]]:
                        if kind := _COLLECTIVE.fullmatch(inner.operation):
                            collectives[kind[1]][0] += times
                            collectives[kind[1]][1] += times * _received(inner)
                moved += times * _moved(one, by_name, computations)
    totals = {kind: (n, size) for kind, (n, size) in sorted(collectives.items())}
    return Costs(moved, cycles if known else 0, totals, open_loops)


def num_bytes(shapes: str, large_memory_only: bool = False) -> int:
    """Returns the size of all arrays that a piece of text describes.

    With `large_memory_only` those are left out that live in a chip's fast memory,
    which the layout of a TPU program marks as space 1 and above.
    """
    total = 0
    for kind, digits, sizes, layout in _SHAPE.findall(shapes):
        if large_memory_only and re.search(r"S\([1-9]", layout):
            continue
        count = 1
        for size in filter(None, sizes.split(",")):
            count *= int(size)
        total += count * _BITS.get(kind, int(digits or 8)) // 8
    return total


def _parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """Returns the instructions of every computation, and the name of the first run."""
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith((" ", "HloModule")):
            name = line.removeprefix("ENTRY ").removeprefix("%").split(" ")[0]
            current = computations.setdefault(name, [])
            if line.startswith("ENTRY"):
                entry = name
        elif current is not None and (found := _INSTRUCTION.match(line.strip())):
            current.append(_instruction(found))
    return computations, entry


def _instruction(found: re.Match[str]) -> Instruction:
    rest = found[3]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    made, call = rest[:end], rest[end:].lstrip()
    first = call.find("(")
    last = _closing(call, first)
    is_root, arguments = found[1] is not None, call[first + 1 : last]
    rest = call[last + 1 :]
    return Instruction(found[2], is_root, made, call[:first], arguments, rest)


def _closing(text: str, first: int) -> int:
    """Returns where the parenthesis at `first` is closed."""
    depth = 0
    for i in range(first, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i
    return len(text)


def _turns(condition: list[Instruction]) -> int | None:
    """Returns how often a loop from 0 turns, by the constant it is compared with."""
    by_name = {i.name: i for i in condition}
    for one in condition:
        if one.is_root and one.operation == "compare" and "direction=LT" in one.rest:
            limit = by_name.get(one.operands[1])
            if limit is not None and limit.operation == "constant":
                return int(limit.arguments)
    return None


def _received(one: Instruction) -> int:
    """Returns the bytes of what a collective makes on each device."""
    made = one.made
    if one.operation.endswith("-start") and made.startswith("("):
        # Operands come first in the tuple, then as many results, then bookkeeping.
        shapes = [found[0] for found in _SHAPE.finditer(made)]
        made = " ".join(shapes[len(one.operands) : 2 * len(one.operands)])
    return num_bytes(made)


def _moved(
    one: Instruction,
    by_name: dict[str, Instruction],
    computations: dict[str, list[Instruction]],
) -> int:
    """Returns the bytes that an instruction reads and writes."""
    if one.operation in _FREE or one.operation.endswith(("-start", "-done")):
        return 0
    written = num_bytes(one.made, large_memory_only=True)
    sizes = [
        num_bytes(by_name[name].made, large_memory_only=True)
        for name in one.operands
        if name in by_name
    ]
    if one.operation in ("dynamic-slice", "slice", "gather"):
        return 2 * written
    if one.operation in ("dynamic-update-slice", "scatter"):
        return 2 * sum(sizes[1:])
    if one.operation == "fusion":
        inside = computations[_CALLED.findall(one.rest)[0]]
        return _moved_by_fusion(inside, written, sizes)
    return written + sum(sizes)


def _moved_by_fusion(inside: list[Instruction], written: int, sizes: list[int]) -> int:
    """Returns the bytes of a fusion: of arrays that it slices only the slices."""
    users: dict[str, list[Instruction]] = collections.defaultdict(list)
    for one in inside:
        for name in one.operands:
            users[name].append(one)
    total = written
    parameters = [one for one in inside if one.operation == "parameter"]
    parameters.sort(key=lambda one: int(one.arguments))
    for one, size in zip(parameters, sizes, strict=False):
        uses = users[one.name]
        kinds = {use.operation for use in uses if use.operands[0] == one.name}
        if any(use.operands[0] != one.name for use in uses):
            kinds.add("index")
        if kinds and kinds <= {"dynamic-slice", "gather", "slice"}:
            size = min(size, sum(num_bytes(use.made) for use in uses))
        elif kinds == {"dynamic-update-slice"}:
            # Written where it is: what the fusion makes is this array, and only the
            # update moves.
            size, total = 0, total - size
        total += size
    return max(total, 0)
