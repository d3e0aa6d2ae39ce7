"""Tokenizers bring every text back, or say that they cannot."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memorizing_data import tokenizer
from memorizing_data.errors import InputError
from memorizing_data.tokenizer import ByteTokenizer, JsonTokenizer, train_bpe

EXAMPLES = settings(deadline=None, derandomize=True, max_examples=200)
TEXTS = [
    "def f(x):\n\n    return x\r\n\n\n  # naïve ☃ \t\n" * 20,
    "the cat sat on the mat\nthe mat sat on the cat\n" * 20,
]
# Text as the cutting of words finds it hard: spaces, newlines, quotes, digits.
HARD = st.text(st.sampled_from("\n\n\n a1'.\r\t\x0b\x0c\x1c\x85\xa0\u2028\u3000ü☃s"))


@pytest.fixture(scope="module")
def bpe():
    return JsonTokenizer(train_bpe(TEXTS, 300))


def test_bytes_are_tokens():
    assert ByteTokenizer().encode("aü\0").tolist() == [97, 195, 188, 0]
    assert ByteTokenizer().decode([97, 195, 188, 195]) == "aü\N{REPLACEMENT CHARACTER}"


@EXAMPLES
@given(text=st.text() | HARD)
def test_bytes_bring_every_text_back(text):
    tokens = ByteTokenizer().encode(text)
    assert tokens.dtype == np.int32
    assert ByteTokenizer().decode(tokens) == text


@EXAMPLES
@given(text=st.text() | HARD)
def test_bpe_brings_every_text_back(bpe, text):
    tokens = bpe.encode(text)
    assert tokens.dtype == np.int32
    assert bpe.decode(tokens) == text
    assert bpe.encode("").tolist() == []


@EXAMPLES
@given(text=HARD)
def test_cutting_a_text_into_pieces_changes_no_token(bpe, text):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer, "_PIECE", 10**9)
        whole = bpe.encode(text).tolist()
        patch.setattr(tokenizer, "_PIECE", 0)
        assert bpe.encode(text).tolist() == whole


def test_long_texts_are_cut():
    pieces = list(tokenizer._pieces("one line\n" * 20_000))
    assert len(pieces) == 3
    assert "".join(pieces) == "one line\n" * 20_000


def test_bpe_learns_the_same_from_the_same_texts(bpe):
    once = train_bpe(iter(TEXTS), 300)
    assert once == train_bpe(iter(TEXTS), 300)
    assert 256 < bpe.vocab_size <= 300
    assert len(bpe.encode(TEXTS[1])) < len(TEXTS[1].encode()) / 2


def test_a_given_tokenizer_neither_cuts_short_nor_adds(bpe):
    fields = json.loads(train_bpe(TEXTS, 300))
    fields["truncation"] = {
        "direction": "Right",
        "max_length": 5,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    special = {"SpecialToken": {"id": "a", "type_id": 0}}
    fields["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [special, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [special, {"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {"a": {"id": "a", "ids": [64], "tokens": ["a"]}},
    }
    trimmed = JsonTokenizer(json.dumps(fields))
    assert trimmed.encode(TEXTS[0]).tolist() == bpe.encode(TEXTS[0]).tolist()


def test_vocabulary_reaches_to_the_highest_token(specification):
    vocab = {"a": 0, "b": 70_000}
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": "a"}
    assert JsonTokenizer(specification(model)).vocab_size == 70_001


def test_refuses_a_tokenizer_that_encodes_at_random():
    fields = json.loads(train_bpe(TEXTS, 300))
    fields["model"]["dropout"] = 0.1
    with pytest.raises(InputError, match="at random"):
        JsonTokenizer(json.dumps(fields))


@pytest.mark.parametrize("text", ["", "{}", "[1]", "text"])
def test_refuses_what_is_no_tokenizer(text):
    with pytest.raises(InputError, match=r"not a tokenizer\.json"):
        JsonTokenizer(text)


@pytest.mark.parametrize(
    ("text", "decoded", "passage"),
    [
        ("same", "same", None),
        ("0123456789abcdef", "0123456789abc?ef", "3456789abcdef"),
        ("ab", "a", "ab"),
        ("ab", "abc", "ab"),
    ],
)
def test_names_the_passage_that_was_lost(text, decoded, passage):
    assert tokenizer.first_loss(text, decoded) == passage
