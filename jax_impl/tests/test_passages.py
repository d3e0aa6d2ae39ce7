"""Generation with a memory file, and the passages that each token looked at."""

import numpy as np
import pytest
from llama_helpers import (
    READING,
    SMALL,
    Plain,
    draw_parameters,
    make_documents,
    make_model,
    read,
)
from test_commands import refused

from memorizing_data.tokenizer import ByteTokenizer
from memorizing_jax import memory_file
from memorizing_jax.__main__ import main
from memorizing_jax.generate import Sampling, generate
from memorizing_jax.memory_file import MemoryFile, Source
from memorizing_jax.passages import Sources

TOKENS = np.random.default_rng(2).integers(0, SMALL.vocab_size, 31).astype(np.int32)


def file_of(config, num_pairs=20):
    """Returns a memory file of two documents of one pair fewer than tokens each."""
    rng = np.random.default_rng(5)
    shape = (config.num_key_value_heads, num_pairs, config.head_dim)
    half = num_pairs // 2
    keys, values = (
        {i: rng.standard_normal(shape).astype(np.float32) for i in config.memory_layers}
        for _ in range(2)
    )
    return MemoryFile(
        model="",
        tokenizer={},
        keys=keys,
        values=values,
        document=np.repeat(np.arange(2, dtype=np.int32), half),
        position=np.tile(np.arange(1, half + 1, dtype=np.int32), 2),
        documents=(Source("one", half + 1, ""), Source("two", half + 1, "")),
        tokens=np.arange(97, 97 + num_pairs + 2, dtype=np.int32),
        reading={},
    )


def test_text_goes_on_as_segments_would_with_the_file():
    """GEN-1 holds beside shared pairs too."""
    params = draw_parameters(SMALL)
    params |= memory_file.parameters(file_of(SMALL), "float32")
    looked = []
    greedy = Sampling(temperature=0.0)
    found = list(generate(params, SMALL, TOKENS[:23], 6, greedy, looked.append))
    text = TOKENS[:23]
    for token in found:
        logits, _ = read(params, SMALL, text)
        assert token == logits[-1].argmax()
        text = np.append(text, np.int32(token))
    assert len(looked) == 6
    assert looked[0][2][0].shape == (SMALL.num_heads, SMALL.top_k)


@pytest.mark.parametrize("length", [18, 20, 30])
def test_slots_lead_to_the_tokens_whose_pairs_they_hold(length):
    params = draw_parameters(SMALL)
    _, state = read(params, SMALL, TOKENS[:length])
    file = file_of(SMALL)
    sources = Sources(file, SMALL, ByteTokenizer())
    memory = state.memories[0]
    # The first layer's keys depend on their own token alone.
    plain = Plain(params, SMALL)
    gain = plain.p["layers.0.attention_norm_gain"]
    x = np.array([plain.norm(one, gain) for one in plain.p["embedding"][TOKENS]])
    keys = np.einsum("pe,ehd->phd", x, plain.p["layers.0.key_kernel"])
    complete = length // 5 * 5
    assert memory.num_written[0] == length - 10
    if complete < length:
        _, state = read(params, SMALL, TOKENS[:complete])
        memory = state.memories[0]
    assert memory.num_valid[0] > 0
    for slot in range(int(memory.num_valid[0])):
        document, position = sources._place(20 + slot, length + 1)
        assert document == -1
        np.testing.assert_allclose(memory.keys[0, :, slot], keys[position], atol=1e-5)
    assert sources._place(12, length) == (1, 3)


def test_near_positions_make_one_passage_and_the_heaviest_comes_first():
    sources = Sources(file_of(SMALL, 40), SMALL, ByteTokenizer())
    slots = np.array([[3, 5, 39, -1], [3, 20, 42, -1]])
    weights = np.array([[0.25, 0.25, 0.5, 0.0], [0.125, 0.125, 0.5, 0.0]])
    text = np.arange(65, 90, dtype=np.int32)
    first, *others = sources.passages({0: (slots, weights)}, text, 3)
    # Slots 3 and 5 are two tokens apart in the first document.
    assert (first.source, first.position) == ("one", 4)
    assert first.share == (0.25 + 0.25 + 0.125) / 2
    assert (first.before, first.at, first.after) == ("abcd", "e", "fghijklmnopq")
    assert str(first) == " 31.25%  one:4  abcd[e]fghijklmnopq"
    assert {(other.source, other.position) for other in others} == {
        ("two", 20),
        # Pair 2, whose slot none of the 10 pairs written has taken since.
        ("this text", 5),
    }
    assert sum(other.share for other in others) == 0.5


def test_the_command_prints_text_and_passages(tmp_path, capsys):
    model = make_model(tmp_path / "model")
    (tmp_path / "documents").mkdir()
    documents = make_documents(tmp_path / "documents")
    path = tmp_path / "memory"
    arguments = ("read", str(documents), f"--model={model}", f"--save={path}")
    assert main([*arguments, "--memory-size=16", "--memory-layers=1", *READING]) == 0
    capsys.readouterr()
    reading = [part for part in READING if part != "--quiet"]
    asked = ["generate", f"--model={model}", f"--memory={path}", "--memory-size=16"]
    asked += [*reading, "--prompt=abc fed cab gag a", "--tokens=7"]
    assert main([*asked, "--seed=3"]) == 0
    text = capsys.readouterr().out
    assert main([*asked, "--seed=3", "--show-retrieved=2"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(text)
    lines = shown[len(text) :].splitlines()
    assert sum("documents/" in line and "%" in line for line in lines) > 7
    starts = [line.split(":")[0] for line in lines if line[:1].isdigit()]
    assert starts == [str(i + 1) for i in range(7)]
    said = refused(capsys, *asked, "--show-retrieved=-1")
    assert "show_retrieved is -1" in said
    assert "give either --prompt" in refused(capsys, "generate", f"--model={model}")
    assert "the prompt is empty" in refused(capsys, *asked, "--prompt=")
    assert "remembers layers 1" in refused(capsys, *asked, "--memory-layers=0")
    path.write_bytes(path.read_bytes()[:-1])
    assert "cut short" in refused(capsys, *asked)
