"""`plan`: what a training step would need and cost on a TPU slice."""

import dataclasses
import itertools
import sys
import time
from pathlib import Path
from typing import Annotated, Literal

import tyro

from memorizing_jax import plan, plan_report
from memorizing_jax.config import SearchEngine
from memorizing_jax.plan_report import Row
from memorizing_jax.presets import PRESETS
from memorizing_jax.sharding import MeshConfig


@dataclasses.dataclass(frozen=True)
class Setting:
    """What one line of a plan is about: the fields that tell it from others."""

    preset: str
    topology: str
    memory_size: int
    search: SearchEngine
    batch: int
    accumulation: int
    mesh_memory: int
    mesh_model: int
    quick: bool

    def without_memory(self) -> "Setting":
        """Returns the same step with no memory, to compare with."""
        search = PRESETS[self.preset]().model.search
        return dataclasses.replace(self, memory_size=0, search=search)

    def compiled(self) -> Row:
        """Compiles the step; returns these fields and those of `plan.Plan`.

        Raises:
          InputError: as `plan.make`.
        """
        config = PRESETS[self.preset]()
        sharded = self.mesh_memory > 1 or self.mesh_model > 1
        mesh = MeshConfig(
            memory=self.mesh_memory if self.memory_size else 1, model=self.mesh_model
        )
        config = dataclasses.replace(
            config,
            model=config.model.replace(
                memory_size=self.memory_size, search=self.search
            ),
            mesh=mesh if sharded else config.mesh,
            batch=self.batch,
            accumulation=self.accumulation,
        )
        begun = time.monotonic()
        found = dataclasses.asdict(plan.make(config, self.topology, self.quick))
        seconds = round(time.monotonic() - begun)
        return dataclasses.asdict(self) | found | {"compiled_in_seconds": seconds}


@dataclasses.dataclass(frozen=True)
class Plan:
    """Compiles training steps for TPU slices and prints what they need.

    No TPU is needed, only the extra `tpu` on Linux for x86-64. Each step is compiled
    with its memory and without, which takes minutes. Several presets, slices or sizes
    are combined into a table.
    """

    topology: tuple[str, ...]
    """Slices: the kind of chip and how chips are laid out, as v5e:4x4, v5p:4x4x4."""
    preset: tuple[Literal["tiny", "demo", "base", "1b", "8b"], ...] = ("base",)
    """Settings to begin with."""
    memory_size: tuple[int, ...] = ()
    """Pairs kept per row and head; 0 for none; as in the preset if left out."""
    search: SearchEngine | None = None
    """How neighbors are found; as in the preset if left out."""
    batch: int | None = None
    """Rows of a step on all chips together; as in the preset if left out."""
    accumulation: int | None = None
    """Parts that a step reads its rows in; as in the preset if left out."""
    mesh_memory: Annotated[int, tyro.conf.arg(name="mesh.memory")] = 1
    """Shards of each memory's slots."""
    mesh_model: Annotated[int, tyro.conf.arg(name="mesh.model")] = 1
    """Shards of heads and MLP; as many as chips exceed rows where this and
    --mesh.memory are left out."""
    quick: bool = False
    """Compile at the least effort: seconds and not minutes, more bytes than in earnest,
    and often no estimate of the time."""
    json: Path | None = None
    """File of JSON lines, one per step; those already there are not compiled again."""
    quiet: bool = False
    """Show no progress."""

    def run(self) -> int:
        """Runs the command; returns the exit status."""
        rows = plan_report.read(self.json) if self.json is not None else []
        settings = self._settings()
        pairs = []
        for i, one in enumerate(settings):
            without = one.without_memory()
            for setting in dict.fromkeys((without, one)):
                if _find(rows, setting) is None:
                    self._say(f"{i + 1} of {len(settings)}: compiling {setting}")
                    rows.append(setting.compiled())
                    if self.json is not None:
                        plan_report.append(self.json, rows[-1])
            row, plain = _find(rows, one), _find(rows, without)
            assert row is not None
            assert plain is not None
            pairs.append((row, plain))
        show = plan_report.text if len(pairs) == 1 else plan_report.table
        print(show(pairs))
        return 0

    def _settings(self) -> list[Setting]:
        """Returns all combinations, those with the smallest memory first.

        Raises:
          InputError: a setting is impossible.
        """
        settings = []
        for preset, topology in itertools.product(self.preset, self.topology):
            begin = PRESETS[preset]()
            for size in sorted(self.memory_size or (begin.model.memory_size,)):
                begin.model.replace(memory_size=size)
                one = Setting(
                    preset,
                    topology,
                    size,
                    search=self.search or begin.model.search,
                    batch=begin.batch if self.batch is None else self.batch,
                    accumulation=begin.accumulation
                    if self.accumulation is None
                    else self.accumulation,
                    mesh_memory=self.mesh_memory,
                    mesh_model=self.mesh_model,
                    quick=self.quick,
                )
                settings.append(one if size else one.without_memory())
        return settings

    def _say(self, what: str) -> None:
        if not self.quiet:
            print(f"memorizing_jax: {what}", file=sys.stderr, flush=True)


def _find(rows: list[Row], setting: Setting) -> Row | None:
    wanted = dataclasses.asdict(setting)
    for row in rows:
        if {name: row.get(name) for name in wanted} == wanted:
            return row
    return None
