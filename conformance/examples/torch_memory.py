"""kNN memory in plain PyTorch: a ring of pairs, exact search, attention, gate.

Arrays are [batch, position or slot, num_heads, head_dim]. The memory is updated in
place and holds no graph, so gradient stops there (MEM-8).
"""

import math

import torch
from torch import Tensor


class Memory:
    """The newest pairs of every row, in a ring (MEM-1 to MEM-3)."""

    def __init__(self, batch, size, num_heads, head_dim, dtype=torch.float32):
        self.keys = torch.zeros(batch, size, num_heads, head_dim, dtype=dtype)
        self.values = torch.zeros_like(self.keys)
        self.num_written = torch.zeros(batch, dtype=torch.long)

    def reset(self, start_of_document: Tensor) -> None:
        """Forgets the rows that open a document."""
        self.num_written[start_of_document] = 0

    @torch.no_grad()
    def insert(self, keys: Tensor, values: Tensor, num_tokens: Tensor) -> None:
        """Appends the first `num_tokens` pairs of each row, over the oldest."""
        size, last = self.keys.shape[1], num_tokens[:, None]
        position = torch.arange(keys.shape[1])
        # Of a segment longer than the memory only the newest pairs stay.
        written = (position < last) & (position >= last - size)
        row, column = written.nonzero(as_tuple=True)
        slot = (self.num_written[row] + column) % size
        self.keys[row, slot] = keys[row, column].to(self.keys.dtype)
        self.values[row, slot] = values[row, column].to(self.values.dtype)
        self.num_written += num_tokens

    @torch.no_grad()
    def search(self, queries: Tensor, top_k: int) -> Tensor:
        """Returns the best slots of each query, -1 where there is none."""
        size, num_written = self.keys.shape[1], self.num_written[:, None, None, None]
        scores = torch.einsum("bqhd,bshd->bqhs", queries, self.keys.float())
        scores = scores.masked_fill(torch.arange(size) >= num_written, -math.inf)
        # topk may return either of two equal scores; a stable sort, the lower slot.
        slots = scores.sort(descending=True, stable=True).indices[..., :top_k]
        return slots.where(torch.arange(top_k) < num_written, -1)

    def read(self, queries: Tensor, slots: Tensor, scale: Tensor) -> Tensor:
        """Returns what each query reads from the slots that it found (GATE-1)."""
        row = torch.arange(slots.shape[0])[:, None, None, None]
        head = torch.arange(slots.shape[2])[:, None]
        found = slots >= 0
        # What lies in a slot that is not there may be NaN, and NaN * 0 is NaN.
        keys, values = (
            stored[row, slots.clamp(min=0), head].float().where(found[..., None], 0)
            for stored in (self.keys, self.values)
        )
        logits = torch.einsum("bqhd,bqhkd->bqhk", queries, keys)
        weights = masked_softmax(logits * scale.abs()[:, None], found)
        return torch.einsum("bqhk,bqhkd->bqhd", weights, values)


def masked_softmax(logits: Tensor, mask: Tensor) -> Tensor:
    """Softmax that is zero where masked, also where everything is."""
    hidden = torch.finfo(logits.dtype).min
    return logits.masked_fill(~mask, hidden).softmax(-1).where(mask, 0)


def distance_bucket(distance: Tensor) -> Tensor:
    """Returns the bucket, 0 to 31, of how far back a key lies (LOC-5)."""
    far = distance.clamp(min=16).double() / 16
    wide = 16 + (16 * far.log() / math.log(8)).long()
    return torch.where(distance < 16, distance.clamp(min=0), wide.clamp(max=31))


def local_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    num_cached: Tensor,
    *,
    local_window: int,
    relative_bias: Tensor,
    attention_scale: Tensor,
) -> Tensor:
    """Returns what queries read from the cache and their segment (LOC-1 to LOC-6)."""
    cached = keys.shape[1] - queries.shape[1]
    column = torch.arange(keys.shape[1])
    distance = cached + torch.arange(queries.shape[1])[:, None] - column
    near = (distance >= 1) & (distance <= local_window)
    mask = near & (column >= cached - num_cached[:, None])[:, None]
    bias = relative_bias[:, distance_bucket(distance)].transpose(0, 1)
    logits = torch.einsum("bqhd,bkhd->bqhk", queries, keys) + bias
    weights = masked_softmax(logits * attention_scale.abs()[:, None], mask[:, :, None])
    values = values.where(mask.any(1)[..., None, None], 0)
    return torch.einsum("bqhk,bkhd->bqhd", weights, values)


def combine(from_memory: Tensor, local: Tensor, gate_bias: Tensor) -> Tensor:
    """Mixes both head by head (GATE-3)."""
    gate = gate_bias.sigmoid()[:, None]
    return gate * from_memory + (1 - gate) * local
