"""Faults of memory attention and of the gate."""

from mutants.mutant import Mutant


def _attention(name: str, breaks: str, old: str, new: str) -> Mutant:
    return Mutant(name, breaks, "attention", old, new)


_LOGITS = "    weights = masked_softmax(logits, slots != NO_SLOT)"
_SCALE = "logits = score * np.abs(attention_scale)[None, None, :, None]\n" + _LOGITS
_GATE = "gate = sigmoid(gate_bias)[None, None, :, None]"
_SUM = "return gate * memory_output + (1.0 - gate) * local_output"

MUTANTS = [
    _attention(
        "empty slots take softmax weight",
        "KNN-2",
        _LOGITS,
        "    weights = masked_softmax(logits, np.ones(slots.shape, bool))",
    ),
    _attention(
        "nothing at all becomes NaN",
        "GATE-2",
        "return weights / np.where(total > 0.0, total, 1.0)",
        "with np.errstate(invalid='ignore'):\n        return weights / total",
    ),
    _attention(
        "an empty memory reads ones",
        "GATE-2",
        _LOGITS,
        _LOGITS + "\n    nothing = (slots == NO_SLOT).all(-1, keepdims=True)\n"
        "    values = np.where(nothing[..., None], 1, values)\n"
        "    weights = weights + nothing",
    ),
    _attention(
        "NaN times zero",
        "MEM-11",
        "return np.where(found, keys, 0), np.where(found, values, 0)",
        "return np.where(found, keys, 0), values * found",
    ),
    _attention(
        "tied pairs are averaged",
        "KNN-1",
        "keys, values = memory.keys[row, slot, head], memory.values[row, slot, head]",
        "keys = memory.keys[row, slot, head]\n"
        "    valid = np.arange(memory.memory_size) < memory.num_valid[:, None]\n"
        "    same = (\n"
        "        np.moveaxis(memory.keys, 1, 2)[:, None, :, None]\n"
        "        == keys[..., None, :]\n"
        "    ).all(-1) & valid[:, None, None, None]\n"
        '    values = np.einsum("bqhns,bshd->bqhnd", same, memory.values)\n'
        "    values = values / np.maximum(same.sum(-1), 1)[..., None]",
    ),
    _attention(
        "all of the memory is attended to",
        "GATE-1",
        "    keys, values = gather(memory, slots)",
        "    valid = np.arange(memory.memory_size) < memory.num_valid[:, None]\n"
        "    slots = np.where(valid, np.arange(memory.memory_size), NO_SLOT)\n"
        "    slots = np.broadcast_to(\n"
        "        slots[:, None, None], (*queries.shape[:3], memory.memory_size)\n"
        "    )\n"
        "    keys, values = gather(memory, slots)",
    ),
    _attention(
        "neighbors weigh the same",
        "GATE-1",
        _LOGITS,
        "    weights = masked_softmax(0 * logits, slots != NO_SLOT)",
    ),
    _attention(
        "logits are divided by sqrt(D)",
        "GATE-1",
        _LOGITS,
        "    logits = logits / np.sqrt(queries.dtype.type(2.0))\n" + _LOGITS,
    ),
    _attention(
        "neighbors have a bias by rank",
        "GATE-1",
        _LOGITS,
        "    logits = logits - np.arange(slots.shape[-1], dtype=logits.dtype) / 8\n"
        + _LOGITS,
    ),
    _attention(
        "the softmax is not shifted",
        "GATE-1",
        "weights = np.exp(logits - np.where(np.isfinite(peak), peak, 0.0))",
        "with np.errstate(over='ignore', invalid='ignore'):\n"
        "        weights = np.exp(logits)",
    ),
    _attention(
        "weights are rounded to bfloat16",
        "GATE-1",
        _LOGITS,
        _LOGITS + "\n    from memorizing_reference.memory import round_to_bfloat16\n"
        "    weights = round_to_bfloat16(weights)",
    ),
    _attention(
        "stored values are normalized when read",
        "MEM-7",
        "    keys, values = gather(memory, slots)",
        "    keys, values = gather(memory, slots)\n    values = normalize(values)",
    ),
    _attention(
        "stored keys are normalized when read",
        "MEM-7",
        "    keys, values = gather(memory, slots)",
        "    keys, values = gather(memory, slots)\n    keys = normalize(keys)",
    ),
    _attention(
        "memory logits take the sign of the scale",
        "QKN-3",
        _SCALE,
        "logits = score * attention_scale[None, None, :, None]\n" + _LOGITS,
    ),
    _attention(
        "memory logits are not scaled",
        "QKN-3",
        _SCALE,
        "logits = score\n" + _LOGITS,
    ),
    _attention(
        "heads share the scale of the first",
        "QKN-3",
        _SCALE,
        "logits = score * np.abs(attention_scale)[0]\n" + _LOGITS,
    ),
    Mutant(
        "the search is scaled, with its sign",
        "QKN-3",
        "reference_memory",
        "self.search(state, queries),\n            self._cast(attention_scale),",
        "self.search(state, queries * attention_scale[:, None]),\n"
        "            self._cast(attention_scale),",
    ),
    _attention(
        "the gate is swapped",
        "GATE-3",
        _SUM,
        "return (1.0 - gate) * memory_output + gate * local_output",
    ),
    _attention(
        "the gate has no sigmoid",
        "GATE-3",
        _GATE,
        "gate = gate_bias[None, None, :, None]",
    ),
    _attention(
        "the gate is a tanh",
        "GATE-3",
        _GATE,
        "gate = np.tanh(gate_bias)[None, None, :, None]",
    ),
    _attention(
        "heads share one gate",
        "GATE-3",
        _GATE,
        "gate = sigmoid(gate_bias).mean()",
    ),
    _attention(
        "memory is added to the local output",
        "GATE-3",
        _SUM,
        "return gate * memory_output + local_output",
    ),
    _attention(
        "no gate where memory is empty",
        "GATE-2",
        _GATE,
        _GATE + "\n    gate = gate * (memory_output != 0).any(-1, keepdims=True)",
    ),
    _attention(
        "the gate overflows",
        "GATE-3",
        "return 0.5 * (1.0 + np.tanh(0.5 * x))",
        "with np.errstate(over='ignore', invalid='ignore'):\n"
        "        return np.exp(x) / (1.0 + np.exp(x))",
    ),
]
