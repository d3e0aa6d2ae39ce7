"""The pre-trained model once more, from PRE-1 to PRE-10 alone: Python's own numbers.

As in `naive_model` a row keeps every pair of its document, and each query looks up by
absolute position what the rules let it see, locally or in memory. Rotation is a
product of complex numbers.
"""

import cmath
import math

from naive_model import add, dot, softmax_mix, times_matrix, to_bfloat16


def rms_norm(x, gain, epsilon):
    root = math.sqrt(dot(x, x) / len(x) + epsilon)
    return [u / root * g for u, g in zip(x, gain, strict=True)]


def rotate(x, place, base):
    half = len(x) // 2
    turned = [
        complex(x[d], x[d + half]) * cmath.exp(1j * place / base ** (2 * d / len(x)))
        for d in range(half)
    ]
    return [z.real for z in turned] + [z.imag for z in turned]


def silu(y):
    return y / (1.0 + math.exp(-y))


class Row:
    """One row of the batch: its document so far, layer by layer and head by head."""

    def __init__(self, parameters, config):
        self.p = {name: array.tolist() for name, array in parameters.items()}
        self.c = config
        self.forget()

    def forget(self):
        self.length = 0
        # pairs[layer][key-value head][position] = (key, value)
        heads = range(self.c.num_key_value_heads)
        self.pairs = [[[] for _ in heads] for _ in range(self.c.num_layers)]

    def read(self, tokens, start_of_document, num_tokens):
        """Returns the logits of the segment's real tokens, and remembers them."""
        if start_of_document:
            self.forget()
        x = [self.p["embedding"][token] for token in tokens[:num_tokens]]
        for layer in range(self.c.num_layers):
            x = self.layer(layer, x)
        self.length += num_tokens
        rows = self.p["embedding" if self.c.tied_embedding else "output_embedding"]
        gain, epsilon = self.p["final_norm_gain"], self.c.norm_epsilon
        x = [rms_norm(vector, gain, epsilon) for vector in x]
        return [[dot(vector, row) for row in rows] for vector in x]

    def layer(self, layer, x):
        p = {
            name.split(".")[2]: array
            for name, array in self.p.items()
            if name.startswith(f"layers.{layer}.")
        }
        epsilon = self.c.norm_epsilon
        normed = [rms_norm(v, p["attention_norm_gain"], epsilon) for v in x]
        for kv, pairs in enumerate(self.pairs[layer]):
            for vector in normed:
                key, value = (
                    times_matrix(vector, [row[kv] for row in p[name]])
                    for name in ("key_kernel", "value_kernel")
                )
                pairs.append((key, value))
        result = []
        for offset, vector in enumerate(x):
            for head in range(self.c.num_heads):
                kernel = [row[head] for row in p["query_kernel"]]
                query = times_matrix(normed[offset], kernel)
                read = self.attend(layer, head, p, query, self.length + offset)
                vector = add(vector, times_matrix(read, p["output_kernel"][head]))
            inside = rms_norm(vector, p["mlp_norm_gain"], epsilon)
            hidden = [
                silu(gate) * up
                for gate, up in zip(
                    times_matrix(inside, p["mlp_gate_kernel"]),
                    times_matrix(inside, p["mlp_up_kernel"]),
                    strict=True,
                )
            ]
            result.append(add(vector, times_matrix(hidden, p["mlp_out_kernel"])))
        return result

    def attend(self, layer, head, p, query, i):
        c = self.c
        pairs = self.pairs[layer][head * c.num_key_value_heads // c.num_heads]
        near, far = self.near(pairs, query, i), []
        if layer in c.memory_layers:
            far = self.far(pairs, query)
        if layer in c.memory_layers and c.combination == "gate":
            gate = 1.0 / (1.0 + math.exp(-p["gate_bias"][head]))
            read = [self.mix(far), self.mix(near)]
            return [gate * m + (1.0 - gate) * u for m, u in zip(*read, strict=True)]
        return self.mix(near + far)

    def mix(self, seen):
        root = math.sqrt(self.c.head_dim)
        logits, values = [s / root for s, _ in seen], [v for _, v in seen]
        return softmax_mix(logits, values, self.c.head_dim)

    def near(self, pairs, query, i):
        """Score and value of each local position that the query at `i` sees."""
        c = self.c
        dropped = max(0, self.length - c.cache_length - c.num_sinks)

        def turned(x, t):
            place = t if t < c.num_sinks else t - dropped
            return rotate(x, place, c.rope_base)

        return [
            (dot(turned(query, i), turned(key, t)), value)
            for t, (key, value) in enumerate(pairs[: i + 1])
            if t < c.num_sinks
            or (t >= self.length - c.cache_length and i - t <= c.local_window)
        ]

    def far(self, pairs, query):
        """Score and value of each neighbor."""
        c = self.c
        first, last = 0, self.length
        if c.combination == "joint":
            first, last = c.num_sinks, self.length - c.cache_length
        query = rotate(query, c.memory_distance, c.rope_base)
        candidates = []
        for t in range(max(first, last - c.memory_size), last):
            key, value = pairs[t]
            if c.memory_dtype == "bfloat16":
                key, value = [*map(to_bfloat16, key)], [*map(to_bfloat16, value)]
            candidates.append((-dot(query, key), (t - first) % c.memory_size, value))
        candidates.sort(key=lambda candidate: candidate[:2])
        if c.num_buckets is not None:
            candidates = self.winners(candidates)
        return [(-score, value) for score, _, value in candidates[: c.top_k]]

    def winners(self, candidates):
        taken = [0] * self.c.num_buckets
        kept = []
        for candidate in candidates:
            bucket = candidate[1] % self.c.num_buckets
            taken[bucket] += 1
            if taken[bucket] <= self.c.winners_per_bucket:
                kept.append(candidate)
        return kept


def plain_llama(parameters, config, tokens):
    """Full attention from position 0 on, with neither segments nor memory."""
    p = {name: array.tolist() for name, array in parameters.items()}
    x = [p["embedding"][token] for token in tokens]
    epsilon, dim, base = config.norm_epsilon, config.head_dim, config.rope_base
    group = config.num_heads // config.num_key_value_heads
    for i in range(config.num_layers):
        q = {name.split(".")[2]: a for name, a in p.items() if f"s.{i}." in name}
        normed = [rms_norm(v, q["attention_norm_gain"], epsilon) for v in x]

        def project(kernel, h, normed=normed):
            return [times_matrix(v, [row[h] for row in kernel]) for v in normed]

        for h in range(config.num_heads):
            queries = project(q["query_kernel"], h)
            keys = project(q["key_kernel"], h // group)
            values = project(q["value_kernel"], h // group)
            keys = [rotate(key, t, base) for t, key in enumerate(keys)]
            for t, query in enumerate(queries):
                query = rotate(query, t, base)
                logits = [dot(query, key) / math.sqrt(dim) for key in keys[: t + 1]]
                read = softmax_mix(logits, values[: t + 1], dim)
                x[t] = add(x[t], times_matrix(read, q["output_kernel"][h]))
        for t, vector in enumerate(x):
            inside = rms_norm(vector, q["mlp_norm_gain"], epsilon)
            gate = times_matrix(inside, q["mlp_gate_kernel"])
            up = times_matrix(inside, q["mlp_up_kernel"])
            hidden = [silu(g) * u for g, u in zip(gate, up, strict=True)]
            x[t] = add(vector, times_matrix(hidden, q["mlp_out_kernel"]))
    rows = p["embedding" if config.tied_embedding else "output_embedding"]
    x = [rms_norm(vector, p["final_norm_gain"], epsilon) for vector in x]
    return [[dot(vector, row) for row in rows] for vector in x]
