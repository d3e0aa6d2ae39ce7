"""The command line: `python -m memorizing_data prepare | inspect`."""

import io
import json
import sys
from typing import Annotated, Any

import tyro

from memorizing_data import inspection, summary
from memorizing_data.errors import InputError
from memorizing_data.inspection import Inspect
from memorizing_data.manifest import TokenFileError
from memorizing_data.prepare import prepare
from memorizing_data.settings import Prepare

Command = (
    Annotated[Prepare, tyro.conf.subcommand("prepare")]
    | Annotated[
        Inspect, tyro.conf.subcommand("inspect"), tyro.conf.PositionalRequiredArgs
    ]
)


def main(arguments: list[str] | None = None) -> int:
    """Runs one command.

    Args:
      arguments: without the program's name; from the command line if left out.

    Returns:
      The exit status: 0, or 2 if what was asked for cannot be done.
    """
    # Names of documents may hold characters that the terminal cannot show.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    command = tyro.cli(
        Command,
        args=arguments,
        prog="python -m memorizing_data",
        description="From raw text to token files.",
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    try:
        if isinstance(command, Prepare):
            _prepare(command)
        else:
            _inspect(command)
    except (InputError, TokenFileError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; nothing was changed", file=sys.stderr)
        return 130
    return 0


def _prepare(settings: Prepare) -> None:
    wrote = prepare(settings)
    found = summary.summarize(settings.output)
    if settings.json:
        print(json.dumps(found | {"written": wrote}))
    elif not settings.quiet:
        print(*summary.lines(found), sep="\n")
        if not wrote:
            print(f"{settings.output} was there already, intact; nothing was written")
    _warn(found)


def _inspect(settings: Inspect) -> None:
    if settings.verify:
        inspection.verify(settings.directory)
    found = summary.summarize(settings.directory)
    lines = summary.lines(found)
    if settings.verify:
        found["verified"] = True
        lines.append("verified    all files have the sizes and SHA-256 of the manifest")
    if settings.document is not None:
        text = inspection.head(settings.directory, settings.document, settings.tokens)
        found["head"] = text
        lines.append(f"\n{text}")
    print(json.dumps(found) if settings.json else "\n".join(lines))
    _warn(found)


def _warn(found: dict[str, Any]) -> None:
    for warning in summary.warnings(found):
        print(f"warning: {warning}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
