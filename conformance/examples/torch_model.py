"""A Memorizing Transformer in plain PyTorch, around the memory of torch_memory."""

import math

import torch
from torch import Tensor, nn
from torch_memory import Memory, combine, local_attention


class Cache:
    """The last positions before the segment, the newest on the right (LOC-2).

    Like the memory it is updated in place and holds no graph (LOC-7).
    """

    def __init__(self, batch, length, num_heads, head_dim):
        self.keys = torch.zeros(batch, length, num_heads, head_dim)
        self.values = torch.zeros_like(self.keys)
        self.num_cached = torch.zeros(batch, dtype=torch.long)

    @torch.no_grad()
    def append(self, keys: Tensor, values: Tensor, num_tokens: Tensor) -> None:
        """Moves on; `keys` and `values` are those of the cache, then the segment."""
        length = self.keys.shape[1]
        row = torch.arange(len(keys))[:, None]
        kept = num_tokens[:, None] + torch.arange(length)
        self.keys, self.values = keys[row, kept], values[row, kept]
        self.num_cached = (self.num_cached + num_tokens).clamp(max=length)


def normalize(x: Tensor) -> Tensor:
    """Scales queries or keys to length one (QKN-2)."""
    return x * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt()


def rms_norm(x: Tensor, gain: Tensor) -> Tensor:
    """Scales vectors to mean square one, then by the gain (MOD-2)."""
    return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * gain


def kernel(*shape: int, fan_in: int) -> nn.Parameter:
    """Returns a truncated normal of variance 1 / fan_in (MOD-3)."""
    # 0.8796 is what cutting at two deviations leaves of the deviation.
    deviation = fan_in**-0.5 / 0.87962566
    drawn = torch.empty(shape)
    nn.init.trunc_normal_(drawn, std=deviation, a=-2 * deviation, b=2 * deviation)
    return nn.Parameter(drawn)


class Layer(nn.Module):
    """Attention and MLP; parameters are named as in MOD-6."""

    def __init__(self, model_dim, num_heads, head_dim, mlp_dim, has_memory):
        super().__init__()
        inner = (model_dim, num_heads, head_dim)
        self.attention_norm_gain = nn.Parameter(torch.ones(model_dim))
        self.query_kernel = kernel(*inner, fan_in=model_dim)
        self.key_kernel = kernel(*inner, fan_in=model_dim)
        self.value_kernel = kernel(*inner, fan_in=model_dim)
        self.output_kernel = kernel(
            num_heads, head_dim, model_dim, fan_in=num_heads * head_dim
        )
        self.attention_scale = nn.Parameter(torch.ones(num_heads))
        self.relative_bias = nn.Parameter(torch.randn(num_heads, 32) / math.sqrt(32))
        if has_memory:
            self.gate_bias = nn.Parameter(torch.zeros(num_heads))
        self.mlp_norm_gain = nn.Parameter(torch.ones(model_dim))
        self.mlp_in_kernel = kernel(model_dim, mlp_dim, fan_in=model_dim)
        self.mlp_out_kernel = kernel(mlp_dim, model_dim, fan_in=mlp_dim)

    def forward(self, x, cache, memory, num_tokens, local_window, top_k):
        """Returns the next residual stream; cache and memory take the segment in."""
        normed = rms_norm(x, self.attention_norm_gain)
        queries, keys, values = (
            torch.einsum("bqe,ehd->bqhd", normed, parameter)
            for parameter in (self.query_kernel, self.key_kernel, self.value_kernel)
        )
        queries, keys = normalize(queries), normalize(keys)
        local_keys = torch.cat([cache.keys, keys], 1)
        local_values = torch.cat([cache.values, values], 1)
        output = local_attention(
            queries,
            local_keys,
            local_values,
            cache.num_cached,
            local_window=local_window,
            relative_bias=self.relative_bias,
            attention_scale=self.attention_scale,
        )
        if hasattr(self, "gate_bias"):
            from_memory = torch.zeros_like(output)
            if memory is not None:
                slots = memory.search(queries, top_k)
                from_memory = memory.read(queries, slots, self.attention_scale)
                memory.insert(keys, values, num_tokens)
            output = combine(from_memory, output, self.gate_bias)
        cache.append(local_keys, local_values, num_tokens)
        x = x + torch.einsum("bqhd,hde->bqe", output, self.output_kernel)
        hidden = rms_norm(x, self.mlp_norm_gain) @ self.mlp_in_kernel
        return x + hidden.relu() @ self.mlp_out_kernel


# The cache of each layer, and its memory if it has one.
State = list[tuple[Cache, Memory | None]]


class MemorizingTransformer(nn.Module):
    """The model (MOD-1), reading one segment of every row a call."""

    def __init__(
        self,
        *,
        vocab_size: int,
        num_layers: int,
        model_dim: int,
        num_heads: int,
        head_dim: int,
        mlp_dim: int,
        memory_layers: tuple[int, ...],
        memory_size: int,
        top_k: int,
        local_window: int,
        cache_length: int,
        memory_dtype: torch.dtype = torch.float32,
    ):
        super().__init__()
        self.head_sizes = num_heads, head_dim
        self.memory_layers, self.memory_size = memory_layers, memory_size
        self.top_k, self.memory_dtype = top_k, memory_dtype
        self.local_window, self.cache_length = local_window, cache_length
        self.embedding = nn.Parameter(torch.randn(vocab_size, model_dim))
        self.final_norm_gain = nn.Parameter(torch.ones(model_dim))
        self.layers = nn.ModuleList(
            Layer(model_dim, num_heads, head_dim, mlp_dim, i in memory_layers)
            for i in range(num_layers)
        )

    def empty_state(self, batch: int) -> State:
        """Returns the state before the first segment."""
        state: State = []
        for i in range(len(self.layers)):
            memory = None
            if i in self.memory_layers and self.memory_size:
                memory = Memory(
                    batch, self.memory_size, *self.head_sizes, self.memory_dtype
                )
            state.append((Cache(batch, self.cache_length, *self.head_sizes), memory))
        return state

    def forward(self, state, tokens, start_of_document, num_tokens) -> Tensor:
        """Returns logits; the state moves on to the next segment (ORD-1)."""
        real = torch.arange(tokens.shape[1]) < num_tokens[:, None]
        x = self.embedding[tokens.where(real, 0)]
        for layer, (cache, memory) in zip(self.layers, state, strict=True):
            cache.num_cached[start_of_document] = 0
            if memory is not None:
                memory.reset(start_of_document)
            x = layer(x, cache, memory, num_tokens, self.local_window, self.top_k)
        x = rms_norm(x, self.final_norm_gain)
        return x @ self.embedding.T / math.sqrt(x.shape[-1])
