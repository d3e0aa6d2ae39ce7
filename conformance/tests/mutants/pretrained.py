"""Faults of pre-trained models: layers, rotation, sinks, places, joint memory."""

from mutants.mutant import Mutant


def _model(name: str, breaks: str, old: str, new: str) -> Mutant:
    return Mutant(name, breaks, "pretrained_model", old, new)


def _attention(name: str, breaks: str, old: str, new: str) -> Mutant:
    return Mutant(name, breaks, "pretrained_attention", old, new)


def _context(name: str, breaks: str, old: str, new: str) -> Mutant:
    return Mutant(name, breaks, "local_context", old, new)


def _rotary(name: str, breaks: str, old: str, new: str) -> Mutant:
    return Mutant(name, breaks, "rotary", old, new)


_SLOTS = "slots = model.find_slots(queries, memory, config)"
_MEMORY_QUERIES = "queries = pretrained_attention.memory_queries(queries, config)"
_INSERT = "new_memories[i] = memories.insert(memory, *entering)"
_LEAVING = "entering = local_context.leaving(sinks, cache, *entering)"
_JOINT = "output = pretrained_attention.joint(seen, queries, memory, slots)"
_FIRST = "first = np.clip(cache_length + num_sinks - sinks.num_read, 0, num_tokens)"
_PLACE = "place=np.where(position < num_sinks, position, position - dropped[:, None])"
_NEAR = "near = (query - key <= local_window) | (key < num_sinks)"
_PRESENT = "present = np.concatenate([sink < oldest, recent >= 0], axis=1)"
_LOGITS = "logits = x @ parameters[output].T"
_INSIDE = 'inside = gate * sigmoid(gate) * (x @ layer["mlp_up_kernel"])'
_ANGLE = "angle = (place[:, :, None] * frequency)[:, :, None, :]"
_HALVES = "first, second = x[..., :half], x[..., half:]"
_KEEP = "new_keys[row, first:last] = keys[row, : last - first]"

MUTANTS = [
    Mutant(
        "query heads take key-value heads in turn",
        "PRE-1",
        "search",
        "keys = np.repeat(keys, queries.shape[2] // keys.shape[2], axis=2)",
        "keys = np.tile(keys, (1, 1, queries.shape[2] // keys.shape[2], 1))",
    ),
    Mutant(
        "what was found is read from another key-value head",
        "PRE-1",
        "attention",
        "head = np.arange(slots.shape[2])[None, None, :, None] // group",
        "head = np.arange(slots.shape[2])[None, None, :, None]\n"
        "    head = head % memory.keys.shape[2]",
    ),
    _model(
        "a group searches with its first query",
        "PRE-1",
        _SLOTS,
        "group = queries.shape[2] // memory.keys.shape[2]\n"
        "        first = np.repeat(queries[:, :, ::group], group, axis=2)\n"
        "        " + _SLOTS.replace("queries", "first"),
    ),
    _model(
        "stored keys are normalized",
        "PRE-1",
        _INSERT,
        "length = np.sqrt((entering[0] ** 2).sum(-1, keepdims=True) + 1e-6)\n"
        "            entering = entering[0] / length, *entering[1:]\n"
        "            " + _INSERT,
    ),
    _model(
        "search is by cosine",
        "PRE-1",
        _SLOTS,
        "length = np.sqrt((memory.keys**2).sum(-1, keepdims=True) + 1e-6)\n"
        "        units = dataclasses.replace(memory, keys=memory.keys / length)\n"
        "        " + _SLOTS.replace("memory,", "units,"),
    ),
    _attention(
        "memory has no scale",
        "PRE-1",
        "scale = np.full(queries.shape[2], _scale(queries))",
        "scale = np.ones(queries.shape[2], queries.dtype)",
    ),
    _model(
        "keys are rotated before they are stored",
        "PRE-2",
        _INSERT,
        "from memorizing_reference import rotary\n"
        "            place = sinks.num_read[:, None] + np.arange(keys.shape[1])\n"
        "            turned = rotary.rotate(entering[0], place, config.rope_base)\n"
        "            entering = turned, *entering[1:]\n"
        "            " + _INSERT,
    ),
    _model(
        "queries meet memory unrotated",
        "PRE-2",
        _MEMORY_QUERIES,
        "pass",
    ),
    _model(
        "queries search unrotated",
        "PRE-2",
        _MEMORY_QUERIES + "\n        " + _SLOTS,
        _SLOTS + "\n        " + _MEMORY_QUERIES,
    ),
    _model(
        "queries attend unrotated",
        "PRE-2",
        _MEMORY_QUERIES + "\n        " + _SLOTS,
        "turned = pretrained_attention.memory_queries(queries, config)\n"
        "        " + _SLOTS.replace("queries", "turned"),
    ),
    _attention(
        "memory lies ahead",
        "PRE-2",
        "place = np.full(queries.shape[:2], config.memory_distance)",
        "place = np.full(queries.shape[:2], -config.memory_distance)",
    ),
    _attention(
        "memory lies as far back as the segment's first token",
        "PRE-2",
        "place = np.full(queries.shape[:2], config.memory_distance)",
        "place = config.memory_distance + np.arange(queries.shape[1])\n"
        "    place = np.broadcast_to(place, queries.shape[:2])",
    ),
    _context(
        "places count from the document's start",
        "PRE-3",
        _PLACE,
        "place=position",
    ),
    _context(
        "places count room that is not filled",
        "PRE-3",
        _PLACE,
        "place=np.broadcast_to(np.arange(position.shape[1]), position.shape)",
    ),
    _context(
        "places close a gap one too far",
        "PRE-3",
        _PLACE,
        "place=np.where(\n"
        "            position < num_sinks, position,\n"
        "            position - dropped[:, None] - (dropped[:, None] > 0)\n"
        "        )",
    ),
    _context(
        "dropped positions are those of the cache alone",
        "PRE-3",
        "return np.maximum(0, num_read - cache_length - num_sinks)",
        "return np.maximum(0, num_read - cache_length)",
    ),
    _context(
        "all rows have the places of the first",
        "PRE-3",
        _PLACE,
        _PLACE.replace("dropped[:, None]", "dropped[0]"),
    ),
    _context(
        "the window hides sinks",
        "PRE-4",
        _NEAR,
        "near = query - key <= local_window",
    ),
    _context(
        "sinks are forgotten when they leave the cache",
        "PRE-4",
        _PRESENT,
        _PRESENT.replace("sink < oldest", "sink < 0 * oldest"),
    ),
    _context(
        "sinks in the cache are seen twice",
        "PRE-4",
        _PRESENT,
        _PRESENT.replace("sink < oldest", "sink < sinks.num_read[:, None]"),
    ),
    _context(
        "sinks are seen once they left the cache",
        "PRE-4",
        _NEAR,
        "there = np.arange(context.position.shape[1]) < num_sinks\n"
        "    near = (query - key <= local_window) | there",
    ),
    _context(
        "sinks of one document serve the next",
        "PRE-4",
        "    num_read = np.where(start_of_document, 0, sinks.num_read)\n",
        "    num_read = np.where(start_of_document, 0, sinks.num_read)\n"
        "    held = np.minimum(sinks.num_read, sinks.keys.shape[1])\n"
        "    num_read = np.where(held > 0, np.maximum(held, num_read), num_read)\n",
    ),
    _context(
        "sinks are those of the first segment",
        "PRE-4",
        "if first < last:",
        "if first < last and first == 0:",
    ),
    _context(
        "sinks are kept in reverse",
        "PRE-4",
        _KEEP,
        "new_keys[row, first:last] = keys[row, : last - first][::-1]",
    ),
    _context(
        "padding becomes a sink",
        "PRE-4",
        "last = min(num_read[row], sinks.keys.shape[1])",
        "last = min(first + keys.shape[1], sinks.keys.shape[1])\n"
        "        num_read[row] = max(num_read[row], last)",
    ),
    _attention(
        "joint is the mean of two softmaxes",
        "PRE-5",
        "    keys, values = attention.gather(memory, slots)",
        "    gate_bias = np.zeros(queries.shape[2], queries.dtype)\n"
        "    if (slots != NO_SLOT).any():\n"
        "        return gated(seen, queries, memory, slots, gate_bias)\n"
        "    keys, values = attention.gather(memory, slots)",
    ),
    _attention(
        "missing neighbors take weight",
        "PRE-5",
        "mask = np.concatenate([seen.mask, slots != NO_SLOT], axis=-1)",
        "mask = np.concatenate([seen.mask, slots == slots], axis=-1)",
    ),
    _attention(
        "neighbors are scaled twice",
        "PRE-5",
        "score * _scale(queries)], axis=-1)",
        "score * _scale(queries) ** 2], axis=-1)",
    ),
    _model(
        "a joint layer without neighbors is halved",
        "PRE-5",
        _JOINT,
        _JOINT + "\n            there = (slots >= 0).any(-1)[..., None]\n"
        "            output = np.where(there, output, output / 2)",
    ),
    _model(
        "a gated layer without neighbors is not diminished",
        "PRE-5",
        'if config.combination == "joint":\n            output',
        'if config.combination == "joint" or (slots < 0).all():\n            output',
    ),
    _attention(
        "the gate is the other way around",
        "PRE-5",
        "local_attention(seen), gate_bias)",
        "local_attention(seen), -gate_bias)",
    ),
    _model(
        "a joint memory takes each segment at once",
        "PRE-6",
        _LEAVING,
        "pass",
    ),
    _model(
        "a joint memory takes all that was cached",
        "PRE-6",
        _LEAVING,
        "entering = cache.keys, cache.values, cache.num_cached",
    ),
    _context(
        "sinks enter memory",
        "PRE-6",
        _FIRST,
        _FIRST.replace("cache_length + num_sinks", "cache_length"),
    ),
    _context(
        "pairs leave one segment late",
        "PRE-6",
        "num_tokens - first",
        "np.maximum(0, num_tokens - first - (sinks.num_read == 0))",
    ),
    _context(
        "pairs enter newest first",
        "PRE-6",
        "    column = np.minimum(column",
        "    column = first[:, None] + (num_tokens - 1)[:, None] - column\n"
        "    column = np.maximum(column, 0)\n"
        "    column = np.minimum(column",
    ),
    _model(
        "a gated memory takes what leaves the cache",
        "PRE-6",
        'if config.combination == "joint":\n                entering',
        'if config.combination != "":\n                entering',
    ),
    _model(
        "a pair enters before the queries are answered",
        "PRE-6",
        _SLOTS,
        'if config.combination == "joint":\n'
        "            memory = memories.insert(memory, *local_context.leaving(\n"
        "                sinks, cache, keys, values,\n"
        "                np.full(len(keys), keys.shape[1])\n"
        "            ))\n"
        "        " + _SLOTS,
    ),
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
    _context(
        "a query does not see itself",
        "PRE-9",
        "(key <= query)",
        "(key < query)",
    ),
    _context(
        "a query sees the token after it",
        "PRE-9",
        "(key <= query)",
        "(key <= query + 1)",
    ),
    _context(
        "the window counts the query itself",
        "PRE-9",
        _NEAR,
        _NEAR.replace("<= local_window", "< local_window"),
    ),
    _context(
        "the window reaches one further",
        "PRE-9",
        _NEAR,
        _NEAR.replace("<= local_window", "<= local_window + 1"),
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
