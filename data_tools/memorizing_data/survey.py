"""A first reading of a source: what there is, what is skipped, and what goes where."""

import dataclasses
import fnmatch
import hashlib
import json
from collections.abc import Iterator

from tqdm import tqdm

from memorizing_data.documents import Source, SourceDocument
from memorizing_data.errors import InputError
from memorizing_data.manifest import SPLITS
from memorizing_data.split import SplitRule


@dataclasses.dataclass(frozen=True)
class Entry:
    """What is remembered of a document.

    Attributes:
      name: what it is called.
      num_bytes: length of its text in UTF-8.
      sha256: of its text in UTF-8, hexadecimal.
    """

    name: str
    num_bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Survey:
    """What a source holds.

    Attributes:
      source: where the documents come from.
      rule: decides the split of a document.
      entries: the documents by split, in the order of the source.
      skipped: name and reason of everything that could not be read, sorted.
      quiet: whether to go without progress bars.
    """

    source: Source
    rule: SplitRule
    entries: dict[str, list[Entry]]
    skipped: list[tuple[str, str]]
    quiet: bool

    def sha256(self) -> str:
        """Returns a hash of all texts, names, splits and skips."""
        found = {
            split: [(entry.name, entry.sha256) for entry in entries]
            for split, entries in self.entries.items()
        }
        return hashlib.sha256(json.dumps([found, self.skipped]).encode()).hexdigest()

    def read(self, split: str, doing: str) -> Iterator[tuple[Entry, SourceDocument]]:
        """Yields the documents of a split, with a progress bar.

        Args:
          split: "train", "validation" or "test".
          doing: label of the progress bar.

        Raises:
          InputError: the source is no longer as it was surveyed.
        """
        entries = self.entries[split]
        documents = self.source.documents(
            lambda _name, _reason: None, lambda name: self.rule.split_of(name) == split
        )
        with tqdm(
            desc=f"{doing} {split}",
            total=sum(entry.num_bytes for entry in entries),
            unit="B",
            unit_scale=True,
            leave=False,
            delay=0.5,
            disable=self.quiet,
        ) as bar:
            for entry in entries:
                document = next(documents, None)
                if document is None or _entry(document) != entry:
                    raise InputError(
                        f"{entry.name!r} changed while it was being read; run again"
                    )
                yield entry, document
                bar.update(entry.num_bytes)


def survey(source: Source, rule: SplitRule, *, quiet: bool) -> Survey:
    """Reads all documents of a source once.

    Raises:
      InputError: a pattern of the rule matches no document.
    """
    entries: dict[str, list[Entry]] = {split: [] for split in SPLITS}
    skipped: list[tuple[str, str]] = []
    documents = source.documents(
        lambda name, reason: skipped.append((name, reason)), lambda _name: True
    )
    for document in tqdm(
        documents, "reading", unit=" documents", leave=False, delay=0.5, disable=quiet
    ):
        entries[rule.split_of(document.name)].append(_entry(document))
    names = [entry.name for some in entries.values() for entry in some]
    for pattern in (*rule.test, *rule.validation):
        if names and not fnmatch.filter(names, pattern):
            raise InputError(
                f"the pattern {pattern!r} matches no document; they are called for "
                f"example {names[0]!r}"
            )
    return Survey(source, rule, entries, sorted(skipped), quiet)


def _entry(document: SourceDocument) -> Entry:
    content = document.text.encode()
    return Entry(document.name, len(content), hashlib.sha256(content).hexdigest())
