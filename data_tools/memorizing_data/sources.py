"""From what a person names to a source of documents."""

import os
from pathlib import Path

from memorizing_data import corpora
from memorizing_data.documents import JsonLines, Source
from memorizing_data.errors import InputError
from memorizing_data.folder import Folder
from memorizing_data.settings import Prepare

_OF_FOLDERS = ("document_per", "extensions", "order_seed")
_OF_JSON_LINES = ("text_field", "name_field")


def open_source(settings: Prepare) -> Source:
    """Returns the source that the settings name.

    Raises:
      InputError: there is no such source, or an option does not apply to it.
    """
    path = Path(settings.input)
    if settings.input in corpora.NAMES:
        _refuse(settings, _OF_FOLDERS + _OF_JSON_LINES, "a built-in corpus")
        cache = settings.cache.expanduser()
        return corpora.built_in(settings.input, cache, quiet=settings.quiet)
    # An empty name, as an unset shell variable gives, is not the current folder.
    if os.path.isdir(settings.input):
        _refuse(settings, _OF_JSON_LINES, "a folder")
        return Folder(
            path,
            document_per=settings.document_per,
            extensions=tuple(_ending(each) for each in settings.extensions),
            order_seed=settings.order_seed,
        )
    if path.is_file() and path.suffix.lower() in (".jsonl", ".ndjson"):
        _refuse(settings, _OF_FOLDERS, "a file of JSON lines")
        return JsonLines(path, settings.text_field, settings.name_field)
    if os.path.exists(settings.input):
        raise InputError(
            f"the input {settings.input} is neither a folder nor a file of JSON lines "
            "(.jsonl); put it into a folder of its own"
        )
    raise InputError(
        f"the input {settings.input!r} does not exist; name a folder, a .jsonl file, "
        f"or one of the built-in corpora {', '.join(corpora.NAMES)}"
    )


def check_apart(source: Source, output: Path) -> None:
    """Checks that a source's folder and the output do not lie in one another.

    Raises:
      InputError: they do, and the next run would read what this one writes, or
        this one would replace what it reads.
    """
    path = getattr(source, "path", None)
    if path is None:
        return
    inner = path.resolve()
    if output.is_relative_to(inner) or inner.is_relative_to(output):
        raise InputError(
            f"the input {path} and the output {output} lie in one another; choose "
            "another --output"
        )


def _refuse(settings: Prepare, options: tuple[str, ...], what: str) -> None:
    for option in options:
        if getattr(settings, option) != getattr(Prepare, option):
            raise InputError(
                f"--{option.replace('_', '-')} does not apply to {what} such as "
                f"{settings.input}; leave it out"
            )


def _ending(extension: str) -> str:
    return "." + extension.lower().removeprefix(".")
