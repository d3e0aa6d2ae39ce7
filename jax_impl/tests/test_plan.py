"""Plans: the paper's step through the TPU compiler, and how they are told."""

import dataclasses
import functools
import json
import math
import re

import jax
import jax.numpy as jnp
import pytest

from memorizing_jax import (
    chips,
    parameters,
    plan,
    plan_report,
    presets,
    program_costs,
    sharding,
    tpu_compiler,
    train_step,
)
from memorizing_jax.__main__ import main
from memorizing_jax.config import ModelConfig
from memorizing_jax.errors import InputError
from memorizing_jax.train_config import TrainConfig

GIB = 2**30
ROW = {
    "preset": "base",
    "topology": "v5e:4x4",
    "memory_size": 8192,
    "search": "bucketed",
    "batch": 256,
    "accumulation": 1,
    "mesh_memory": 1,
    "mesh_model": 1,
    "quick": False,
    "chips": 16,
    "mesh": [16, 1, 1],
    "tokens": 131_072,
    "parameters": GIB,
    "optimizer": GIB,
    "memory": GIB // 2,
    "cache": GIB // 4,
    "temporaries": 5 * GIB,
    "program": GIB // 4,
    "capacity": 16 * GIB,
    "fits": True,
    "reason": "",
    "operations": 3 * 10**12,
    "bytes_moved": 10**11,
    "compute_seconds": 0.5,
    "roofline_seconds": 0.125,
    "collectives": {"all-gather": [24, 3_000_000]},
    "in_place": True,
    "compiled_in_seconds": 60,
}
NONE = ROW | {"memory_size": 0, "memory": 0, "compute_seconds": 0.4}


@pytest.mark.parametrize(
    ("preset", "expected"), [("base", 184e6), ("1b", 871e6), ("8b", 6.574e9)]
)
def test_presets_have_the_sizes_of_the_paper(preset, expected):
    """All parameters, the tied embedding of 32,000 tokens once; no array is made."""
    config = presets.PRESETS[preset]()
    sizes = config.model
    drawn = jax.eval_shape(lambda: parameters.init(sizes, jax.random.key(0)))
    count = sum(array.size for array in drawn.values())
    assert count == pytest.approx(expected, rel=0.002)
    assert config.batch * sizes.segment_length == 2**17
    for memory_size in (8192, 65_536, 131_072, 262_144):
        assert sizes.replace(memory_size=memory_size).remembers


def test_the_papers_step_compiles_for_a_tpu():
    """For four chips of v5e, with two rows each: what breaks on TPUs breaks here."""
    pytest.importorskip("libtpu")
    config = dataclasses.replace(presets.base(), batch=8)
    mesh = sharding.make_mesh(config.mesh, tpu_compiler.devices("v5e:2x2"))
    run = jax.eval_shape(functools.partial(train_step.init, config))
    lowered = plan.trace(config, run, mesh).lower()
    compiled = tpu_compiler.compiled(lowered, quick=True)
    text, analysis = compiled.as_text(), compiled.memory_analysis()
    made = re.findall(r"= \(?(\w+)\[([\d,]+)\]\S* (\w[\w-]*)\(", text)
    assert len(made) > 100
    # Two rows, eight heads, 512 queries: nothing has a number for each and each slot.
    all_scores = 2 * 8 * 512 * 8192
    sizes = [math.prod(map(int, shape.split(","))) for _, shape, _ in made]
    assert max(sizes) < all_scores
    # The memory is handed through, and no second one is made.
    keys = ("bf16", "2,8,8192,128")
    assert {o for *what, o in made if tuple(what) == keys} >= {"parameter"}
    assert (*keys, "copy") not in made
    assert analysis.alias_size_in_bytes > 0.99 * analysis.argument_size_in_bytes
    assert analysis.temp_size_in_bytes < 8 * GIB
    # Parameters are gathered and gradients summed; of memories nothing travels.
    found = program_costs.costs(text)
    kinds = {"all-gather", "all-reduce", "reduce-scatter", "collective-permute"}
    assert "all-gather" in found.collectives
    assert set(found.collectives) <= kinds
    assert found.open_loops == 0
    traveling = re.compile(rf" ({'|'.join(kinds)})(-start)?\(")
    lines = [line for line in text.splitlines() if traveling.search(line)]
    assert lines
    assert not [line for line in lines if "8192,128]" in line]


def test_operations_by_hand():
    """Of loops as often as they turn, of alternatives one."""

    def function(x, y):
        x = jax.lax.scan(lambda x, _: (x @ y, None), x, length=5)[0]
        x = jax.lax.fori_loop(0, jnp.int32(7), lambda _, x: x @ y, x)
        return jax.lax.platform_dependent(x, cpu=lambda x: x @ y, default=jnp.abs)

    shapes = jax.ShapeDtypeStruct((2, 3), float), jax.ShapeDtypeStruct((3, 3), float)
    jaxpr = jax.make_jaxpr(function)(*shapes).jaxpr
    assert plan._operations(jaxpr) == (5 + 7 + 1) * 2 * 2 * 3 * 3


@pytest.mark.parametrize("memory_size", [8192, 65_536])
def test_operations_of_a_search_are_all_its_scores(memory_size):
    config = dataclasses.replace(presets.base(), batch=8)
    config = dataclasses.replace(
        config, model=config.model.replace(memory_size=memory_size, top_k=1)
    )
    bare = dataclasses.replace(config, model=config.model.replace(memory_size=0))
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    found, without = (
        plan._operations(
            plan.trace(
                c, jax.eval_shape(functools.partial(train_step.init, c)), mesh
            ).jaxpr.jaxpr
        )
        for c in (config, bare)
    )
    scores = 2 * 8 * 512 * 8 * 128 * memory_size
    assert found - without == pytest.approx(scores, rel=0.01)


def test_more_chips_than_rows_divide_the_heads():
    config = TrainConfig(model=ModelConfig(), batch=16, accumulation=2)
    assert plan.spread(config, 8).mesh == config.mesh
    wide = plan.spread(config, 32).mesh
    assert (wide.data, wide.memory, wide.model) == (8, 1, 4)


@pytest.mark.parametrize("topology", ["v5p:8x8x8", "v4:8x8x8", "v5e:16x16"])
def test_a_mesh_may_cut_a_torus_anywhere(topology):
    pytest.importorskip("libtpu")
    devices = tpu_compiler.devices(topology)
    shape = sharding.MeshConfig(memory=2, model=2)
    assert sharding.make_mesh(shape, devices).shape["data"] == len(devices) // 4


def test_a_plan_in_words():
    text = plan_report.text([(ROW, NONE)])
    for part in (
        "base on v5e:4x4: 16 chips",
        "fits: 50% of a chip's memory",
        "temporaries       5.00 GiB",
        "3.00 TFLOP in products, 100.0 GB to and from memory",
        "500.0 ms of computing by the compiler's estimate",
        "24 x all-gather, 3.0 MB received",
        "0.50 GiB per chip, +0% operations, +25% computing time",
    ):
        assert part in text
    said = "Ran out of memory: 17.00G exceeds 15.75G."
    full = ROW | {"fits": False, "reason": said, "temporaries": None}
    full |= {"compute_seconds": None, "collectives": {}}
    text = plan_report.text([(full, NONE)])
    assert f"does not fit, because the compiler says: {said}" in text
    assert "without it: not known, as one of them does not fit" in text
    lines = plan_report.table([(NONE, NONE), (ROW, NONE), (full, NONE)]).splitlines()
    assert len(lines) == 5
    assert {line.count("|") for line in lines} == {lines[0].count("|")}
    assert lines[3].endswith("| x1.25 |")


def test_what_was_compiled_is_not_compiled_again(tmp_path, capsys, monkeypatch):
    path = tmp_path / "plans.jsonl"
    compiled = []

    def make(config, topology, quick):
        assert not quick
        compiled.append((config.model.memory_size, topology))
        fields = {field.name for field in dataclasses.fields(plan.Plan)}
        return plan.Plan(**{k: v for k, v in ROW.items() if k in fields})

    monkeypatch.setattr(plan, "make", make)
    arguments = ["plan", "--topology", "v5e:4x4", "--json", str(path), "--memory-size"]
    assert main([*arguments, "8192"]) == 0
    assert compiled == [(0, "v5e:4x4"), (8192, "v5e:4x4")]
    assert main([*arguments, "8192", "0", "65536"]) == 0
    assert compiled[2:] == [(65_536, "v5e:4x4")]
    table = capsys.readouterr().out.splitlines()[-3:]
    memories = [re.split(r" *\| *", line)[5] for line in table]
    assert memories == ["none", "8,192 bucketed", "65,536 bucketed"]
    assert len(path.read_text().splitlines()) == 3
    path.write_text('{"step": 1}\n')
    assert main([*arguments, "8192"]) == 2
    assert "has a line that is no plan" in capsys.readouterr().err


def test_slices_that_do_not_exist(capsys):
    with pytest.raises(InputError, match="'v9:2x2' names no chip known here"):
        chips.of_topology("v9:2x2")
    assert main(["plan", "--topology", "v9:2x2", "--quiet"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "v5p:2x2x4" in said


def test_rows_are_json(tmp_path):
    path = tmp_path / "rows"
    plan_report.append(path, ROW)
    assert plan_report.read(path) == [json.loads(json.dumps(ROW))]
