"""The folder of a run: its settings, and whether one may start or continue there.

`config.json` holds the settings and what the data set is, `metrics.jsonl` what was
measured, `checkpoints/` what continues, `parameters.safetensors` what came out.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any, Final

from etils import epath

from memorizing_data.token_files import TokenFiles
from memorizing_jax import train_config
from memorizing_jax.errors import InputError
from memorizing_jax.train_config import TrainConfig

_VERSION: Final = 1
_KEYS: Final = frozenset({"settings", "data", "tokenizer", "initial", "checkpoints"})
_NEW: Final = "config.json.new"  # All that a kill at the very start may leave.


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """Where a run keeps its files.

    Attributes:
      path: the folder itself.
      elsewhere: a folder for the checkpoints outside of it, such as
        gs://bucket/folder; None if they lie in it.
    """

    path: Path
    elsewhere: str | None = None

    @property
    def config(self) -> Path:
        """The settings, as JSON."""
        return self.path / "config.json"

    @property
    def metrics(self) -> Path:
        """What was measured, as JSON lines."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> epath.Path:
        """A folder with one folder per step."""
        return epath.Path(self.elsewhere or self.path / "checkpoints")

    @property
    def not_finite(self) -> epath.Path:
        """A folder like it, for what a run held when its numbers were not finite."""
        beside = self.checkpoints
        return beside.with_name(beside.name + "_not_finite")

    @property
    def tensorboard(self) -> Path:
        """The metrics for TensorBoard, if asked for."""
        return self.path / "tensorboard"

    @property
    def profile(self) -> Path:
        """A trace of some steps, if asked for."""
        return self.path / "profile"

    @property
    def parameters(self) -> Path:
        """The parameters after the last step, as safetensors."""
        return self.path / "parameters.safetensors"

    def open(
        self,
        config: TrainConfig,
        token_files: TokenFiles,
        initial: str | None,
        *,
        resume: bool,
    ) -> bool:
        """Makes the folder ready for a run, or for its continuation.

        Args:
          config: settings of the run.
          token_files: its training split.
          initial: SHA-256 of the file of parameters it starts from, if any.
          resume: whether the run may have begun here.

        Returns:
          Whether it had.

        Raises:
          InputError: the folder holds something else, or another run.
        """
        begun = self.config.exists()
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is a file; --output must be a folder")
        if begun and not resume:
            raise InputError(
                f"{self.path} already holds a run; continue it with --resume, or "
                "choose another --output"
            )
        if begun:
            self._check_same(config, token_files, initial)
        elif self.path.is_dir() and {p.name for p in self.path.iterdir()} - {_NEW}:
            raise InputError(
                f"{self.path} holds files, but no run to continue; choose an --output "
                "that is empty or does not exist yet"
            )
        else:
            self.path.mkdir(parents=True, exist_ok=True)
            self._write(
                {
                    "version": _VERSION,
                    "settings": train_config.to_json(config),
                    "data": token_files.fingerprint,
                    "tokenizer": token_files.tokenizer,
                    "initial": initial,
                    "checkpoints": self.elsewhere,
                }
            )
        return begun

    def update(self, config: TrainConfig) -> None:
        """Notes the settings of a continued run, which may have more steps."""
        _, saved = self.read()
        settings = train_config.to_json(config)
        self._write(saved | {"settings": settings, "checkpoints": self.elsewhere})

    def _write(self, content: dict[str, Any]) -> None:
        """Writes `config.json`, under another name first."""
        new = self.path / _NEW
        new.write_text(json.dumps(content, indent=1) + "\n", encoding="ascii")
        os.replace(new, self.config)

    def read(self) -> tuple[TrainConfig, dict[str, Any]]:
        """Returns the settings, and the whole of `config.json`.

        Raises:
          InputError: there is no run, or its settings cannot be read.
        """
        try:
            saved = json.loads(self.config.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(
                f"{self.path} holds no config.json, so it is not the --output of a run"
            ) from None
        except ValueError:
            raise InputError(
                f"{self.config} is not valid JSON; was it altered?"
            ) from None
        if not isinstance(saved, dict) or saved.get("version") != _VERSION:
            raise InputError(
                f"{self.config} does not say version {_VERSION}, the one this program "
                "reads"
            )
        if missing := _KEYS - set(saved):
            raise InputError(f"{self.config} lacks {min(missing)!r}; was it altered?")
        return train_config.from_json(saved["settings"]), saved

    def _check_same(
        self, config: TrainConfig, token_files: TokenFiles, initial: str | None
    ) -> None:
        saved_config, saved = self.read()
        train_config.check_same_run(saved_config, config)
        if saved["data"] != token_files.fingerprint:
            raise InputError(
                f"the run in {self.path} reads the data set with fingerprint "
                f"{_short(saved['data'])}, and {token_files.directory} has "
                f"{_short(token_files.fingerprint)}; continue with the same --data"
            )
        # Needed once more if there is no checkpoint yet, so it must be the same.
        if saved["initial"] != initial and (initial or not self.has_checkpoint()):
            raise InputError(
                f"the run in {self.path} started from parameters with SHA-256 "
                f"{_short(saved['initial'])}, and --parameters has {_short(initial)}; "
                "continue with the same file"
            )

    def has_checkpoint(self) -> bool:
        """Whether there is a step to continue from."""
        folder = self.checkpoints
        return folder.is_dir() and any(p.name.isdigit() for p in folder.iterdir())


def _short(sha256: str | None) -> str:
    return "none" if sha256 is None else f"{sha256[:12]}..."
