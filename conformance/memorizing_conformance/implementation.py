"""What an implementation offers in order to be checked.

Arrays cross this boundary as NumPy, in the layout of the annotations. States do
not: the suite stores them and hands them back, so a state may be a sharded
pytree, a pointer, or a process on another machine.

A state is used once. After `insert(state, ...)` the suite goes on with what came
back and never touches the old state again, so an implementation may update it in
place. Methods that return no state (`search`, `attend_memory`, `save`, the
gradients) must leave the state as it was.
"""

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
from jaxtyping import Bool, Float, Int

Heads = Float[np.ndarray, "batch positions num_heads head_dim"]
Slots = Int[np.ndarray, "batch segment_length num_heads top_k"]
Rows = Bool[np.ndarray, " batch"]
Counts = Int[np.ndarray, " batch"]
PerHead = Float[np.ndarray, " num_heads"]
RelativeBias = Float[np.ndarray, "num_heads 32"]
Tokens = Int[np.ndarray, "batch segment_length"]
Logits = Float[np.ndarray, "batch segment_length vocab_size"]
Arrays = dict[str, np.ndarray]
StreamSegment = tuple[Tokens, Rows, Counts, Tokens, Counts]


class Implementation(Protocol):
    """One implementation under test.

    Attributes:
      name: how reports call it.
      features: the names in `features.FEATURES` that it offers.
      recall_target: the share of the true neighbors that its search promises to
        find (ANN-2); 1.0 for exact search.
    """

    name: str
    features: frozenset[str]
    recall_target: float

    # Memory and search: every implementation.

    def init(
        self,
        *,
        batch: int,
        memory_size: int,
        num_heads: int,
        head_dim: int,
        top_k: int,
        memory_dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> Any:
        """Returns the state of an empty memory."""
        ...

    def reset(self, state: Any, start_of_document: Rows) -> Any:
        """Returns the state with the marked rows emptied (MEM-5)."""
        ...

    def insert(self, state: Any, keys: Heads, values: Heads, num_tokens: Counts) -> Any:
        """Returns the state with a segment appended (MEM-1, MEM-2, MEM-6).

        The keys come as they are to be stored: normalized where that matters.
        """
        ...

    def search(self, state: Any, queries: Heads) -> Slots:
        """Returns slots, best first, -1 where there is none (KNN-1, KNN-2)."""
        ...

    def bucketing(self, memory_size: int, top_k: int) -> tuple[int, int]:
        """Returns the (num_buckets, winners_per_bucket) that search uses (BKT-1)."""
        ...

    # Attention: feature "attention".

    def attend_memory(
        self, state: Any, queries: Heads, attention_scale: PerHead
    ) -> Heads:
        """Returns `V_m`, what the queries read from memory (GATE-1, GATE-2).

        It searches by itself. The queries are those of `search`; the scale is the
        learned one, which may be negative (QKN-3).
        """
        ...

    def attend_local(
        self,
        queries: Heads,
        local_keys: Heads,
        local_values: Heads,
        num_cached: Counts,
        *,
        local_window: int,
        relative_bias: RelativeBias,
        attention_scale: PerHead,
    ) -> Heads:
        """Returns `V_c`, what the queries read from the local context (LOC-1 to 6).

        `local_keys` and `local_values` hold the cache, then the segment: with
        `C + N` positions against the `N` of `queries`, the cache has `C`. Of those
        only the last `num_cached[row]` are filled.
        """
        ...

    def combine(
        self, memory_output: Heads, local_output: Heads, gate_bias: PerHead
    ) -> Heads:
        """Returns the gated sum (GATE-3)."""
        ...

    def memory_layer_gradients(
        self,
        state: Any,
        queries: Heads,
        local_keys: Heads,
        local_values: Heads,
        num_cached: Counts,
        cotangent: Heads,
        *,
        local_window: int,
        relative_bias: RelativeBias,
        attention_scale: PerHead,
        gate_bias: PerHead,
    ) -> Arrays:
        """Returns the gradients of `sum(cotangent * output)`: feature "gradients".

        The output is `combine(attend_memory(...), attend_local(...), gate_bias)`.
        The dict holds "queries", "local_keys", "local_values", "relative_bias",
        "attention_scale" and "gate_bias", each of the shape of its argument; the
        cached part of "local_keys" and "local_values" is zero (LOC-7). It may also
        hold "memory_keys" and "memory_values", which must be zero (MEM-8).
        """
        ...

    # The model: feature "model", and further ones that build on it.

    def init_model(
        self, config: Mapping[str, Any], parameters: Arrays, batch: int
    ) -> Any:
        """Returns the state before the first segment; it holds the parameters too.

        `config` has vocab_size, num_layers, model_dim, num_heads, head_dim, mlp_dim,
        memory_layers, memory_size, top_k, local_window, cache_length,
        segment_length, and sometimes memory_dtype. `parameters` is named as MOD-6.

        With feature "pretrained" a config may also have family="llama", and then has
        num_key_value_heads, rope_base, norm_epsilon, tied_embedding, num_sinks,
        memory_distance, and combination, "gate" or "joint" (PRE-1 to PRE-10).
        `parameters` is then named as PRE-10. All methods that take or return a model
        or its state must do with such a one what they do with the paper's model.
        """
        ...

    def forward(
        self,
        model_state: Any,
        tokens: Tokens,
        start_of_document: Rows,
        num_tokens: Counts,
    ) -> tuple[Logits, Any]:
        """Returns the logits of one segment of every row, and the next state."""
        ...

    def replace_parameters(self, model_state: Any, parameters: Arrays) -> Any:
        """Returns the state with other parameters, caches and memories untouched."""
        ...

    def model_gradients(
        self,
        model_state: Any,
        tokens: Tokens,
        start_of_document: Rows,
        num_tokens: Counts,
        targets: Tokens,
        num_targets: Counts,
    ) -> tuple[float, Arrays]:
        """Returns the loss of one segment, and its gradient by parameter name.

        The loss is the sum of nats over all rows' targets. The state stays put.
        """
        ...

    def decode(
        self,
        model_state: Any,
        token: Int[np.ndarray, " batch"],
        start_of_document: Rows,
    ) -> tuple[Float[np.ndarray, "batch vocab_size"], Any]:
        """Returns the logits after one more token of every row (GEN-1)."""
        ...

    def save(self, state: Any, path: pathlib.Path) -> None:
        """Writes a state, of `init` or of `init_model`, to a path that is not there.

        What comes into being may be a file or a folder (CKP-1).
        """
        ...

    def restore(self, path: pathlib.Path) -> Any:
        """Returns the state that was saved."""
        ...

    # Data and evaluation.

    def stream(
        self, documents: Sequence[np.ndarray], batch: int, segment_length: int
    ) -> Iterator[StreamSegment]:
        """Yields (tokens, start_of_document, num_tokens, targets, num_targets).

        Every document is read once (SEG-1 to SEG-4); which row reads which is free.
        """
        ...

    def init_parameters(self, config: Mapping[str, Any], seed: int) -> Arrays:
        """Returns initial parameters (MOD-3, MOD-6).

        For family="llama" any numbers, of the shapes of PRE-10.
        """
        ...

    def evaluate(
        self,
        config: Mapping[str, Any],
        parameters: Arrays,
        documents: Sequence[np.ndarray],
        batch: int,
    ) -> tuple[float, int]:
        """Returns the perplexity and the number of predicted tokens (SEG-5)."""
        ...
