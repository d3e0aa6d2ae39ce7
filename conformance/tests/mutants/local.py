"""Faults of local attention, its positions, and the cache."""

from mutants.mutant import Mutant


def _attention(name: str, breaks: str, old: str, new: str) -> Mutant:
    return Mutant(name, breaks, "attention", old, new)


def _positions(name: str, breaks: str, old: str, new: str) -> Mutant:
    return Mutant(name, breaks, "positions", old, new)


def _cache(name: str, breaks: str, old: str, new: str) -> Mutant:
    return Mutant(name, breaks, "cache", old, new)


_NEAR = "near = (distance >= 1) & (distance <= local_window)"
_PRESENT = "present = column[None, :] >= cache_length - num_cached[:, None]"
_BIAS = "logits = score + positions.bias(relative_bias, distance)[None]"
_SCALED = "    logits = logits * np.abs(attention_scale)[None, None, :, None]"
_COLUMN = "column = num_tokens[:, None] + np.arange(cache_length)[None, :]"
_COUNT = "np.minimum(cache_length, cache.num_cached + num_tokens),"

MUTANTS = [
    _attention(
        "a query sees itself",
        "LOC-1",
        _NEAR,
        "near = (distance >= 0) & (distance <= local_window)",
    ),
    _attention(
        "the window ends one too soon",
        "LOC-1",
        _NEAR,
        "near = (distance >= 1) & (distance < local_window)",
    ),
    _attention(
        "the window ends one too late",
        "LOC-1",
        _NEAR,
        "near = (distance >= 1) & (distance <= local_window + 1)",
    ),
    _attention("there is no window", "LOC-1", _NEAR, "near = distance >= 1"),
    _attention(
        "the future is visible", "LOC-1", _NEAR, "near = abs(distance) <= local_window"
    ),
    _attention(
        "the cache is not seen",
        "LOC-2",
        _PRESENT,
        "present = (column >= cache_length) & (num_cached[:, None] >= 0)",
    ),
    _attention(
        "the empty cache is visible",
        "LOC-3",
        _PRESENT,
        "present = (column >= 0) & (num_cached[:, None] >= 0)",
    ),
    _attention(
        "the cache is filled from the left",
        "LOC-3",
        _PRESENT,
        "present = (column < num_cached[:, None]) | (column >= cache_length)",
    ),
    _attention(
        "rows share the cache length of the first",
        "LOC-3",
        _PRESENT,
        "num_cached = np.full_like(num_cached, num_cached[0])\n    " + _PRESENT,
    ),
    _attention(
        "the bias is not scaled",
        "LOC-4",
        _BIAS + "\n" + _SCALED,
        "logits = score * np.abs(attention_scale)[None, None, :, None]\n"
        "    logits = logits + positions.bias(relative_bias, distance)[None]",
    ),
    _attention("there is no position bias", "LOC-4", _BIAS, "logits = score"),
    _attention(
        "local logits take the sign of the scale",
        "QKN-3",
        _BIAS + "\n" + _SCALED,
        _BIAS + "\n    logits = logits * attention_scale[None, None, :, None]",
    ),
    _attention("local logits are not scaled", "LOC-4", _BIAS + "\n" + _SCALED, _BIAS),
    _attention(
        "the bias is of the distance less one",
        "LOC-5",
        _BIAS,
        "logits = score + positions.bias(relative_bias, distance - 1)[None]",
    ),
    _attention(
        "who sees nothing sees everything",
        "LOC-6",
        "    weights = np.exp(logits - np.where(np.isfinite(peak), peak, 0.0))",
        "    logits = np.where(np.isfinite(peak), logits, 0.0)\n"
        "    weights = np.exp(logits - np.where(np.isfinite(peak), peak, 0.0))",
    ),
    _positions(
        "buckets in two directions",
        "LOC-5",
        "exact = NUM_BUCKETS // 2",
        "exact = NUM_BUCKETS // 4",
    ),
    _positions(
        "buckets up to distance 256",
        "LOC-5",
        "MAX_DISTANCE = 128",
        "MAX_DISTANCE = 256",
    ),
    _positions(
        "buckets up to distance 127",
        "LOC-5",
        "MAX_DISTANCE = 128",
        "MAX_DISTANCE = 127",
    ),
    _positions("buckets are rounded", "LOC-5", "np.floor(steps)", "np.rint(steps)"),
    _positions(
        "distance 17 is still exact",
        "LOC-5",
        "np.where(distance < exact,",
        "np.where(distance <= exact + 1,",
    ),
    _positions(
        "the last bucket is never used",
        "LOC-5",
        "np.minimum(NUM_BUCKETS - 1,",
        "np.minimum(NUM_BUCKETS - 2,",
    ),
    _positions(
        "heads share the bias of the first",
        "LOC-4",
        "return relative_bias[:, bucket",
        "relative_bias = np.repeat(relative_bias[:1], len(relative_bias), axis=0)\n"
        "    return relative_bias[:, bucket",
    ),
    _cache(
        "the cache crosses documents",
        "LOC-3",
        "num_cached = np.where(start_of_document, 0, cache.num_cached)",
        "num_cached = cache.num_cached",
    ),
    _cache(
        "a reset of one row empties all caches",
        "SEG-2",
        "np.where(start_of_document, 0, cache.num_cached)",
        "np.where(start_of_document.any(), 0, cache.num_cached)",
    ),
    _cache(
        "the cache keeps the oldest positions",
        "LOC-2",
        _COLUMN,
        "column = 0 * num_tokens[:, None] + np.arange(cache_length)[None, :]",
    ),
    _cache(
        "the cache holds only the last segment",
        "LOC-2",
        _COUNT,
        "np.minimum(cache_length, num_tokens),",
    ),
    _cache(
        "padding enters the cache",
        "SEG-4",
        _COLUMN,
        "column = keys.shape[1] + np.arange(cache_length)[None, :] + 0 * row",
    ),
    _cache(
        "an idle row loses its cache",
        "SEG-4",
        _COUNT,
        "np.where(\n"
        "            num_tokens > 0,\n"
        "            np.minimum(cache_length, cache.num_cached + num_tokens),\n"
        "            0,\n"
        "        ),",
    ),
]
