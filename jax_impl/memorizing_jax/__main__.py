"""The verbs: train | evaluate | generate | plan | rank-layers | read."""

import argparse
import contextlib
import io
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from memorizing_data.token_files import TokenFileError
from memorizing_jax import hosts
from memorizing_jax.commands import Command, Evaluate, Generate, Train
from memorizing_jax.errors import InputError
from memorizing_jax.memory_commands import GeneratePretrained, Read
from memorizing_jax.plan_command import Plan
from memorizing_jax.presets import PRESETS
from memorizing_jax.pretrained_commands import EvaluatePretrained, RankLayers
from memorizing_jax.run_folder import RunFolder


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status.

    Bad input is answered with one sentence and exit status 2.
    """
    try:
        return _parse(sys.argv[1:] if arguments is None else arguments).run()
    except (InputError, TokenFileError) as error:
        reason = str(error)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        reason = f"{where}{error.strerror or error}"
    except KeyboardInterrupt:
        print("memorizing_jax: stopped at once", file=sys.stderr)
        return 130
    except RuntimeError as error:  # What XLA raises.
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = "the device has too little memory; lower --batch or --memory-size"
    print(f"memorizing_jax: {reason}", file=sys.stderr)
    return 2


def _parse(
    arguments: Sequence[str],
) -> Command | EvaluatePretrained | GeneratePretrained | Plan | RankLayers | Read:
    """Returns the command that the arguments ask for.

    Raises:
      InputError: the settings are impossible together.
      SystemExit: the arguments are malformed, or ask for help.
    """
    default = _train_defaults(arguments)
    # The same verbs for models of both kinds, whose settings differ.
    pretrained = _names_a_model(arguments)
    evaluate: Any = EvaluatePretrained if pretrained else Evaluate
    generate: Any = GeneratePretrained if pretrained else Generate
    commands = (
        Annotated[Train, tyro.conf.subcommand("train", default=default)]
        | Annotated[evaluate, tyro.conf.subcommand("evaluate")]
        | Annotated[generate, tyro.conf.subcommand("generate")]
        | Annotated[Plan, tyro.conf.subcommand("plan")]
        | Annotated[RankLayers, tyro.conf.subcommand("rank-layers")]
        | Annotated[Read, tyro.conf.subcommand("read")]
    )
    shown = io.StringIO()
    try:
        with contextlib.redirect_stderr(shown):
            return tyro.cli(
                commands,
                prog="python -m memorizing_jax",
                description=__doc__,
                args=list(arguments),
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as stop:
        # tyro frames whatever a setting raises; ours is a sentence already.
        error: BaseException | None = stop
        while error is not None:
            if isinstance(error, InputError):
                raise error from None
            error = error.__cause__ or error.__context__
        sys.stderr.write(shown.getvalue())
        raise


def _names_a_model(arguments: Sequence[str]) -> bool:
    return any(x == "--model" or x.startswith("--model=") for x in arguments)


def _train_defaults(arguments: Sequence[str]) -> Train:
    """Returns the settings that `train` begins with, before any flag changes them."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--output", type=Path)
    known, _ = parser.parse_known_args(arguments)
    config = PRESETS.get(known.preset, PRESETS["demo"])()
    checkpoints = None
    if known.resume and known.output is not None:
        folder = RunFolder(known.output)
        if folder.config.exists():
            config, saved = folder.read()
            checkpoints = saved["checkpoints"]
    return Train(
        data=tyro.MISSING,
        output=tyro.MISSING,
        checkpoints=checkpoints,
        config=config,
    )


if __name__ == "__main__":
    try:
        ended_with = main()
    except Exception:  # An error of ours, to be shown whole.
        traceback.print_exc()
        ended_with = 1
    sys.exit(hosts.leave(ended_with))
