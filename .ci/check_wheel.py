"""Checks that a wheel holds every file of its packages and works when installed."""

import argparse
import os
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

PACKAGES = {
    "memorizing_conformance": "conformance",
    "memorizing_data": "data_tools",
    "memorizing_jax": "jax_impl",
    "memorizing_reference": "reference",
}
COMMANDS = ["memorizing_conformance", "memorizing_data", "memorizing_jax"]


def main() -> None:
    """Exits with a sentence that says what is wrong with the wheel, if anything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path)
    wheel = parser.parse_args().wheel.resolve()
    if missing := sorted(source_files() - set(zipfile.ZipFile(wheel).namelist())):
        sys.exit(f"{wheel.name} lacks {', '.join(missing)}")
    with tempfile.TemporaryDirectory() as directory:
        check_installed(wheel, Path(directory).resolve())
    print(f"{wheel.name} is whole and works from another directory")


def source_files() -> set[str]:
    """Returns the files of all packages, named as the wheel names them."""
    root = Path(__file__).parents[1]
    return {
        path.relative_to(root / folder).as_posix()
        for package, folder in PACKAGES.items()
        for path in (root / folder / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def check_installed(wheel: Path, directory: Path) -> None:
    """Installs the wheel into an environment of its own and runs its commands."""
    environment = directory / "environment"
    python = environment / "bin" / "python"
    run = {"cwd": directory, "env": outside()}
    subprocess.check_call([sys.executable, "-m", "venv", environment], **run)
    install = ["-m", "pip", "install", "--quiet", "--no-deps", wheel]
    subprocess.check_call([python, *install], **run)

    # The dependencies are those of the running environment. Python reads no .pth file
    # of a folder named in a .pth file, so the editable install stays invisible.
    site = environment / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))

    for package in PACKAGES:
        found = f"import {package}; print({package}.__file__)"
        origin = subprocess.check_output([python, "-c", found], **run, text=True)
        if not Path(origin).is_relative_to(site):
            sys.exit(f"{package} is imported from {origin.strip()}, not from the wheel")
    for command in COMMANDS:
        help_text = [python, "-m", command, "--help"]
        if subprocess.call(help_text, stdout=subprocess.DEVNULL, **run):
            sys.exit(f"the installed `python -m {command} --help` failed, see above")


def outside() -> dict[str, str]:
    """Returns the environment variables without what points into the repository."""
    ours = {"PYTHONPATH", "PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT"}
    return {name: value for name, value in os.environ.items() if name not in ours}


if __name__ == "__main__":
    main()
