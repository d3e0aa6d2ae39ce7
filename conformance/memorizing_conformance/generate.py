"""Writes the golden vectors: `python -m memorizing_conformance.generate`."""

import argparse
import json
import pathlib
import re
import shutil
import sys

import numpy as np

from memorizing_conformance import models, reference_files, vectors
from memorizing_conformance.cases import CASES
from memorizing_conformance.cases.case import Case
from memorizing_conformance.handlers import HANDLERS
from memorizing_conformance.implementation import Arrays
from memorizing_conformance.reference_adapter import (
    BucketedReference,
    Oracle,
    ReferenceImplementation,
)


class BucketedOracle(BucketedReference):
    """The reference in float64 with the buckets of a case."""

    dtype = np.float64

    def __init__(self, num_buckets: int, winners_per_bucket: int):
        self._bucketing = num_buckets, winners_per_bucket

    def bucketing(self, memory_size: int, top_k: int) -> tuple[int, int]:
        """Returns the buckets of the case, whatever the sizes."""
        del memory_size, top_k
        return self._bucketing


def expected_of(case: Case) -> Arrays:
    """Returns the results of a case: those worked by hand, the others computed.

    Raises:
      ValueError: if the reference computes something else than the hand did.
    """
    oracle: ReferenceImplementation = Oracle()
    if "bucketing" in case.settings:
        oracle = BucketedOracle(*case.settings["bucketing"])
    try:
        with models.watching_the_gap() as gaps:
            results = HANDLERS[case.handler](oracle, case.settings, case.arrays)
    except ValueError as error:
        if not is_refusal(error, case.settings.get("refused")):
            raise
        return {}
    if case.handler in ("model", "decode") and min(gaps) < models.MIN_GAP:
        raise ValueError(
            f"{case.handler}/{case.name}: two neighbors score within {min(gaps):.0e}, "
            "which float32 may order either way; take another seed"
        )
    if case.handler == "parameters":
        return {}  # Its shapes stand in case.json.
    for name, by_hand in case.by_hand.items():
        how = vectors.comparison_of(name, by_hand)
        try:
            vectors.compare(results[name], by_hand, how, name)
        except AssertionError as error:
            raise ValueError(
                f"{case.handler}/{case.name}: the reference disagrees: {error}"
            ) from error
    return {
        name: np.asarray(array, np.float32 if array.dtype.kind == "f" else None)
        for name, array in {**results, **case.by_hand}.items()
    }


def is_refusal(error: ValueError, refused: dict[str, object] | None) -> bool:
    """Whether an error names the array and the index that a case says it must."""
    if refused is None:
        return False
    index = r"\D+".join(str(i) for i in refused["index"])  # type: ignore[attr-defined]
    return bool(re.search(rf"{refused['array']}\D+{index}", str(error)))


def write(case: Case, folder: pathlib.Path) -> None:
    """Writes one case into a folder of its own."""
    expected = expected_of(case)
    content = {
        "handler": case.handler,
        "rules": case.rules,
        "says": case.says,
        "settings": case.settings,
        "compare": {n: vectors.comparison_of(n, a) for n, a in expected.items()},
        "by_hand": sorted(case.by_hand),
    }
    arrays = case.arrays | {vectors.EXPECTED + n: a for n, a in expected.items()}
    path = folder / case.handler / case.name
    path.mkdir(parents=True)
    (path / "case.json").write_text(json.dumps(content, indent=1) + "\n")
    reference_files.write(arrays, path / "arrays.npz")


def write_all(folder: pathlib.Path) -> None:
    """Writes every case; what the folder held before goes when all are there."""
    fresh = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    for case in CASES:
        write(case, fresh)
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default=vectors.FOLDER,
        metavar="FOLDER",
        help="replaced as a whole (default: the vectors of this package)",
    )
    folder = parser.parse_args().output
    if folder.is_file() or not folder.parent.is_dir():
        print(f"error: {folder} cannot be a folder for vectors", file=sys.stderr)
        return 2
    write_all(folder)
    size = sum(path.stat().st_size for path in folder.rglob("*.*"))
    print(f"{len(CASES)} cases in {folder}, {size / 1024:.0f} KiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
