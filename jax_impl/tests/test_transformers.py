"""Logits of random configurations, and of SmolLM2, against `transformers`.

It needs PyTorch and transformers, so that it is skipped elsewhere: `make transformers`
has an environment for it. What CI checks without them lies in `llama/`.
"""

import numpy as np
import pytest
from llama_helpers import read

from memorizing_jax import llama_files, pretrained
from memorizing_jax.errors import InputError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


def draw(rng):
    """Returns a configuration that differs from others in every way it can."""
    few = int(rng.integers(1, 4))
    heads = few * int(rng.integers(1, 4))
    return transformers.LlamaConfig(
        vocab_size=int(rng.integers(20, 90)),
        hidden_size=heads * int(rng.integers(2, 6)),
        intermediate_size=int(rng.integers(5, 40)),
        num_hidden_layers=int(rng.integers(1, 4)),
        num_attention_heads=heads,
        num_key_value_heads=few,
        head_dim=2 * int(rng.integers(1, 9)),
        max_position_embeddings=int(rng.integers(120, 200)),
        rope_theta=float(10 ** rng.uniform(1, 6)),
        rms_norm_eps=float(10 ** rng.uniform(-6, -2)),
        tie_word_embeddings=bool(rng.integers(2)),
        initializer_range=0.3,
    )


@pytest.mark.parametrize("seed", range(16))
def test_random_configurations(seed, tmp_path):
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    config = draw(rng)
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path, max_shard_size=["20KB", "1GB"][seed % 2])
    tokens = rng.integers(0, config.vocab_size, 70)
    with torch.no_grad():
        expected = model(torch.tensor(tokens[None])).logits[0].numpy()
    ours = llama_files.read_config(tmp_path)
    params = llama_files.read_parameters(tmp_path, ours, "float32")
    # In segments, and all of them within reach of the local context.
    length = int(rng.integers(3, 40))
    ours = ours.replace(
        segment_length=length, cache_length=70, num_sinks=int(rng.integers(5))
    )
    found, _ = read(params, ours, tokens.astype(np.int32))
    # Sums in float32 in two programs; logits reach 30.
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_smollm2():
    """From the same GGUF file, which transformers takes apart by its own code."""
    try:
        path = pretrained.packaged("smollm2")
    except InputError as error:
        pytest.skip(str(error))
    ours = pretrained.load("smollm2")
    where = {
        "pretrained_model_name_or_path": path.parent,
        "gguf_file": path.name,
    }
    model = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype="float32")
    words = transformers.AutoTokenizer.from_pretrained(**where)
    # No digits: of how they are cut transformers takes no notice in this format.
    text = (llama_files.__doc__ or "") + pytest.importorskip.__doc__ + "naïve\n"
    tokens = ours.tokenizer.encode(text)
    assert tokens.tolist() == words(text)["input_ids"]
    assert len(tokens) > 300
    with torch.no_grad():
        expected = model.eval()(torch.tensor(tokens[None])).logits[0].numpy()
    config = ours.config.replace(segment_length=128, cache_length=1024)
    found, _ = read(ours.parameters, config, tokens)
    # Logits reach 40; measured on 500 tokens: 1.2e-4.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)
