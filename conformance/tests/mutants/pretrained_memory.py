"""Faults of memory in pre-trained models: groups, rotation, gate or joint."""

from mutants.mutant import Mutant


def _model(name: str, breaks: str, old: str, new: str) -> Mutant:
    return Mutant(name, breaks, "pretrained_model", old, new)


def _attention(name: str, breaks: str, old: str, new: str) -> Mutant:
    return Mutant(name, breaks, "pretrained_attention", old, new)


_SLOTS = "slots = model.find_slots(queries, memory, config)"
_MEMORY_QUERIES = "queries = pretrained_attention.memory_queries(queries, config)"
_INSERT = "new_memories[i] = memories.insert(memory, *entering)"
_LEAVING = "entering = local_context.leaving(sinks, cache, *entering)"
_JOINT = "output = pretrained_attention.joint(seen, queries, memory, slots)"

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
]
