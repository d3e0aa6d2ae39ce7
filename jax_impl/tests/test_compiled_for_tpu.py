"""What the TPU compiler made of it: in place, and in blocks. No TPU is needed.

All is compiled for v5e and for shapes alone. Where the compiler has to copy a memory,
or to hold a score of every query and slot, that shows in the arrays it makes and in its
own count of bytes.
"""

import functools

import jax
import jax.numpy as jnp
import pytest
from compiled_text import largest_made

from memorizing_jax import memory, tpu_compiler, train_step
from memorizing_jax.config import ModelConfig
from memorizing_jax.train_config import OptimizerConfig, TrainConfig
from memorizing_jax.train_step import Segments

pytest.importorskip("libtpu")

LARGE = 1_048_576
BATCH, HEADS, SEGMENT_LENGTH = 2, 2, 64
# One number per slot; in bytes at most a sixteenth of these memories.
LITTLE = BATCH * HEADS * LARGE


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def assert_in_place(compiled, stored, scratch=LITTLE):
    """Nothing is made with as much as one number per slot, and the memory aliased.

    No array made has `scratch` numbers, and all together take less than 16 times that
    in bytes.
    """
    assert largest_made(compiled) < scratch
    analysis = compiled.memory_analysis()
    num_bytes = 2 * stored.keys.size * stored.keys.dtype.itemsize
    assert analysis.alias_size_in_bytes >= num_bytes
    assert analysis.temp_size_in_bytes < 16 * scratch < num_bytes


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_insertion_writes_in_place(head_dim, dtype):
    sizes = BATCH, LARGE, HEADS, head_dim, dtype
    stored = jax.eval_shape(functools.partial(memory.empty, *sizes))
    pairs = shape(BATCH, SEGMENT_LENGTH, HEADS, head_dim)
    args = stored, pairs, pairs, shape(BATCH, dtype=jnp.int32)
    args = tpu_compiler.placed(args, tpu_compiler.one_device())
    insert = jax.jit(memory.insert, donate_argnums=0)
    assert_in_place(tpu_compiler.compiled(insert.lower(*args)), stored)


@pytest.mark.parametrize(
    ("engine", "head_dim", "dtype"),
    [
        ("exact", 128, "bfloat16"),
        ("pallas", 128, "float32"),
        # Of narrow heads, one at a time is copied for its neighbors to be gathered.
        ("bucketed", 64, "float32"),
    ],
)
def test_a_training_step_holds_neither_scores_nor_a_second_memory(
    engine, head_dim, dtype
):
    sizes = ModelConfig(
        num_layers=1,
        memory_layers=(0,),
        model_dim=256,
        mlp_dim=256,
        num_heads=HEADS,
        head_dim=head_dim,
        segment_length=SEGMENT_LENGTH,
        local_window=SEGMENT_LENGTH,
        cache_length=SEGMENT_LENGTH,
        memory_size=LARGE,
        memory_dtype=dtype,
        search=engine,
    )
    settings = OptimizerConfig(optimizer="adamw", warmup_steps=3)
    config = TrainConfig(model=sizes, optimizer=settings, batch=BATCH)
    run = jax.eval_shape(functools.partial(train_step.init, config))
    tokens = shape(BATCH, SEGMENT_LENGTH, dtype=jnp.int32)
    counts = shape(BATCH, dtype=jnp.int32)
    start = shape(BATCH, dtype=jnp.bool_)
    segments = Segments(tokens, tokens, start, counts, counts)
    args = tpu_compiler.placed((run, segments), tpu_compiler.one_device())
    lowered = train_step.train_step_jit.lower(*args, config)
    compiled = tpu_compiler.compiled(lowered)
    scratch = LITTLE if head_dim == 128 else LARGE * head_dim + 1
    assert_in_place(compiled, run.model.memories[0], scratch)
