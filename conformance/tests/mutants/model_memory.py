"""Faults of the model in its use of memory: order, layers, what is stored."""

from mutants.mutant import Mutant


def _model(name: str, breaks: str, old: str, new: str) -> Mutant:
    return Mutant(name, breaks, "model", old, new)


_REPLACE = (
    "return dataclasses.replace(model_state, parameters=self._cast_all(parameters))"
)
_RESET = "memory = memories.reset(state.memories[i], start_of_document)"
_ATTEND = "update, keys, values = attention_layer(layer, normed, cache, memory, config)"
_INSERT = "new_memories[i] = memories.insert(memory, keys, values, num_tokens)"
_SEARCH = "slots = find_slots(queries, memory, config)"
_COMBINE = 'output = attention.combine(retrieved, output, layer["gate_bias"])'
_READ = (
    "retrieved = attention.memory_attention(\n"
    '            queries, memory, slots, layer["attention_scale"]\n'
    "        )"
)

MUTANTS = [
    _model(
        "insertion comes before search",
        "MEM-4",
        _ATTEND,
        _ATTEND + "\n        if memory is not None:\n"
        "            early = memories.insert(memory, keys, values, num_tokens)\n"
        "            update, keys, values = attention_layer(\n"
        "                layer, normed, cache, early, config\n"
        "            )",
    ),
    _model(
        "reset comes after search",
        "ORD-1",
        _RESET,
        "memory = state.memories[i]",
    ),
    _model(
        "reset comes between search and insertion",
        "MEM-5",
        _ATTEND,
        _ATTEND.replace("memory, config", "state.memories.get(i), config"),
    ),
    Mutant(
        "memory layers count from one",
        "MOD-4",
        "model",
        "        if i in state.memories:\n            " + _RESET,
        "        if (i + 1) % config.num_layers in state.memories:\n"
        "            owner = (i + 1) % config.num_layers\n"
        "            layer['gate_bias'] = parameters[f'layers.{owner}.gate_bias']\n"
        "            " + _RESET.replace("[i]", "[owner]"),
        also=((_INSERT, _INSERT.replace("[i]", "[owner]")),),
    ),
    _model(
        "memory layers share one memory",
        "MOD-4",
        "return logits, State(tuple(new_caches), new_memories)",
        "last = new_memories[max(new_memories)] if new_memories else None\n"
        "    return logits, State(\n"
        "        tuple(new_caches), dict.fromkeys(new_memories, last)\n"
        "    )",
    ),
    _model(
        "only the first memory layer has a memory",
        "MOD-4",
        "        if memory is not None:\n            " + _INSERT,
        "        if memory is not None:\n"
        "            new_memories[i] = memory\n"
        "        if memory is not None and i == min(state.memories):\n            "
        + _INSERT,
    ),
    _model(
        "memory output shrinks with memory_size",
        "MOD-5",
        _COMBINE,
        "retrieved = retrieved * np.float32(16 / max(config.memory_size, 1))\n        "
        + _COMBINE,
    ),
    _model(
        "the top_k best are read with weights over memory_size",
        "MOD-5",
        _COMBINE,
        "retrieved = retrieved * np.float32(16 / config.top_k)\n        " + _COMBINE,
    ),
    _model(
        "memory is searched with keys",
        "QKN-1",
        _SEARCH + "\n        " + _READ,
        _SEARCH + "\n        " + _READ.replace("queries, memory", "keys, memory"),
    ),
    _model(
        "memory keeps keys for values",
        "QKN-1",
        _INSERT,
        "new_memories[i] = memories.insert(memory, keys, keys, num_tokens)",
    ),
    _model(
        "stored keys carry the scale",
        "QKN-3",
        _INSERT,
        'keys = keys * np.abs(layer["attention_scale"])[:, None]\n            '
        + _INSERT,
    ),
    Mutant(
        "stored keys are not normalized",
        "MEM-7",
        "model",
        _ATTEND,
        _ATTEND + "\n        raw = np.einsum("
        "'bqe,ehd->bqhd', normed, layer['key_kernel'])",
        also=((_INSERT, _INSERT.replace("keys", "raw")),),
    ),
    _model(
        "stored values are normalized",
        "MEM-7",
        _INSERT,
        "values = attention.normalize(values)\n            " + _INSERT,
    ),
    Mutant(
        "new parameters empty the memory",
        "MEM-7",
        "reference_adapter",
        _REPLACE,
        "empty = reference_model.model.init_state(model_state.config, 2, self.dtype)\n"
        "        return dataclasses.replace(\n"
        "            model_state, parameters=self._cast_all(parameters), state=empty\n"
        "        )",
    ),
    Mutant(
        "new parameters rescale what was stored",
        "MEM-7",
        "reference_adapter",
        _REPLACE,
        "memories = {}\n"
        "        for i, stored in model_state.state.memories.items():\n"
        '            name = f"layers.{i}.value_kernel"\n'
        "            ratio = np.linalg.norm(parameters[name]) / np.linalg.norm(\n"
        "                model_state.parameters[name]\n"
        "            )\n"
        "            memories[i] = dataclasses.replace(\n"
        "                stored, values=stored.values * self.dtype(1.01 * ratio)\n"
        "            )\n"
        "        state = dataclasses.replace(model_state.state, memories=memories)\n"
        "        return dataclasses.replace(\n"
        "            model_state, parameters=self._cast_all(parameters), state=state\n"
        "        )",
    ),
    _model(
        "a pair enters memory when it leaves the cache",
        "MEM-9",
        _INSERT,
        "new_memories[i] = memories.insert(\n"
        "                memory, cache.keys, cache.values, cache.num_cached\n"
        "            )",
    ),
    _model(
        "one softmax over memory and local context",
        "GATE-1",
        _COMBINE,
        "far, _ = attention.gather(memory, slots)\n"
        '        logits = np.einsum("bqhd,bqhnd->bqhn", queries, far)\n'
        '        logits = logits * np.abs(layer["attention_scale"])[:, None]\n'
        "        there = slots != search.NO_SLOT\n"
        "        mass = np.where(there, np.exp(logits), 0).sum(-1, keepdims=True)\n"
        "        output = (mass * retrieved + output) / (mass + 1)",
    ),
    _model(
        "the position bias reaches memory",
        "GATE-1",
        _READ,
        'bias = layer["relative_bias"][:, None, : queries.shape[-1]]\n'
        "        "
        + _READ.replace("queries, memory", "queries + bias.swapaxes(0, 1), memory"),
    ),
    _model(
        "no gate in a first segment",
        "GATE-2",
        _COMBINE,
        "if (slots != search.NO_SLOT).any():\n            " + _COMBINE,
    ),
    _model(
        "the gate applies to logits",
        "GATE-3",
        _READ + "\n        " + _COMBINE,
        'gate = attention.sigmoid(layer["gate_bias"])\n'
        "        "
        + _READ.replace('layer["attention_scale"]', 'gate * layer["attention_scale"]')
        + "\n        output = (retrieved + output) / 2",
    ),
    _model(
        "one gate applies after the projection",
        "GATE-3",
        _COMBINE,
        "gate = np.full_like(layer['gate_bias'], layer['gate_bias'].mean())\n"
        "        output = attention.combine(retrieved, output, gate)",
    ),
    _model(
        "the cache is one segment late",
        "LOC-2",
        "new_caches.append(caches.append(cache, keys, values, num_tokens))",
        "new_caches.append(caches.append(cache, cache.keys, cache.values, 0 * "
        "num_tokens))",
    ),
    _model(
        "padding enters the memory of the model",
        "SEG-4",
        _INSERT,
        "full = np.full_like(num_tokens, keys.shape[1])\n"
        "            new_memories[i] = memories.insert(memory, keys, values, full)",
    ),
    _model(
        "rows take the first row's queries",
        "SEG-2",
        _SEARCH,
        "slots = find_slots(0 * queries + queries[:1], memory, config)",
    ),
]
