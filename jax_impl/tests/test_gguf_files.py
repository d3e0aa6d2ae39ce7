"""Models in GGUF files: the same model as from Hugging Face's, and its tokenizer."""

import json

import gguf
import numpy as np
import pytest
import safetensors.numpy
from llama_helpers import GOLDEN, read

from memorizing_data import tokenizer
from memorizing_jax import gguf_files, gguf_tokenizer, llama_files, pretrained
from memorizing_jax.errors import InputError
from memorizing_jax.gguf_files import GgufFile

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.layers": "blk",
}
TEXT = "def f(x): return 'naïve' + str(x)\n\n    # 12345 tabs\there 😀 end  \n"


@pytest.fixture(scope="module")
def words():
    """Returns the tokens and merges of a byte-level BPE."""
    return json.loads(tokenizer.train_bpe([TEXT * 3], 280))["model"]


def write(path, name, words, settings=None, arrays=None, tokens=None):
    """Writes a model of `llama/` as llama.cpp's converter does: q, k interleaved."""
    folder = GOLDEN / name
    config = llama_files.read_config(folder)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.model_dim)
    writer.add_feed_forward_length(config.mlp_dim)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_freq_base(config.rope_base)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.norm_epsilon)
    tokens = tokens or sorted(words["vocab"], key=words["vocab"].get)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if t.startswith("<|") else 1 for t in tokens])
    writer.add_token_merges([" ".join(pair) for pair in words["merges"]])
    for key, value in (settings or {}).items():
        writer.add_key_value(key, *value)
    stored = {}
    for file in llama_files.weight_files(folder):
        stored |= safetensors.numpy.load_file(file)
    for published, array in (stored | (arrays or {})).items():
        for theirs, ours in NAMES.items():
            published = published.replace(theirs, ours)
        if "attn_q" in published or "attn_k" in published:
            shape = array.shape
            array = array.reshape(-1, 2, config.head_dim // 2, shape[1])
            array = array.swapaxes(1, 2).reshape(shape)
        writer.add_tensor(published, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def load(path):
    file = GgufFile(path)
    config = gguf_files.read_config(file)
    return gguf_files.read_parameters(file, config, "float32"), config


@pytest.mark.parametrize("name", ["grouped", "every_head", "one_head"])
def test_logits_are_those_of_transformers(name, words, tmp_path):
    golden = safetensors.numpy.load_file(GOLDEN / name / "golden.safetensors")
    params, config = load(write(tmp_path / "model.gguf", name, words))
    expected = llama_files.read_config(GOLDEN / name)
    assert config.replace(norm_epsilon=expected.norm_epsilon) == expected
    found, _ = read(params, config, golden["tokens"][0])
    np.testing.assert_allclose(found, golden["logits"][0], rtol=0, atol=2e-5)


def test_the_tokenizer_is_rebuilt(words, tmp_path):
    plain = [t for t, _ in sorted(words["vocab"].items(), key=lambda x: x[1])]
    tokens = ["<|start|>", *plain]
    file = GgufFile(write(tmp_path / "model.gguf", "grouped", words, tokens=tokens))
    found = tokenizer.JsonTokenizer(gguf_tokenizer.tokenizer_json(file))
    assert found.vocab_size == len(tokens)
    ids = found.encode(TEXT)
    assert found.decode(ids) == TEXT
    assert len(ids) < len(TEXT.encode()) * 0.8  # Merges apply.
    assert found.encode("<|start|>a").tolist()[0] == 0
    # Digits one by one, as "smollm" says.
    assert [found.decode([i]) for i in found.encode("a12")] == ["a", "1", "2"]


def test_a_tokenizer_of_another_model_is_refused(words, tmp_path):
    """The golden models know 61 tokens, and bytes alone are 256."""
    with pytest.raises(InputError, match="tokens, and the model knows 61"):
        pretrained.load(str(write(tmp_path / "model.gguf", "grouped", words)))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"llama.rope.scaling.type": ("yarn", gguf.GGUFValueType.STRING)}, "'yarn'"),
        ({"llama.expert_count": (4, gguf.GGUFValueType.UINT32)}, "expert_count 4"),
        (
            {"llama.attention.sliding_window": (9, gguf.GGUFValueType.UINT32)},
            "sliding_window 9",
        ),
    ],
)
def test_what_is_not_supported_is_refused_by_name(settings, said, words, tmp_path):
    path = write(tmp_path / "model.gguf", "grouped", words, settings)
    with pytest.raises(InputError, match=said):
        load(path)


def test_an_array_that_is_not_used_is_refused(words, tmp_path):
    bias = {"model.layers.0.self_attn.v_proj.bias": np.ones(8, np.float32)}
    path = write(tmp_path / "model.gguf", "grouped", words, arrays=bias)
    with pytest.raises(InputError, match=r"attn_v\.bias, which is not supported"):
        load(path)


def test_files_cut_short_are_refused(words, tmp_path):
    path = write(tmp_path / "model.gguf", "grouped", words)
    whole = path.read_bytes()
    for length in (0, 3, 40, 1000, len(whole) // 2, len(whole) - 40):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"cut short|there is no"):
            load(path)
    with pytest.raises(InputError, match="there is no file"):
        GgufFile(tmp_path / "nowhere.gguf")


def test_another_architecture_or_tokenizer_is_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "qwen2")
    writer.add_tokenizer_model("llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    file = GgufFile(tmp_path / "other.gguf")
    with pytest.raises(InputError, match="architecture 'qwen2'"):
        gguf_files.read_config(file)
    with pytest.raises(InputError, match="tokenizer of kind 'llama'"):
        gguf_tokenizer.tokenizer_json(file)
