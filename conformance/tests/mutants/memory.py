"""Faults of the memory itself."""

from mutants.mutant import Mutant


def _memory(name: str, breaks: str, old: str, new: str) -> Mutant:
    return Mutant(name, breaks, "memory", old, new)


_COPIES = "new_keys, new_values = memory.keys.copy(), memory.values.copy()"
_PAIR = "pair = memory.num_written[row] + np.arange(first, last)"
_VALID = "return np.minimum(self.num_written, self.memory_size)"
_RESET = "num_written = np.where(start_of_document, 0, memory.num_written)"
_COUNT = "num_written = memory.num_written + num_tokens"
_ROUNDED = "bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))"
_STORED = 'return round_to_bfloat16(pairs) if dtype == "bfloat16" else pairs'

MUTANTS = [
    _memory(
        "overflow wipes the memory",
        "MEM-1",
        _COPIES,
        "memory = reset(memory, memory.num_written + num_tokens > memory.memory_size)\n"
        "    " + _COPIES,
    ),
    _memory(
        "overflow keeps the oldest",
        "MEM-1",
        "        if pair.size:",
        "        pair = pair[pair < memory.memory_size]\n"
        "        last = first + pair.size\n"
        "        if pair.size:",
    ),
    _memory(
        "only M - 1 pairs are kept",
        "MEM-1",
        _VALID,
        "return np.minimum(self.num_written, self.memory_size - 1)",
    ),
    _memory(
        "heads share the keys of the first",
        "MEM-1",
        "new_keys[row, slot] = _stored(keys[row, first:last], memory.dtype)",
        "new_keys[row, slot] = _stored(keys[row, first:last, :1], memory.dtype)",
    ),
    _memory(
        "heads share the values of the last",
        "MEM-1",
        "new_values[row, slot] = _stored(values[row, first:last], memory.dtype)",
        "new_values[row, slot] = _stored(values[row, first:last, -1:], memory.dtype)",
    ),
    _memory(
        "rows share the pairs of the first",
        "SEG-2",
        "new_keys[row, slot] = _stored(keys[row, first:last], memory.dtype)",
        "new_keys[row, slot] = _stored(keys[0, first:last], memory.dtype)",
    ),
    _memory(
        "keys and values move apart at the wrap",
        "MEM-1",
        "new_values[row, slot] = _stored(values[row, first:last], memory.dtype)",
        "new_values[row, np.sort(slot)] = _stored(\n"
        "                values[row, first:last], memory.dtype\n"
        "            )",
    ),
    _memory(
        "slots are off by one",
        "MEM-2",
        "slot = pair % memory.memory_size",
        "slot = (pair + 1) % memory.memory_size",
    ),
    _memory(
        "a segment that does not fit starts at slot 0",
        "MEM-2",
        _PAIR,
        "start = memory.num_written[row] % memory.memory_size\n"
        "        if start + last - first > memory.memory_size:\n"
        "            start = 0\n"
        "        pair = start + np.arange(last - first)",
    ),
    _memory(
        "the newest pair goes to slot 0",
        "MEM-2",
        "slot = pair % memory.memory_size",
        "slot = pair[::-1] % memory.memory_size",
    ),
    _memory(
        "a long segment keeps its oldest pairs",
        "MEM-2",
        "_stored(keys[row, first:last], memory.dtype)",
        "_stored(keys[row, : last - first], memory.dtype)",
    ),
    _memory(
        "a long segment loses its phase",
        "MEM-2",
        _PAIR,
        "pair = memory.num_written[row] + np.arange(last - first)",
    ),
    _memory(
        "a long segment counts only what it kept",
        "MEM-2",
        _COUNT,
        "num_written = memory.num_written + np.minimum(num_tokens, memory.memory_size)",
    ),
    _memory(
        "counting goes on after a reset",
        "MEM-2",
        _PAIR,
        _PAIR + " + 2",
    ),
    _memory(
        "slots never written are valid",
        "MEM-3",
        _VALID,
        "return np.full_like(self.num_written, self.memory_size)",
    ),
    _memory(
        "one slot too many is valid",
        "MEM-3",
        _VALID,
        "return np.minimum(self.num_written + 1, self.memory_size)",
    ),
    _memory(
        "the reset never fires",
        "MEM-5",
        _RESET,
        "num_written = memory.num_written",
    ),
    _memory(
        "a reset of one row resets all",
        "MEM-5",
        _RESET,
        "num_written = np.where(start_of_document.any(), 0, memory.num_written)",
    ),
    _memory(
        "only a reset of all rows fires",
        "MEM-5",
        _RESET,
        "num_written = np.where(start_of_document.all(), 0, memory.num_written)",
    ),
    _memory(
        "a reset resets the other rows",
        "MEM-5",
        _RESET,
        "num_written = np.where(~start_of_document, 0, memory.num_written)",
    ),
    _memory(
        "a reset zeroes pairs and leaves them valid",
        "MEM-5",
        "return dataclasses.replace(memory, num_written=num_written)",
        "kept = ~start_of_document[:, None, None, None]\n"
        "    return dataclasses.replace(\n"
        "        memory, keys=memory.keys * kept, values=memory.values * kept\n"
        "    )",
    ),
    _memory(
        "padding is inserted",
        "MEM-6",
        _COPIES,
        "num_tokens = np.full_like(num_tokens, segment_length)\n    " + _COPIES,
    ),
    _memory(
        "padding is counted",
        "MEM-6",
        _COUNT,
        "num_written = memory.num_written + segment_length",
    ),
    _memory(
        "all rows are as long as the first",
        "MEM-6",
        _COPIES,
        "num_tokens = np.full_like(num_tokens, num_tokens[0])\n    " + _COPIES,
    ),
    _memory(
        "an idle row inserts one pair",
        "MEM-6",
        _COPIES,
        "num_tokens = np.maximum(num_tokens, 1)\n    " + _COPIES,
    ),
    _memory(
        "an idle row is reset",
        "MEM-6",
        _COUNT,
        "num_written = np.where(num_tokens > 0, memory.num_written + num_tokens, 0)",
    ),
    _memory("bfloat16 truncates", "MEM-10", _ROUNDED, "bits"),
    _memory(
        "bfloat16 rounds halves up", "MEM-10", _ROUNDED, "bits + np.uint32(0x8000)"
    ),
    _memory(
        "bfloat16 is stored as float16",
        "MEM-10",
        _STORED,
        'return pairs.astype(np.float16 if dtype == "bfloat16" else pairs.dtype)',
    ),
    _memory(
        "float32 is stored as float16",
        "MEM-10",
        _STORED,
        "with np.errstate(over='ignore'):\n        return pairs.astype(np.float16)",
    ),
    _memory(
        "float32 is stored as bfloat16",
        "MEM-10",
        _STORED,
        "return round_to_bfloat16(pairs)",
    ),
    _memory("bfloat16 is not rounded", "MEM-10", _STORED, "return pairs"),
    _memory(
        "keys are not rounded to bfloat16",
        "MEM-10",
        "new_keys[row, slot] = _stored(keys[row, first:last], memory.dtype)",
        "new_keys[row, slot] = keys[row, first:last]",
    ),
]
