"""The model once more, from the rules alone: plain Python numbers and loops.

It shares no code and no idea with the package. There is no ring, no cache and no
batch: a `Row` keeps every pair of its document since the start, and each query looks
up by absolute position what the rules let it see. Slow, and hard to get wrong.
"""

import math


def dot(a, b):
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def times_matrix(x, matrix):
    """Vector [E] times matrix [E][F], as nested lists."""
    return [dot(x, column) for column in zip(*matrix, strict=True)]


def add(a, b):
    return [x + y for x, y in zip(a, b, strict=True)]


def rms_norm(x, gain):
    root = math.sqrt(dot(x, x) / len(x) + 1e-6)
    return [u / root * g for u, g in zip(x, gain, strict=True)]


def unit(x):
    root = math.sqrt(dot(x, x) + 1e-6)
    return [u / root for u in x]


def bucket(distance):
    """The table of LOC-5, read as a table."""
    first_distance = [*range(17), 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87]
    first_distance += [99, 113]
    return max(b for b in range(32) if first_distance[b] <= distance)


def softmax_mix(logits, values, width):
    """Sum of values weighted by softmax; zeros where there is nothing to see."""
    if not logits:
        return [0.0] * width
    weights = [math.exp(u - max(logits)) for u in logits]
    total = math.fsum(weights)
    return [dot(weights, column) / total for column in zip(*values, strict=True)]


def to_bfloat16(x):
    """Eight significant bits, ties to even, by Python's own `round`."""
    if x == 0.0:
        return x
    fraction, exponent = math.frexp(x)
    return math.ldexp(round(fraction * 256), exponent - 8)


class Row:
    """One row of the batch: its document so far, layer by layer and head by head."""

    def __init__(self, parameters, config):
        self.p = {name: array.tolist() for name, array in parameters.items()}
        self.c = config
        self.forget()

    def forget(self):
        heads = range(self.c.num_heads)
        self.length = 0  # Positions of the document read so far.
        # pairs[layer][head][position] = (key, value)
        self.pairs = [[[] for _ in heads] for _ in range(self.c.num_layers)]

    def read(self, tokens, start_of_document, num_tokens):
        """Returns the logits of the segment's real tokens, and remembers them."""
        if start_of_document:
            self.forget()
        x = [self.p["embedding"][token] for token in tokens[:num_tokens]]
        for layer in range(self.c.num_layers):
            x = self.layer(layer, x)
        self.length += num_tokens
        return [self.logits(vector) for vector in x]

    def logits(self, x):
        x = rms_norm(x, self.p["final_norm_gain"])
        root = math.sqrt(self.c.model_dim)
        return [dot(x, row) / root for row in self.p["embedding"]]

    def layer(self, layer, x):
        p = {
            name.split(".")[2]: array
            for name, array in self.p.items()
            if name.startswith(f"layers.{layer}.")
        }
        normed = [rms_norm(vector, p["attention_norm_gain"]) for vector in x]
        updates = [[0.0] * self.c.model_dim for _ in x]
        for head in range(self.c.num_heads):
            for i, read in enumerate(self.attend(layer, head, p, normed)):
                update = times_matrix(read, p["output_kernel"][head])
                updates[i] = add(updates[i], update)
        x = [add(a, b) for a, b in zip(x, updates, strict=True)]
        result = []
        for vector in x:
            hidden = times_matrix(
                rms_norm(vector, p["mlp_norm_gain"]), p["mlp_in_kernel"]
            )
            hidden = [max(u, 0.0) for u in hidden]
            result.append(add(vector, times_matrix(hidden, p["mlp_out_kernel"])))
        return result

    def attend(self, layer, head, p, normed):
        """Reads for every query of one head; then adds the segment's pairs."""

        def project(name, vector):
            return times_matrix(vector, [row[head] for row in p[name]])

        before = self.pairs[layer][head]
        queries = [unit(project("query_kernel", vector)) for vector in normed]
        keys = [unit(project("key_kernel", vector)) for vector in normed]
        values = [project("value_kernel", vector) for vector in normed]
        self.pairs[layer][head] = before + list(zip(keys, values, strict=True))

        scale = abs(p["attention_scale"][head])
        outputs = []
        for offset, query in enumerate(queries):
            local = self.attend_locally(layer, head, p, query, offset, scale)
            if layer in self.c.memory_layers:
                gate = 1.0 / (1.0 + math.exp(-p["gate_bias"][head]))
                far = self.attend_memory(before, query, scale)
                local = [
                    gate * m + (1.0 - gate) * c for m, c in zip(far, local, strict=True)
                ]
            outputs.append(local)
        return outputs

    def attend_locally(self, layer, head, p, query, offset, scale):
        i = self.length + offset
        oldest = max(0, i - self.c.local_window, self.length - self.c.cache_length)
        logits, values = [], []
        for j in range(oldest, i):
            key, value = self.pairs[layer][head][j]
            bias = p["relative_bias"][head][bucket(i - j)]
            logits.append((dot(query, key) + bias) * scale)
            values.append(value)
        return softmax_mix(logits, values, self.c.head_dim)

    def attend_memory(self, before, query, scale):
        size = self.c.memory_size
        candidates = []
        for t in range(max(0, self.length - size), self.length):
            key, value = before[t]
            if self.c.memory_dtype == "bfloat16":
                key, value = [*map(to_bfloat16, key)], [*map(to_bfloat16, value)]
            candidates.append((-dot(query, key), t % size, value))
        candidates.sort(key=lambda candidate: candidate[:2])
        if self.c.num_buckets is not None:
            candidates = self.winners(candidates)
        nearest = candidates[: self.c.top_k]
        logits = [-score * scale for score, _, _ in nearest]
        return softmax_mix(logits, [value for *_, value in nearest], self.c.head_dim)

    def winners(self, candidates):
        """Keeps the first few of each bucket; `candidates` come best first."""
        taken = {b: 0 for b in range(self.c.num_buckets)}
        kept = []
        for score, slot, value in candidates:
            if taken[slot % self.c.num_buckets] < self.c.winners_per_bucket:
                taken[slot % self.c.num_buckets] += 1
                kept.append((score, slot, value))
        return kept
