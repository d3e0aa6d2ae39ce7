"""Faults of the layers: norms, projections, MLP, logits, parameters."""

from mutants.mutant import Mutant


def _model(name: str, breaks: str, old: str, new: str) -> Mutant:
    return Mutant(name, breaks, "model", old, new)


def _parameters(name: str, breaks: str, old: str, new: str) -> Mutant:
    return Mutant(name, breaks, "parameters", old, new)


_MLP = (
    'x = x + np.maximum(normed @ layer["mlp_in_kernel"], 0) @ layer["mlp_out_kernel"]'
)
_NORM = "return x / np.sqrt(mean_square + x.dtype.type(epsilon)) * gain"
_NORMALIZED = "queries, keys = attention.normalize(queries), attention.normalize(keys)"
_EPSILON = "return x / np.sqrt(np.sum(x * x, axis=-1, keepdims=True) + 1e-6)"

MUTANTS = [
    _model(
        "the embedding is scaled",
        "MOD-1",
        'x = parameters["embedding"][tokens]',
        'x = parameters["embedding"][tokens] * np.float32(config.model_dim**0.5)',
    ),
    _model(
        "logits are not divided by sqrt(E)",
        "MOD-1",
        "x.dtype.type(1.0 / np.sqrt(config.model_dim))",
        "x.dtype.type(1.0)",
    ),
    _model(
        "gelu instead of relu",
        "MOD-1",
        _MLP,
        'inside = normed @ layer["mlp_in_kernel"]\n'
        "        gelu = inside * 0.5 * (1 + np.tanh(0.7978846 * (inside + 0.044715\n"
        "            * inside**3)))\n"
        '        x = x + gelu @ layer["mlp_out_kernel"]',
    ),
    _model(
        "the MLP sees no norm",
        "MOD-1",
        'normed = rms_norm(x, layer["mlp_norm_gain"])',
        "normed = x",
    ),
    _model(
        "the norm comes after the MLP",
        "MOD-1",
        'normed = rms_norm(x, layer["mlp_norm_gain"])\n        ' + _MLP,
        'x = x + np.maximum(x @ layer["mlp_in_kernel"], 0) @ layer["mlp_out_kernel"]\n'
        '        x = rms_norm(x, layer["mlp_norm_gain"])',
    ),
    _model(
        "the MLP has no residual",
        "MOD-1",
        _MLP,
        _MLP.replace("x = x + ", "x = "),
    ),
    _model("attention has no residual", "MOD-1", "x = x + update", "x = update"),
    _model(
        "there is no final norm",
        "MOD-1",
        'x = rms_norm(x, parameters["final_norm_gain"])',
        'x = x * parameters["final_norm_gain"]',
    ),
    _model(
        "the norm has a larger epsilon",
        "MOD-2",
        _NORM,
        _NORM.replace("epsilon", "10 * epsilon"),
    ),
    _model(
        "the norm has no epsilon",
        "MOD-2",
        _NORM,
        "return x / np.sqrt(mean_square) * gain",
    ),
    _model(
        "epsilon stands outside the root",
        "MOD-2",
        _NORM,
        "return x / (np.sqrt(mean_square) + x.dtype.type(epsilon)) * gain",
    ),
    _model(
        "gains count from one",
        "MOD-2",
        _NORM,
        _NORM.replace("* gain", "* (1 + gain)"),
    ),
    _model(
        "the mean is subtracted",
        "MOD-2",
        "mean_square = np.mean(x * x, axis=-1, keepdims=True)",
        "x = x - x.mean(axis=-1, keepdims=True)\n"
        "    mean_square = np.mean(x * x, axis=-1, keepdims=True)",
    ),
    _model(
        "the norm divides by the sum",
        "MOD-2",
        "mean_square = np.mean(x * x, axis=-1, keepdims=True)",
        "mean_square = np.sum(x * x, axis=-1, keepdims=True)",
    ),
    _model(
        "queries are not normalized",
        "QKN-2",
        _NORMALIZED,
        "keys = attention.normalize(keys)",
    ),
    _model(
        "keys are not normalized",
        "QKN-2",
        _NORMALIZED,
        "queries = attention.normalize(queries)",
    ),
    _model(
        "values are normalized",
        "QKN-2",
        _NORMALIZED,
        _NORMALIZED + "\n    values = attention.normalize(values)",
    ),
    Mutant(
        "normalization has no epsilon",
        "QKN-2",
        "attention",
        _EPSILON,
        _EPSILON.replace(" + 1e-6", " + 1e-30"),
    ),
    Mutant(
        "epsilon stands outside the root of normalization",
        "QKN-2",
        "attention",
        _EPSILON,
        "return x / (np.sqrt(np.sum(x * x, axis=-1, keepdims=True)) + 1e-6)",
    ),
    Mutant(
        "normalization is over all heads",
        "QKN-2",
        "attention",
        _EPSILON,
        "return x / np.sqrt(np.sum(x * x, axis=(-1, -2), keepdims=True) + 1e-6)",
    ),
    _parameters(
        "kernels are not truncated",
        "MOD-3",
        "while (outside := np.abs(x) > 2.0).any():",
        "while (outside := np.abs(x) > 9.0).any():",
    ),
    _parameters(
        "truncation is not made up for",
        "MOD-3",
        "return x / 0.8796256610342398",
        "return x",
    ),
    _parameters(
        "output kernels count one axis as fan-in",
        "MOD-3",
        'math.prod(shape[:-1]) if kind == "output_kernel" else shape[0]',
        "shape[0]",
    ),
    _parameters(
        "the embedding is small",
        "MOD-3",
        "return rng.standard_normal(shape)\n",
        "return rng.standard_normal(shape) / math.sqrt(config.model_dim)\n",
    ),
    _parameters(
        "the relative bias has deviation one",
        "MOD-3",
        "rng.standard_normal(shape) / math.sqrt(positions.NUM_BUCKETS)",
        "rng.standard_normal(shape)",
    ),
    _parameters("gains start at zero", "MOD-3", "np.ones(shape)", "np.zeros(shape)"),
    _parameters(
        "the seed is ignored",
        "MOD-3",
        "np.random.default_rng(seed)",
        "np.random.default_rng(0)",
    ),
    _parameters(
        "memory_size changes the draw",
        "MOD-5",
        "np.random.default_rng(seed)",
        "np.random.default_rng(seed + config.memory_size - 16)",
    ),
    _parameters(
        "every layer has a gate",
        "MOD-6",
        "if has_gate and i in config.memory_layers:",
        "if has_gate:",
    ),
    _parameters(
        "the output kernel is [E, H, D]",
        "MOD-6",
        '"output_kernel": (heads, dim, embed)',
        '"output_kernel": (embed, heads, dim)',
    ),
    _parameters(
        "the scale has another name",
        "MOD-6",
        '"attention_scale": (heads,)',
        '"scale": (heads,)',
    ),
]
