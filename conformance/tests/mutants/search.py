"""Faults of the search."""

from mutants.mutant import Mutant


def _search(name: str, breaks: str, old: str, new: str) -> Mutant:
    return Mutant(name, breaks, "search", old, new)


def _bucketed(name: str, breaks: str, old: str, new: str) -> Mutant:
    return Mutant(name, breaks, "bucketed_search", old, new, "BucketedReference")


_SCORE = 'score = np.einsum("bqhd,bshd->bqhs", queries, keys, optimize=True)'
_BEST = 'best_first = np.argsort(-score, axis=-1, kind="stable")[..., :top_k]'
_FOUND = "return np.where(best_first < num_valid, best_first, NO_SLOT)"
_HIDE = "return np.where(valid[:, None, None, :], score, -np.inf)"
_KEYS = "keys = np.where(valid[:, :, None, None], memory.keys, 0)"

MUTANTS = [
    _search(
        "zero keys count as empty",
        "MEM-3",
        _HIDE,
        "there = np.moveaxis(keys.any(axis=-1), 1, 2)[:, None]\n"
        "    return np.where(there, score, -np.inf)",
    ),
    _search(
        "keys that sum to zero count as empty",
        "MEM-3",
        _HIDE,
        "there = np.moveaxis(keys.sum(axis=-1) != 0, 1, 2)[:, None]\n"
        "    return np.where(there, score, -1e6)",
    ),
    _search(
        "what is not valid is multiplied by zero",
        "MEM-11",
        _KEYS,
        "keys = memory.keys * valid[:, :, None, None]",
    ),
    _search(
        "ties go to the higher slot",
        "KNN-1",
        _BEST,
        'best_first = np.argsort(score, axis=-1, kind="stable")\n'
        "    best_first = best_first[..., ::-1][..., :top_k]",
    ),
    _search(
        "slots come in their own order",
        "KNN-1",
        _FOUND,
        "best_first = np.sort(best_first, axis=-1)\n    " + _FOUND,
    ),
    _search(
        "the worst come first",
        "KNN-1",
        _BEST,
        _BEST.replace("-score", "np.where(np.isfinite(score), score, np.inf)"),
    ),
    _search(
        "scores are rounded to bfloat16",
        "KNN-1",
        _SCORE,
        _SCORE + "\n    from memorizing_reference.memory import round_to_bfloat16\n"
        "    score = round_to_bfloat16(score)",
    ),
    _search(
        "queries are rounded to bfloat16",
        "KNN-1",
        _SCORE,
        "from memorizing_reference.memory import round_to_bfloat16\n"
        "    queries = round_to_bfloat16(queries)\n    " + _SCORE,
    ),
    _search(
        "cosine instead of inner product",
        "KNN-1",
        _SCORE,
        "keys = keys / np.sqrt((keys**2).sum(axis=-1, keepdims=True) + 1e-6)\n    "
        + _SCORE,
    ),
    _search(
        "distance instead of inner product",
        "KNN-1",
        _SCORE,
        _SCORE
        + "\n    score = score - np.moveaxis((keys**2).sum(-1), 1, 2)[:, None] / 2",
    ),
    _search(
        "the sign of the inner product is lost",
        "KNN-1",
        _SCORE,
        _SCORE + "\n    score = np.abs(score)",
    ),
    _search(
        "heads search with the mean of their queries",
        "KNN-1",
        _SCORE,
        "queries = 0 * queries + queries.mean(axis=2, keepdims=True)\n    " + _SCORE,
    ),
    _search(
        "the last neighbor is never found",
        "KNN-1",
        _FOUND,
        "best_first[..., max(1, top_k - 1) :] = memory.memory_size\n    " + _FOUND,
    ),
    _search(
        "the tail repeats slot 0",
        "KNN-2",
        _FOUND,
        "return np.where(best_first < num_valid, best_first, 0)",
    ),
    _search(
        "the tail holds slots that are not valid",
        "KNN-2",
        _FOUND,
        "return best_first",
    ),
    _search(
        "slots are counted from the oldest pair",
        "MEM-2",
        _FOUND,
        "oldest = np.where(\n"
        "        memory.num_written > memory.memory_size,\n"
        "        memory.num_written % memory.memory_size,\n"
        "        0,\n"
        "    )[:, None, None, None]\n"
        "    best_first = np.where(\n"
        "        best_first < num_valid,\n"
        "        (best_first - oldest) % memory.memory_size,\n"
        "        best_first,\n"
        "    )\n"
        "    " + _FOUND,
    ),
    _search(
        "nothing is refused",
        "KNN-3",
        "    if bad.size:",
        "    if False:",
    ),
    _search(
        "infinity is not refused",
        "KNN-3",
        "bad = np.argwhere(~np.isfinite(array))",
        "bad = np.argwhere(np.isnan(array))",
    ),
    _search(
        "the refusal does not say where",
        "KNN-3",
        "{name}[{index}] is {array[index]}, must be finite",
        "{name} must be finite",
    ),
    _search(
        "the last bad index is named",
        "KNN-3",
        "for i in bad[0])",
        "for i in bad[-1])",
    ),
    _search(
        "stale slots are checked",
        "MEM-11",
        'require_finite("keys", keys)',
        'require_finite("keys", memory.keys)',
    ),
    _bucketed(
        "buckets are runs of slots",
        "BKT-1",
        "in_bucket = score[..., bucket::num_buckets]",
        "size = -(-memory.memory_size // num_buckets)\n"
        "        in_bucket = score[..., bucket * size : (bucket + 1) * size]",
    ),
    _bucketed(
        "buckets keep one winner too many",
        "BKT-1",
        "best_first[..., :winners_per_bucket]",
        "best_first[..., : winners_per_bucket + 1]",
    ),
    _bucketed(
        "survivors keep the order of their buckets",
        "BKT-1",
        'best_first = np.argsort(-score, axis=-1, kind="stable")[..., :top_k]',
        "order = np.where(survives, -np.sign(score + 1e-9), np.inf)\n"
        '    best_first = np.argsort(order, axis=-1, kind="stable")[..., :top_k]',
    ),
    _bucketed(
        "ties go to the higher slot of a bucket",
        "BKT-1",
        'best_first = np.argsort(-in_bucket, axis=-1, kind="stable")',
        'best_first = np.argsort(in_bucket, axis=-1, kind="stable")[..., ::-1]',
    ),
    _bucketed(
        "a survivor may be an empty slot",
        "ANN-1",
        "found = np.isfinite(np.take_along_axis(score, best_first, axis=-1))",
        "found = best_first >= 0",
    ),
    _bucketed(
        "an approximate list is not in order",
        "ANN-1",
        "    missing = [",
        "    best_first = best_first[..., ::-1]\n"
        "    found = found[..., ::-1]\n"
        "    missing = [",
    ),
    _bucketed(
        "a slot is found twice",
        "ANN-1",
        "    missing = [",
        "    best_first[..., 1:2] = best_first[..., :1]\n"
        "    found[..., 1:2] = found[..., :1]\n"
        "    missing = [",
    ),
    _bucketed(
        "half of the buckets are never searched",
        "ANN-2",
        "for bucket in range(min(num_buckets, memory.memory_size)):",
        "for bucket in range(0, min(num_buckets, memory.memory_size), 2):",
    ),
    _bucketed(
        "newest slots are not searched yet",
        "ANN-2",
        "    score = search.scores(queries, memory)\n    survives",
        "    score = search.scores(queries, memory)\n"
        "    score[..., memory.memory_size // 2 :] = -np.inf\n    survives",
    ),
    _bucketed(
        "a quarter of the buckets will do",
        "BKT-2",
        "    return num_buckets, winners\n",
        "    return max(1, num_buckets // 4), winners\n",
    ),
    _bucketed(
        "the recall formula forgets collisions of three",
        "BKT-2",
        "for r in range(winners_per_bucket + 1, min(top_k, size) + 1):",
        "for r in range(winners_per_bucket + 1, min(top_k, size, 2) + 1):",
    ),
]
