"""Faults of pre-trained models: layers, rotation, parameters."""

from mutants.mutant import Mutant


def _model(name: str, breaks: str, old: str, new: str) -> Mutant:
    return Mutant(name, breaks, "pretrained_model", old, new)


def _attention(name: str, breaks: str, old: str, new: str) -> Mutant:
    return Mutant(name, breaks, "pretrained_attention", old, new)


def _rotary(name: str, breaks: str, old: str, new: str) -> Mutant:
    return Mutant(name, breaks, "rotary", old, new)


_LOGITS = "logits = x @ parameters[output].T"
_INSIDE = 'inside = gate * sigmoid(gate) * (x @ layer["mlp_up_kernel"])'
_ANGLE = "angle = (place[:, :, None] * frequency)[:, :, None, :]"
_HALVES = "first, second = x[..., :half], x[..., half:]"

MUTANTS = [
    _model(
        "logits of pre-trained models are divided by sqrt(E)",
        "PRE-7",
        _LOGITS,
        _LOGITS + " / np.float32(config.model_dim**0.5)",
    ),
    _model(
        "the embedding of pre-trained models is scaled",
        "PRE-7",
        'x = parameters["embedding"][tokens]',
        'x = parameters["embedding"][tokens] * np.float32(config.model_dim**0.5)',
    ),
    _model(
        "an untied output is ignored",
        "PRE-7",
        'output = "embedding" if config.tied_embedding else "output_embedding"',
        'output = "embedding"',
    ),
    _model(
        "the gate of the MLP is a sigmoid",
        "PRE-7",
        _INSIDE,
        _INSIDE.replace("gate * sigmoid(gate)", "sigmoid(gate)"),
    ),
    _model(
        "the MLP uses gelu",
        "PRE-7",
        _INSIDE,
        _INSIDE.replace(
            "sigmoid(gate)", "sigmoid(1.5957692 * (gate + 0.044715 * gate**3))"
        ),
    ),
    _model(
        "gate and up are exchanged",
        "PRE-7",
        'gate = x @ layer["mlp_gate_kernel"]\n    ' + _INSIDE,
        'gate = x @ layer["mlp_up_kernel"]\n    '
        + _INSIDE.replace("mlp_up", "mlp_gate"),
    ),
    _model(
        "the final norm has an epsilon of its own",
        "PRE-7",
        'x = model.rms_norm(x, parameters["final_norm_gain"], config.norm_epsilon)',
        'x = model.rms_norm(x, parameters["final_norm_gain"])',
    ),
    _model(
        "the norm before attention is left out",
        "PRE-7",
        'normed = model.rms_norm(x, layer["attention_norm_gain"], config.norm_epsilon)',
        'normed = x * layer["attention_norm_gain"]',
    ),
    Mutant(
        "components side by side are turned",
        "PRE-8",
        "rotary",
        _HALVES,
        "first, second = x[..., ::2], x[..., 1::2]",
        also=(
            (
                "    return np.concatenate(\n"
                "        [first * cos - second * sin, second * cos + first * sin], "
                "axis=-1\n"
                "    )",
                "    turned = np.stack(\n"
                "        [first * cos - second * sin, second * cos + first * sin], "
                "axis=-1\n"
                "    )\n"
                "    return turned.reshape(x.shape)",
            ),
        ),
    ),
    _rotary(
        "the base is always 10000",
        "PRE-8",
        "frequency = rope_base **",
        "frequency = 10000.0 **",
    ),
    _rotary(
        "frequencies fall half as fast",
        "PRE-8",
        "(-np.arange(half) / half)",
        "(-np.arange(half) / (2 * half))",
    ),
    _rotary(
        "places count from one at half speed",
        "PRE-8",
        _ANGLE,
        _ANGLE.replace("place[:, :, None]", "(1 + place[:, :, None]) / 2"),
    ),
    _rotary(
        "all turn the other way",
        "PRE-8",
        _ANGLE,
        _ANGLE.replace("(place[", "(-place["),
    ),
    _attention(
        "values are rotated",
        "PRE-8",
        "values=np.repeat(context.values, group, axis=2)",
        "values=np.repeat(\n"
        "            rotary.rotate(context.values, context.place, config.rope_base),\n"
        "            group,\n"
        "            axis=2,\n"
        "        )",
    ),
    Mutant(
        "a joint model has gates",
        "PRE-10",
        "parameters",
        'has_gate = config.combination == "gate"',
        "has_gate = True",
    ),
    Mutant(
        "a tied model has two embeddings",
        "PRE-10",
        "parameters",
        " and not config.tied_embedding:",
        ":",
    ),
    Mutant(
        "keys and values have as many heads as queries",
        "PRE-10",
        "parameters",
        "_projections(config, config.num_key_value_heads)",
        "_projections(config, config.num_heads)",
    ),
    Mutant(
        "a saved pre-trained model loses its sinks",
        "CKP-1",
        "reference_files",
        'arrays[f"sinks.{i}.{field.name}"] = getattr(sinks, field.name)',
        'arrays[f"sinks.{i}.{field.name}"] = 0 * getattr(sinks, field.name)',
    ),
]
