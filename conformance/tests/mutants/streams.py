"""Faults of data, evaluation, decoding and checkpoints."""

from mutants.mutant import Mutant


def _segments(name: str, breaks: str, old: str, new: str) -> Mutant:
    return Mutant(name, breaks, "segments", old, new)


def _perplexity(name: str, breaks: str, old: str, new: str) -> Mutant:
    return Mutant(name, breaks, "perplexity", old, new)


def _decoding(name: str, breaks: str, old: str, new: str) -> Mutant:
    return Mutant(name, breaks, "reference_model", old, new)


def _files(name: str, breaks: str, old: str, new: str) -> Mutant:
    return Mutant(name, breaks, "reference_files", old, new)


_TARGETS = "targets = document[position + 1 : position + 1 + segment_length]"
_UNREAD = "unread = iter([np.asarray(d) for d in documents if len(d)])"
_START = "segment.start_of_document[row] = document is not None"
_NATS = "nats += float(token_losses(logits, segment.targets)[has_target].sum())"

MUTANTS = [
    _segments(
        "a segment runs on into the next document",
        "SEG-1",
        _UNREAD,
        "unread = iter([np.concatenate(list(documents))])",
    ),
    _segments(
        "padding stands on the left",
        "SEG-1",
        "segment.tokens[row, : len(tokens)] = tokens",
        "segment.tokens[row, segment_length - len(tokens) :] = tokens",
    ),
    _segments(
        "a short last segment is dropped",
        "SEG-1",
        "if document is None or position[row] >= len(document):",
        "if document is None or position[row] + segment_length > len(document) > "
        "position[row] > 0 or position[row] >= len(document):",
    ),
    _segments(
        "every segment starts a document",
        "SEG-2",
        "                _fill(segment, row, document, position[row])",
        "                segment.start_of_document[row] = True\n"
        "                _fill(segment, row, document, position[row])",
    ),
    _segments("no segment starts a document", "SEG-2", _START, "pass"),
    Mutant(
        "only the first document of a row is marked",
        "SEG-2",
        "segments",
        _START,
        "segment.start_of_document[row] = document is not None and not started[row]\n"
        "                started[row] = True",
        also=((_UNREAD, _UNREAD + "\n    started = [False] * batch"),),
    ),
    Mutant(
        "every row reads every document",
        "SEG-2",
        "segments",
        "document = next(unread, None)",
        "document = next(unread[row], None)",
        also=(
            (
                _UNREAD,
                "unread = [\n"
                "        iter([np.asarray(d) for d in documents if len(d)])\n"
                "        for _ in range(batch)\n"
                "    ]",
            ),
        ),
    ),
    _segments(
        "the last document is dropped",
        "SEG-2",
        _UNREAD,
        "unread = iter([np.asarray(d) for d in documents if len(d)][:-1])",
    ),
    _segments(
        "a segment's first token is never a target",
        "SEG-3",
        _TARGETS,
        "targets = document[position + 1 : position + segment_length]",
    ),
    _segments(
        "targets are the tokens themselves",
        "SEG-3",
        _TARGETS,
        "targets = document[position : position + segment_length][:-1]",
    ),
    _segments(
        "a segment begins with the last token of the one before",
        "SEG-3",
        "position[row] += segment_length",
        "position[row] += max(1, segment_length - 1)",
    ),
    _segments(
        "padding has targets",
        "SEG-4",
        "segment.num_targets[row] = len(targets)",
        "segment.num_targets[row] = len(tokens)",
    ),
    _decoding(
        "the loss counts padding",
        "SEG-4",
        "has_target = np.arange(tokens.shape[1])[None, :] < num_targets[:, None]",
        "has_target = np.ones(tokens.shape, bool)",
    ),
    _perplexity(
        "perplexity is a mean over segments",
        "SEG-5",
        _NATS,
        "nats += float(\n"
        "            token_losses(logits, segment.targets)[has_target].mean()\n"
        "        ) * int(segment.num_targets.sum() > 0) * segment.num_targets.max()",
    ),
    _perplexity(
        "perplexity counts tokens read",
        "SEG-5",
        "predicted += int(segment.num_targets.sum())",
        "predicted += int(segment.num_tokens.sum())",
    ),
    _perplexity(
        "perplexity is a power of two",
        "SEG-5",
        "return float(np.exp(nats / predicted))",
        "return float(np.exp2(nats / predicted))",
    ),
    _perplexity(
        "evaluation forgets between segments",
        "SEG-5",
        "        logits, state = kind.forward(",
        "        logits, _ = kind.forward(",
    ),
    _decoding(
        "each token enters memory at once",
        "GEN-1",
        "    complete = position + 1 == length",
        "    starts, position = start_of_document, np.zeros_like(position)\n"
        "    tokens = np.zeros_like(tokens)\n"
        "    tokens[:, 0] = token\n"
        "    logits, state = family.forward(\n"
        "        parameters, model_state.state, tokens, starts, position + 1, config\n"
        "    )\n"
        "    model_state = dataclasses.replace(model_state, state=state)\n"
        "    return logits[row, position], model_state\n"
        "    complete = position + 1 == length",
    ),
    _decoding(
        "the grid of segments is not the document's",
        "GEN-1",
        "position = np.where(start_of_document, 0, model_state.num_decoded)",
        "position = model_state.num_decoded",
    ),
    _decoding(
        "pairs enter memory one token late",
        "GEN-1",
        "complete = position + 1 == length",
        "complete = position == 0",
    ),
    _decoding(
        "one row's full segment closes all rows'",
        "GEN-1",
        "complete = position + 1 == length",
        "complete = (position + 1 == length).any() | (position < 0)",
    ),
    _decoding(
        "the start of a document is forgotten",
        "GEN-1",
        "starts = model_state.starts | start_of_document",
        "starts = start_of_document",
    ),
    _files(
        "a saved memory loses its count",
        "CKP-1",
        'f"{prefix}.num_written": memory.num_written,',
        'f"{prefix}.num_written": np.minimum(memory.num_written, memory.memory_size),',
    ),
    _files(
        "a saved memory forgets that it is bfloat16",
        "CKP-1",
        'f"{prefix}.dtype": np.array(memory.dtype),',
        'f"{prefix}.dtype": np.array("float32"),',
    ),
    _files(
        "a saved model is rounded",
        "CKP-1",
        'arrays |= memory_arrays(memory, f"memories.{i}")',
        'arrays |= memory_arrays(memory, f"memories.{i}")\n'
        '        arrays[f"memories.{i}.keys"] = memory.keys.astype(np.float16)',
    ),
    _files(
        "a saved model loses its caches",
        "CKP-1",
        'arrays[f"caches.{i}.{field.name}"] = getattr(cache, field.name)',
        'arrays[f"caches.{i}.{field.name}"] = 0 * getattr(cache, field.name)',
    ),
    _files(
        "a saved model loses the segment being decoded",
        "CKP-1",
        '"num_decoded": model_state.num_decoded,',
        '"num_decoded": 0 * model_state.num_decoded,',
    ),
    Mutant(
        "evaluation empties the caches in training",
        "CKP-2",
        "reference_adapter",
        "        return perplexity.perplexity(nats, predicted), predicted",
        "        self.evaluated = True\n"
        "        return perplexity.perplexity(nats, predicted), predicted",
        also=(
            (
                "        logits, state = family.forward(",
                "        if vars(self).pop('evaluated', False):\n"
                "            start_of_document = ~np.zeros_like(start_of_document)\n"
                "        logits, state = family.forward(",
            ),
        ),
    ),
]
