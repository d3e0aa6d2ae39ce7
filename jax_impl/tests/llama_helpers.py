"""A small pre-trained model, and an independent one to compare it with."""

import json
import math
import shutil
import string
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from memorizing_jax import llama_model, parameters
from memorizing_jax.llama_config import LlamaConfig

GOLDEN = Path(__file__).parent / "llama"
MODELS = ("grouped", "every_head", "one_head", "mistral", "bfloat16")

# No two sizes alike. Segments of 5 divide neither the cache nor the memory.
SMALL = LlamaConfig(
    vocab_size=29,
    num_layers=3,
    model_dim=14,
    num_heads=6,
    num_key_value_heads=2,
    head_dim=4,
    mlp_dim=9,
    rope_base=50.0,
    norm_epsilon=1e-3,
    tied_embedding=False,
    max_positions=64,
    memory_layers=(0, 2),
    segment_length=5,
    cache_length=7,
    local_window=11,
    num_sinks=3,
    memory_size=8,
    top_k=4,
    memory_distance=6,
    search="exact",
)

# At the command line, for models of `make_model`.
READING = (
    "--segment-length=8",
    "--cache-length=6",
    "--num-sinks=2",
    "--memory-distance=5",
    "--top-k=3",
    "--search=exact",
    "--quiet",
)
# The alphabet of byte-level BPE for a space and for the end of a line.
ALPHABET = [*string.ascii_letters, "\u0120", "\u010a"]

forward = jax.jit(llama_model.forward, static_argnames="config")


def make_model(folder):
    """Returns the folder of a model that knows letters, spaces and lines."""
    shutil.copytree(GOLDEN / "grouped", folder)
    cut = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    vocabulary = {letter: i for i, letter in enumerate(ALPHABET)}
    specification = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": cut | {"use_regex": True},
        "decoder": cut,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }
    (folder / "tokenizer.json").write_text(json.dumps(specification))
    return folder


def make_documents(folder):
    """Returns the folder, with two documents of 90 and 70 tokens, and a hidden file."""
    rng = np.random.default_rng(0)
    for name, length in (("long.txt", 90), ("nested/short.txt", 70)):
        (folder / name).parent.mkdir(exist_ok=True)
        letters = rng.choice(list(string.ascii_letters[:7] + " \n"), length)
        (folder / name).write_text("".join(letters))
    (folder / ".hidden").write_bytes(b"\xff")
    return folder


def draw_parameters(config, seed=0):
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(
            (1.0 if name.endswith("_gain") else 0.0)
            + rng.standard_normal(shape) / math.sqrt(max(1, shape[0]) ** 0.5),
            jnp.float32,
        )
        for name, shape in parameters.shapes(config).items()
    }


def read(params, config, tokens, start=True, state=None):
    """Reads one row's tokens, segment by segment; returns logits and the state."""
    length = config.segment_length
    if state is None:
        state = llama_model.init_state(config, 1)
    logits = []
    for first in range(0, len(tokens), length):
        part = tokens[first : first + length]
        padded = np.zeros((1, length), np.int32)
        padded[0, : len(part)] = part
        found, state, _ = forward(
            params,
            state,
            padded,
            np.array([start and first == 0]),
            np.array([len(part)], np.int32),
            config=config,
        )
        logits.append(np.asarray(found)[0, : len(part)])
    return np.concatenate(logits), state


class Plain:
    """The model in NumPy, position by position; it keeps every pair of a document.

    Written from the rules, with nothing in common with the port but parameter names.
    """

    def __init__(self, params, config):
        self.p = {name: np.asarray(x, np.float64) for name, x in params.items()}
        self.c = config

    def rotate(self, x, place):
        half = self.c.head_dim // 2
        angle = place * self.c.rope_base ** (-np.arange(half) / half)
        a, b = x[..., :half], x[..., half:]
        cos, sin = np.cos(angle), np.sin(angle)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    def norm(self, x, gain):
        return x / np.sqrt((x * x).mean() + self.c.norm_epsilon) * gain

    def logits(self, tokens):
        """Returns the logits of one document, `[num_tokens, vocab_size]`."""
        config, kept = self.c, [([], []) for _ in range(self.c.num_layers)]
        result = []
        for t, token in enumerate(tokens):
            x = self.p["embedding"][token]
            for i in range(config.num_layers):
                layer = {
                    name.split(".")[-1]: value
                    for name, value in self.p.items()
                    if name.startswith(f"layers.{i}.")
                }
                n = self.norm(x, layer["attention_norm_gain"])
                kept[i][0].append(np.einsum("e,ehd->hd", n, layer["key_kernel"]))
                kept[i][1].append(np.einsum("e,ehd->hd", n, layer["value_kernel"]))
                queries = np.einsum("e,ehd->hd", n, layer["query_kernel"])
                read = [
                    self.attend(layer, i, h, queries[h], t, *kept[i])
                    for h in range(config.num_heads)
                ]
                x = x + np.einsum("hd,hde->e", np.array(read), layer["output_kernel"])
                n = self.norm(x, layer["mlp_norm_gain"])
                gate, up = n @ layer["mlp_gate_kernel"], n @ layer["mlp_up_kernel"]
                x = x + (gate / (1 + np.exp(-gate)) * up) @ layer["mlp_out_kernel"]
            output = "embedding" if config.tied_embedding else "output_embedding"
            x = self.norm(x, self.p["final_norm_gain"])
            result.append(self.p[output] @ x)
        return np.array(result)

    def attend(self, layer, i, h, query, t, keys, values):
        config, scale = self.c, 1 / math.sqrt(self.c.head_dim)
        g = h // (config.num_heads // config.num_key_value_heads)
        before = t // config.segment_length * config.segment_length
        oldest = before - config.cache_length
        dropped = max(0, oldest - config.num_sinks)

        def place(j):
            return j if j < config.num_sinks else j - dropped

        local = [
            j
            for j in range(t + 1)
            if j < config.num_sinks or j >= max(oldest, t - config.local_window)
        ]
        turned = self.rotate(query, place(t))
        near = [turned @ self.rotate(keys[j][g], place(j)) * scale for j in local]
        joint = config.combination == "joint"
        past = range(config.num_sinks, max(oldest, 0)) if joint else range(before)
        far, chosen = [], []
        if i in config.memory_layers and config.memory_size:
            turned = self.rotate(query, config.memory_distance)
            newest = list(past)[-config.memory_size :]
            scores = {j: turned @ keys[j][g] for j in newest}
            chosen = sorted(newest, key=lambda j: -scores[j])[: config.top_k]
            far = [scores[j] * scale for j in chosen]
        if joint:
            weights = np.exp(np.array(near + far))
            weights /= weights.sum()
            return weights @ np.array([values[j][g] for j in local + chosen])
        result = self.sum(near, local, values, g)
        if "gate_bias" in layer:
            gate = 1 / (1 + np.exp(-layer["gate_bias"][h]))
            read = self.sum(far, chosen, values, g) if chosen else 0.0
            result = gate * read + (1 - gate) * result
        return result

    def sum(self, logits, which, values, g):
        weights = np.exp(np.array(logits))
        return weights @ np.array([values[j][g] for j in which]) / weights.sum()
