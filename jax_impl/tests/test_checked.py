"""Checked search stops where the first NaN or infinity would be used (KNN-3)."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import SMALL, draw_parameters, read

from memorizing_data.token_files import open_split
from memorizing_jax import evaluate, parameter_files, search, train
from memorizing_jax.__main__ import main
from memorizing_jax.errors import InputError

CHECKED = SMALL.replace(checked=True)
NAN_TOKEN = 28


def first_refusal(retrieved):
    """Returns the message about the first memory layer that has one, or None."""
    for layer, found in retrieved.items():
        try:
            search.raise_if_not_finite(found.not_finite, layer)
        except InputError as error:
            return str(error)
    return None


def segments(*tokens):
    """Returns segments of one row, each of seven tokens."""
    return np.array(tokens, np.int32).reshape(-1, 1, 7)


@pytest.fixture(scope="module")
def spoiled():
    """Returns parameters with a NaN in one row of the embedding."""
    params = draw_parameters(CHECKED)
    embedding = params["embedding"].at[NAN_TOKEN, 3].set(jnp.nan)
    return params | {"embedding": embedding}


@pytest.mark.rule("KNN-3")
def test_names_the_first_query_that_is_not_finite(spoiled):
    tokens = segments(range(7), [7, 8, NAN_TOKEN, 9, 10, 11, 12])
    _, _, retrieved = read(spoiled, CHECKED, tokens)
    assert first_refusal(retrieved[0]) is None
    assert first_refusal(retrieved[1]) == (
        "queries[(0, 2, 0, 0)] of memory layer 0 is nan, must be finite; the index is "
        "row, position, head, dimension"
    )


@pytest.mark.rule("KNN-3")
@pytest.mark.rule("MEM-11")
def test_names_the_first_key_that_could_be_found_until_a_reset_hides_it():
    # Of the last layer's kernel, so that no query is touched.
    clean = draw_parameters(CHECKED)
    broken = clean["layers.2.key_kernel"].at[0, 1, 4].set(jnp.inf)
    broken = clean | {"layers.2.key_kernel": broken}
    tokens = segments(range(7), range(7, 14), range(14, 21))
    starts = [[True], [False], [True]]
    _, state, retrieved = read(broken, CHECKED, tokens, starts)
    assert [first_refusal(found) is None for found in retrieved] == [True, False, True]
    message = first_refusal(retrieved[1])
    assert message.startswith("keys[(0, 0, 1, ")
    assert "of memory layer 2 is" in message
    assert not np.isfinite(state.memories[1].keys).all()


def test_unchecked_search_looks_at_nothing(spoiled):
    _, _, retrieved = read(spoiled, SMALL, segments([NAN_TOKEN] * 7))
    assert retrieved[0][0].not_finite is None
    assert first_refusal(retrieved[0]) is None


@pytest.fixture(scope="module")
def one_layer(small):
    """Returns settings of a checked run; a single layer compiles sooner."""
    model = small.model.replace(num_layers=1, memory_layers=(0,), checked=True)
    return dataclasses.replace(small, model=model, evaluation_interval=0)


@pytest.fixture(scope="module")
def damaged(one_layer, dataset, tmp_path_factory):
    """Returns a file of parameters with a NaN where the letter Q is embedded."""
    config = one_layer.model
    params = draw_parameters(config)
    params["embedding"] = params["embedding"].at[ord("Q"), 0].set(jnp.nan)
    tokenizer = open_split(dataset, "train").tokenizer
    path = tmp_path_factory.mktemp("damaged") / "parameters.safetensors"
    parameter_files.save(path, parameter_files.Trained(params, config, tokenizer, 0))
    return path


@pytest.mark.rule("KNN-3")
def test_training_stops_before_it_saves_anything(one_layer, dataset, damaged, tmp_path):
    output = tmp_path / "run"
    with pytest.raises(InputError, match=r"^queries\[.* of memory layer 0 is nan"):
        train.train(one_layer, dataset, output, initial=damaged, quiet=True)
    assert not (output / "parameters.safetensors").exists()
    assert not list(output.glob("checkpoints/*"))


@pytest.mark.rule("KNN-3")
def test_evaluation_stops(one_layer, dataset, damaged):
    params = parameter_files.load(damaged).parameters
    held_out = open_split(dataset, "test")
    with pytest.raises(InputError, match=r"^queries\[.* of memory layer 0 is nan"):
        evaluate.evaluate(params, one_layer.model, held_out, 2)


def test_the_commands_have_it(dataset, damaged, capsys):
    for command in ("train", "evaluate"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert "--checked" in capsys.readouterr().out
    arguments = ("evaluate", f"--data={dataset}", f"--parameters={damaged}")
    assert main([*arguments, "--checked", "--quiet", "--batch=2"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("memorizing_jax: queries[(")
    assert said.count("\n") == 1
