"""Small things that several tests draw on."""

import dataclasses

import numpy as np

from memorizing_reference import memory, model, parameters, segments
from memorizing_reference.config import ModelConfig, PretrainedConfig

# No two sizes alike, so that no axis can pass for another. Segments of 7 neither
# divide the memory of 10 nor the cache of 4.
SMALL = ModelConfig(
    vocab_size=11,
    num_layers=3,
    model_dim=6,
    num_heads=2,
    head_dim=5,
    mlp_dim=8,
    segment_length=7,
    local_window=9,
    cache_length=4,
    memory_layers=(0, 2),
    memory_size=10,
    top_k=3,
)

# The same for the Llama family. 6 query heads share 2 heads of 4.
PRETRAINED = PretrainedConfig(
    vocab_size=11,
    num_layers=3,
    model_dim=5,
    num_heads=6,
    head_dim=4,
    mlp_dim=8,
    segment_length=7,
    local_window=10,
    cache_length=4,
    memory_layers=(0, 2),
    memory_size=10,
    top_k=3,
    num_key_value_heads=2,
    rope_base=100.0,
    norm_epsilon=1e-5,
    tied_embedding=True,
    num_sinks=3,
    memory_distance=12,
    combination="joint",
)

# float64 leaves about 1e-15 per operation; matrix products may sum in another order
# when a shape differs.
NEAR = dict(rtol=0, atol=1e-12)


def grid(rng, *shape, dtype=np.float32, largest=2.0):
    """Draws multiples of 1/8: inner products are exact, so ties are ties."""
    steps = round(8 * largest)
    return (rng.integers(-steps, steps + 1, shape) / 8).astype(dtype)


def filled(rng, batch, num_written, memory_size, num_heads, head_dim, dtype=np.float32):
    """Returns a memory whose rows hold `num_written` (an int or one per row) pairs."""
    num_written = np.broadcast_to(np.asarray(num_written), (batch,))
    shape = (batch, int(num_written.max()), num_heads, head_dim)
    state = memory.empty(batch, memory_size, num_heads, head_dim, computed_in=dtype)
    keys, values = grid(rng, *shape, dtype=dtype), grid(rng, *shape, dtype=dtype)
    return memory.insert(state, keys, values, num_written)


def lively_parameters(config, seed, dtype=np.float64):
    """Returns initial parameters, stirred so that every one of them matters."""
    rng = np.random.default_rng(seed + 1)
    result = parameters.init(config, seed, dtype)
    for name, array in result.items():
        if name.endswith(("_gain", "_scale", "gate_bias")):
            noise = rng.normal(size=array.shape)
            result[name] = (array + 0.5 * noise).astype(dtype)
        if name.endswith("attention_scale"):
            # Peaked enough for retrieval to matter, and of both signs (QKN-3).
            result[name] = (result[name] * np.array([5.0, -7.0])).astype(dtype)
    return result


def read(params, segments, config, state=None, dtype=np.float64):
    """Feeds `(tokens, start, num_tokens)` triples; returns logits and the state."""
    if state is None:
        state = model.init_state(config, len(segments[0][0]), dtype)
    logits = []
    for tokens, start, num_tokens in segments:
        step, state = model.forward(params, state, tokens, start, num_tokens, config)
        logits.append(step)
    return logits, state


def replace(config, **changes):
    return dataclasses.replace(config, **changes)


def documents(*lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, SMALL.vocab_size, n) for n in lengths]


def read_documents(params, config, docs, batch=1):
    """Returns the logits of each position of each document, in order of reading."""
    state = model.init_state(config, batch, np.float64)
    rows = [[] for _ in range(batch)]
    for s in segments.stream(docs, batch=batch, segment_length=config.segment_length):
        logits, state = model.forward(
            params, state, s.tokens, s.start_of_document, s.num_tokens, config
        )
        for row in range(batch):
            rows[row].append(logits[row, : s.num_tokens[row]])
    return [np.concatenate(row) for row in rows]
