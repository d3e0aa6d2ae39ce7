"""Models in Hugging Face's files: equal logits, and one sentence for what is not."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from llama_helpers import GOLDEN, MODELS, read

from memorizing_jax import llama_files
from memorizing_jax.errors import InputError

# Sums in float32 in two programs; logits are of size 10.
SAME = {"rtol": 0, "atol": 2e-5}


def load(folder, dtype="float32"):
    config = llama_files.read_config(folder)
    return llama_files.read_parameters(folder, config, dtype), config


@pytest.fixture
def copy(tmp_path):
    """Returns a function that copies a model, with changes of its config.json."""

    def make(name, **changes):
        folder = tmp_path / name
        shutil.copytree(GOLDEN / name, folder)
        path = folder / "config.json"
        fields = json.loads(path.read_text()) | changes
        path.write_text(json.dumps(fields))
        return folder

    return make


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.rule("PRE-7")
@pytest.mark.rule("PRE-8")
@pytest.mark.rule("PRE-9")
def test_logits_equal_those_of_transformers(name):
    """40 tokens in two segments, all within reach of the local context."""
    golden = safetensors.numpy.load_file(GOLDEN / name / "golden.safetensors")
    params, config = load(GOLDEN / name)
    found, state = read(params, config, golden["tokens"][0])
    np.testing.assert_allclose(found, golden["logits"][0], **SAME)
    assert len(found) > config.segment_length
    assert state.memories == ()


def test_a_memory_that_holds_nothing_yet_changes_nothing():
    golden = safetensors.numpy.load_file(GOLDEN / "grouped" / "golden.safetensors")
    params, config = load(GOLDEN / "grouped")
    config = config.replace(memory_layers=(0, 1), memory_size=9, top_k=3)
    found, _ = read(params, config, golden["tokens"][0])
    np.testing.assert_allclose(found, golden["logits"][0], **SAME)


def test_weights_are_widened_exactly_or_rounded_once():
    wide, _ = load(GOLDEN / "bfloat16")
    narrow, _ = load(GOLDEN / "bfloat16", "bfloat16")
    for name, array in wide.items():
        assert array.dtype == jnp.float32
        assert (array == narrow[name].astype(jnp.float32)).all()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2'"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"attention_bias": True}, "attention_bias True"),
        ({"mlp_bias": True}, "mlp_bias True"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope scaling 'yarn'"),
        ({"rope_scaling": {"type": "linear"}}, "rope scaling 'linear'"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "rope scaling 'llama3'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ({"sliding_window": 32}, "sliding_window 32"),
        ({"layer_types": ["sliding_attention"]}, "layer_types 'sliding_attention'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"hidden_size": 13}, "has shape"),
        ({"hidden_size": "12"}, "impossible setting"),
        ({"num_attention_heads": 0, "head_dim": None}, "impossible setting"),
        ({"num_hidden_layers": 3}, "no array model.layers.2.input_layernorm.weight"),
        ({"num_hidden_layers": 1}, "array model.layers.1.* not supported"),
        ({"tie_word_embeddings": False}, "no array lm_head.weight"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(copy, changes, said):
    with pytest.raises(InputError, match=said) as raised:
        load(copy("grouped", **changes))
    assert "\n" not in str(raised.value)


def test_settings_that_change_nothing_pass(copy):
    folder = copy(
        "grouped", rope_scaling=None, sliding_window=8, use_sliding_window=False
    )
    _, config = load(folder)
    assert config == llama_files.read_config(GOLDEN / "grouped")


def test_damaged_files_are_refused(copy):
    folder = copy("grouped")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(InputError, match="was cut short"):
        load(folder)
    # The last array's numbers, all bits set: not a number.
    weights.write_bytes(whole[:-8] + b"\xff" * 8)
    with pytest.raises(InputError, match="is not finite; was the file altered"):
        load(folder)
    weights.unlink()
    with pytest.raises(InputError, match="there is no file"):
        load(folder)
    (folder / "config.json").write_text('{"model_type": "llama"')
    with pytest.raises(InputError, match="not valid JSON"):
        load(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(InputError, match="lacks 'num_attention_heads'"):
        load(folder)
    with pytest.raises(InputError, match="there is no file"):
        load(folder / "nowhere")


def test_a_missing_or_unknown_shard_is_refused(copy):
    folder = copy("every_head")
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(InputError, match=r"there is no file .*00002-of"):
        load(folder)
    (folder / llama_files.INDEX).write_text('{"weight_map": []}')
    with pytest.raises(InputError, match="has no weight_map"):
        load(folder)


def test_arrays_that_are_not_used_are_refused_but_for_old_tables(copy):
    folder = copy("grouped")
    weights = folder / "model.safetensors"
    arrays = safetensors.numpy.load_file(weights)
    table = "model.layers.0.self_attn.rotary_emb.inv_freq"
    safetensors.numpy.save_file(arrays | {table: np.ones(2, np.float32)}, weights)
    load(folder)
    bias = "model.layers.0.self_attn.q_proj.bias"
    safetensors.numpy.save_file(arrays | {bias: np.ones(24, np.float32)}, weights)
    with pytest.raises(InputError, match=r"q_proj\.bias, which is not supported"):
        load(folder)


def test_half_precision_is_read(copy):
    folder = copy("grouped")
    weights = folder / "model.safetensors"
    arrays = safetensors.numpy.load_file(weights)
    half = {name: array.astype(np.float16) for name, array in arrays.items()}
    safetensors.numpy.save_file(half, weights)
    params, _ = load(folder)
    expected = half["model.norm.weight"].astype(np.float32)
    np.testing.assert_array_equal(params["final_norm_gain"], expected)
