"""The wheel holds exactly what the three folders hold, and the command works from it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("compiler", "passes", "targets")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def packages() -> set[str]:
    """Import names of all folders that hold a module."""
    folders = {path.parent for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    return {".".join(("ccnn", *folder.relative_to(ROOT).parts)) for folder in folders}


def sources(root: Path) -> set[str]:
    """Files that must be in the wheel, by their name in it."""
    return {
        f"ccnn/{path.relative_to(root)}"
        for room in ROOMS
        for path in (root / room).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_package_list_is_complete():
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == packages()


def test_each_room_is_marked_as_typed():
    assert all((ROOT / room / "py.typed").is_file() for room in ROOMS)


def test_the_license_is_the_one_named():
    assert PROJECT["project"]["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()


def test_the_changelog_knows_the_version():
    assert f"## {PROJECT['project']['version']}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel built from a fresh copy: setuptools would take stale files from build/."""
    copy = tmp_path_factory.mktemp("wheel") / "ccnn"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for room in ROOMS:
        shutil.copytree(ROOT / room, copy / room, ignore=shutil.ignore_patterns("__pycache__"))
    (copy.parent / "sources").write_text("\n".join(sorted(sources(copy))))
    out = copy.parent / "dist"
    command = (sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps")
    done = subprocess.run([*command, "-w", str(out), str(copy)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (made,) = out.glob("*.whl")
    return made


@pytest.mark.slow
def test_the_wheel_holds_what_the_folders_hold(wheel):
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert inside == set((wheel.parent.parent / "sources").read_text().split("\n"))


@pytest.mark.slow
def test_the_command_works_from_the_wheel(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if 'Editable' not in repr(f)]\n"
        "import ccnn.compiler.cli as cli\n"
        f"assert cli.__file__.startswith({str(tmp_path)!r}), cli.__file__\n"
        "sys.exit(cli.run(['targets', 'show', 'tiny']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("tiny:")
