"""What each rule of SPEC.md says, in one line, for reports."""

import re
from typing import Final

RULES: Final[dict[str, str]] = {
    "SEG-1": "segments hold one document each and are padded on the right",
    "SEG-2": "a row reads whole documents in order, apart from other rows",
    "SEG-3": "every token of a document but its first is predicted exactly once",
    "SEG-4": "padding is never attended to, inserted or predicted",
    "SEG-5": "perplexity is exp(nats / predicted tokens), from a fresh state",
    "MOD-1": "pre-norm decoder, unscaled tied embedding, relu, logits / sqrt(E)",
    "MOD-2": "rms_norm divides by sqrt(mean of squares + 1e-6), then gain",
    "MOD-3": "initial values have the stated distributions",
    "MOD-4": "memory_layers are 0-based, and each owns a memory",
    "MOD-5": "parameters do not depend on memory_size or top_k",
    "MOD-6": "parameters have the agreed names and shapes",
    "QKN-1": "one set of queries, keys, values serves local context and memory",
    "QKN-2": "queries and keys are normalized with epsilon 1e-6, values are not",
    "QKN-3": "|attention_scale| multiplies logits, never keys or search scores",
    "LOC-1": "a query sees at most local_window positions, strictly before itself",
    "LOC-2": "the local context is the cache, then the segment",
    "LOC-3": "what the cache does not hold takes no softmax weight",
    "LOC-4": "local logits are (q.k + position bias) times the scale",
    "LOC-5": "the 32 distance buckets are T5's, unidirectional, up to 128",
    "LOC-6": "a query that sees nothing reads zeros from local attention",
    "LOC-7": "no gradient flows into cached keys and values",
    "MEM-1": "each row, head and layer keeps its newest memory_size pairs",
    "MEM-2": "pair t since the last reset is in slot t mod memory_size",
    "MEM-3": "validity is counted, never read off a value",
    "MEM-4": "a segment never retrieves itself",
    "MEM-5": "a reset comes before the queries and touches its row alone",
    "MEM-6": "only the first num_tokens pairs of a row are inserted",
    "MEM-7": "normalized keys and raw values are stored as computed then",
    "MEM-8": "no gradient reaches stored pairs; it does reach queries and scale",
    "MEM-9": "a pair may be in the cache and in the memory at once",
    "MEM-10": "pairs are stored in float32, or in bfloat16 to nearest even",
    "MEM-11": "a NaN stored before a reset is never seen after it",
    "KNN-1": "search finds the largest inner products, ties to the lower slot",
    "KNN-2": "with fewer than top_k valid slots the tail is -1 and takes no part",
    "KNN-3": "keys and queries that are not finite are refused by name and index",
    "BKT-1": "bucketed search is the top_k of each bucket's winners",
    "BKT-2": "the buckets chosen are expected to reach recall_target",
    "ANN-1": "an approximate search is sound: valid slots, once each, in order",
    "ANN-2": "an approximate search reaches its recall_target",
    "GATE-1": "memory attention is a softmax of its own over retrieved pairs",
    "GATE-2": "an empty memory reads zeros, and the gate still applies",
    "GATE-3": "sigmoid(gate_bias) weighs memory, the rest local, head by head",
    "PRE-1": "grouped query heads share a key-value head's memory",
    "PRE-2": "keys are stored unrotated, queries rotated by memory_distance",
    "PRE-3": "local positions count within the local context",
    "PRE-4": "the document's first num_sinks positions stay visible",
    "PRE-5": "combination is gated, or one joint softmax",
    "PRE-6": "under a joint softmax a pair enters memory when it leaves the cache",
    "PRE-7": "pre-norm decoder, SwiGLU, no bias, no factor on the logits",
    "PRE-8": "queries and keys are rotated in halves, by base rope_base",
    "PRE-9": "a query sees itself and local_window positions before it",
    "PRE-10": "parameters of the Llama family have the agreed names and shapes",
    "ORD-1": "once per segment: reset, search, attend, insert",
    "GEN-1": "decoding token by token gives the logits of whole segments",
    "CKP-1": "continuing from a saved state equals never having stopped",
    "CKP-2": "evaluation never disturbs training",
}
RULE_ID: Final = re.compile(
    r"\b(?:SEG|MOD|QKN|LOC|MEM|KNN|BKT|ANN|GATE|PRE|ORD|GEN|CKP)-\d+\b"
)

# From the ground up. A fault low down shows in everything above it, so reports
# name the lowest level that is broken first.
LEVELS: Final = (
    "memory",
    "search",
    "attention",
    "gradients",
    "model",
    "generation",
    "resume",
)
