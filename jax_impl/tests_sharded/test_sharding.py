"""The table: a rule for every array, and sizes that do not divide are refused."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from memorizing_jax import decode, presets, sharding, train_step
from memorizing_jax.errors import InputError
from memorizing_jax.sharding import MeshConfig
from memorizing_jax.train_config import OptimizerConfig

MESH = MeshConfig(data=2, memory=2, model=2)


def specs_of_run(optimizer, search="exact"):
    """Returns the names, shapes and divisions of all that `base` carries."""
    config = presets.base()
    config = dataclasses.replace(
        config,
        model=config.model.replace(search=search),
        optimizer=OptimizerConfig(optimizer=optimizer),
        mesh=MESH,
    )
    run = jax.eval_shape(functools.partial(train_step.init, config))
    specs = sharding.specs(run, sharding.make_mesh(MESH))
    leaves = zip(
        jax.tree_util.tree_leaves_with_path(run), jax.tree.leaves(specs), strict=True
    )
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): (leaf.shape, spec)
        for (path, leaf), spec in leaves
    }


@pytest.mark.parametrize("optimizer", ["adafactor", "adamw"])
def test_everything_large_is_divided_over_all_devices(optimizer):
    for name, (shape, spec) in specs_of_run(optimizer).items():
        parts = [(part,) if isinstance(part, str) else part or () for part in spec]
        named = {axis for part in parts for axis in part}
        if "/v_row/" in name or "/v_col/" in name:
            assert not named, name
        elif "caches" in name:
            assert named == {"data", "model"}, name
        elif jnp.prod(jnp.array(shape)) > 2**16:
            assert named == {"data", "memory", "model"}, name


def test_rows_slots_and_heads_are_where_the_axes_say():
    found = specs_of_run("adamw", search="clustered")
    fully = ("data", "memory")
    assert found["parameters/layers.8.query_kernel"][1] == P(fully, "model", None)
    assert found["optimizer/1/0/mu/layers.8.mlp_out_kernel"][1] == P("model", fully)
    assert found["model/memories/0/keys"][1] == P("data", "model", "memory", None)
    assert found["model/memories/0/num_written"][1] == P("data")
    lists = found["model/memories/0/index/lists/count"][1]
    assert lists == P(("data", "model", "memory"), None)


def test_stacked_layers_are_not_cut_apart():
    stacked = jax.ShapeDtypeStruct((8, 16, 4, 6), jnp.float32)
    tree = {"parameters": {"layers.0:8.key_kernel": stacked}}
    specs = sharding.specs(tree, sharding.make_mesh(MESH))
    assert jax.tree.leaves(specs) == [P(None, ("data", "memory"), "model", None)]


def test_the_state_of_decoding_has_rules():
    config = presets.tiny().model
    state = jax.eval_shape(functools.partial(decode.init_decode_state, config, 2))
    specs = sharding.specs({"model": state}, sharding.make_mesh(MESH))
    assert specs["model"].position == P("data")


def test_parameters_that_do_not_divide_stay_whole():
    tree = {"parameters": {"embedding": jax.ShapeDtypeStruct((257, 6), jnp.float32)}}
    specs = sharding.specs(tree, sharding.make_mesh(MESH))
    assert jax.tree.leaves(specs) == [P(None, "data")]


@pytest.mark.parametrize(
    ("rules", "message"),
    [((), "0 rules .* match 'step'"), (((".*", ()), ("step", ())), "2 rules .*'step'")],
)
def test_a_leaf_needs_one_rule(monkeypatch, rules, message):
    monkeypatch.setattr(sharding, "RULES", rules)
    with pytest.raises(LookupError, match=message):
        sharding.specs({"step": jnp.zeros(())}, sharding.make_mesh(MESH))


def test_a_mesh_of_another_number_of_devices_is_refused():
    with pytest.raises(InputError, match="takes 6 devices, and there are 8"):
        sharding.make_mesh(MeshConfig(data=3, memory=2))
    with pytest.raises(InputError, match=r"memory 16 .* takes 16 devices"):
        sharding.make_mesh(MeshConfig(memory=16))
    with pytest.raises(InputError, match=r"mesh\.model is 0, must be 1 or more"):
        MeshConfig(model=0)
    assert sharding.make_mesh(MeshConfig(memory=4)).shape["data"] == 2


@pytest.mark.parametrize(
    ("changes", "batch", "message"),
    [
        ({}, 7, "batch is 7, which 2 shards of the mesh axis data do not divide"),
        ({"num_heads": 3}, 8, "num_heads is 3, which 2 shards of the mesh axis model"),
        ({"mlp_dim": 65}, 8, "mlp_dim is 65, which 2 shards"),
        ({"memory_size": 33}, 8, "memory_size is 33, .* the mesh axis memory"),
        ({"search": "scann"}, 8, "'scann', whose index serves a single device"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(changes, batch, message):
    config = presets.tiny().model.replace(**changes)
    with pytest.raises(InputError, match=message):
        sharding.check(sharding.make_mesh(MESH), config, batch)


def test_what_is_not_there_need_not_divide():
    mesh = sharding.make_mesh(MESH)
    odd = presets.tiny().model.replace(memory_size=33, memory_layers=())
    sharding.check(mesh, odd, batch=2)
