"""The committed vectors are what the generator writes, small, and described."""

import filecmp
import subprocess
import sys
from pathlib import Path

import pytest

from memorizing_conformance import generate, vectors
from memorizing_conformance.cases import CASES
from memorizing_conformance.handlers import HANDLERS

FORMAT = Path(__file__).parents[1] / "FORMAT.md"
READER = Path(__file__).parents[1] / "examples" / "read_vectors.py"


def relative_files(folder):
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file()
    )


def test_the_generator_writes_them_byte_for_byte(tmp_path):
    generate.write_all(tmp_path / "vectors")
    files = relative_files(vectors.FOLDER)
    assert relative_files(tmp_path / "vectors") == files
    _, different, unreadable = filecmp.cmpfiles(
        vectors.FOLDER, tmp_path / "vectors", files, shallow=False
    )
    assert (different, unreadable) == ([], []), "run memorizing_conformance.generate"


def test_they_are_small():
    sizes = [
        (vectors.FOLDER / name).stat().st_size
        for name in relative_files(vectors.FOLDER)
    ]
    assert sum(sizes) < 2 * 2**20


def test_cases_have_names_of_their_own():
    names = [(case.handler, case.name) for case in CASES]
    assert len(set(names)) == len(names)


def test_the_generator_stops_where_hand_and_reference_differ():
    case = next(case for case in CASES if "slots" in case.by_hand)
    wrong = case.by_hand["slots"] + 1
    object.__setattr__(case, "by_hand", {**case.by_hand, "slots": wrong})
    try:
        with pytest.raises(ValueError, match="the reference disagrees"):
            generate.expected_of(case)
    finally:
        object.__setattr__(case, "by_hand", {**case.by_hand, "slots": wrong - 1})


@pytest.mark.parametrize("handler", HANDLERS)
def test_the_format_is_described(handler):
    assert f"## `{handler}`" in FORMAT.read_text()


def test_the_standard_library_can_read_them():
    output = subprocess.check_output(
        [sys.executable, "-S", READER, vectors.FOLDER], text=True
    )
    assert output.endswith("cases agree\n")
    assert int(output.split()[0]) >= 10
    assert len(READER.read_text().splitlines()) <= 50
