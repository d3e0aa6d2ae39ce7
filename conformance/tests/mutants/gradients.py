"""Faults of the backward pass."""

from mutants.mutant import Mutant


def _gradients(name: str, breaks: str, old: str, new: str) -> Mutant:
    return Mutant(name, breaks, "gradients", old, new)


MUTANTS = [
    _gradients(
        "gradient reaches cached keys",
        "LOC-7",
        "    local_keys[:, :cache_length] = 0  # LOC-7\n",
        "",
    ),
    _gradients(
        "gradient reaches cached values",
        "LOC-7",
        "    local_values[:, :cache_length] = 0\n",
        "",
    ),
    _gradients(
        "gradient reaches stored pairs",
        "MEM-8",
        '    return {\n        "queries": far["queries"] + near["queries"],',
        '    return {\n        "memory_keys": far["keys"],\n'
        '        "queries": far["queries"] + near["queries"],',
    ),
    _gradients(
        "none reaches queries by way of the memory",
        "MEM-8",
        '"queries": far["queries"] + near["queries"],',
        '"queries": near["queries"],',
    ),
    _gradients(
        "none reaches the scale by way of the memory",
        "MEM-8",
        '(far["scale"] + near["scale"])',
        'near["scale"]',
    ),
    _gradients(
        "the gradient of the scale ignores its sign",
        "QKN-3",
        "np.sign(saved.attention_scale)",
        "np.ones_like(saved.attention_scale)",
    ),
    _gradients(
        "the gate learns from memory alone",
        "GATE-3",
        "cotangent * (saved.memory.output - saved.local.output)",
        "cotangent * saved.memory.output",
    ),
    _gradients(
        "the gate's gradient lacks its slope",
        "GATE-3",
        "saved.gate * (1.0 - saved.gate) * swing",
        "saved.gate * swing",
    ),
    _gradients(
        "the softmax has no backward pass",
        "LOC-4",
        "logits = read.weights * (weights - mean)",
        "logits = read.weights * weights",
    ),
    _gradients(
        "the bias learns from the first row alone",
        "LOC-4",
        'near["score"].sum(axis=0)',
        'near["score"][0]',
    ),
    _gradients(
        "the local cotangent is not gated",
        "LOC-4",
        "near = _read_backward(saved.local, (1.0 - gate) * cotangent)",
        "near = _read_backward(saved.local, cotangent)",
    ),
]
