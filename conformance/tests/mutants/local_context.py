"""Faults of what a pre-trained model sees around it: places, sinks, window."""

from mutants.mutant import Mutant


def _context(name: str, breaks: str, old: str, new: str) -> Mutant:
    return Mutant(name, breaks, "local_context", old, new)


_FIRST = "first = np.clip(cache_length + num_sinks - sinks.num_read, 0, num_tokens)"
_PLACE = "place=np.where(position < num_sinks, position, position - dropped[:, None])"
_NEAR = "near = (query - key <= local_window) | (key < num_sinks)"
_PRESENT = "present = np.concatenate([sink < oldest, recent >= 0], axis=1)"
_KEEP = "new_keys[row, first:last] = keys[row, : last - first]"

MUTANTS = [
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
]
