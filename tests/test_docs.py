"""The documentation tells the truth: what it says to do works, and prints what it shows."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from documents import ROOT, Block, blocks, essence, make_workplace, real_output

from ccnn.passes.check import verify
from ccnn.passes.text import parse_graph
from ccnn.targets.machine import load_machine
from ccnn.targets.text import parse_program
from ccnn.targets.verify import verify_program

PAGES = sorted((ROOT / "docs").glob("*.md"))


def without_torch(block: Block) -> bool:
    """True for what only runs where PyTorch is."""
    return "import torch" in block.text and importlib.util.find_spec("torch") is None


@pytest.mark.slow
@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.stem)
def test_what_a_page_shows_is_what_happens(path, tmp_path, request):
    page = path.read_text()
    for what, shown, printed in real_output(make_workplace(tmp_path), page, without_torch):
        if request.config.getoption("--update-golden"):
            page = showing(page, what, shown, printed)
            path.write_text(page)
        else:
            missing = [line for line in essence(shown) if line not in essence(printed)]
            assert not missing, f"{what}\nno longer prints\n" + "\n".join(missing)


def showing(page: str, what: str, shown: str, printed: str) -> str:
    """The page with what a command or a program prints now in the place of what is shown."""
    at = page.index(shown, page.index(what) + len(what))
    return page[:at] + printed + page[at + len(shown) :]


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.stem)
def test_the_languages_of_a_page_parse(path, tmp_path):
    for block in blocks(path.read_text()):
        if block.language == "ccnn":
            verify(parse_graph(block.text))
        elif block.language == "asm":
            program = parse_program(block.text)
            assert verify_program(program, load_machine(program.machine)) == []
        elif block.language == "yaml":
            (tmp_path / block.title).write_text(block.text)
            load_machine(tmp_path / block.title)
        elif block.language == "toml":
            tomllib.loads(block.text)
        else:
            assert block.language in ("console", "python", "text"), block


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r"- ([\w/]+\.md)", (ROOT / "mkdocs.yml").read_text()))
    assert listed == {str(p.relative_to(ROOT / "docs")) for p in (ROOT / "docs").rglob("*.md")}


def test_modules_of_the_reference_exist():
    names = [
        name
        for path in (ROOT / "docs" / "reference").glob("*.md")
        for name in re.findall(r"^::: ([\w.]+)$", path.read_text(), re.MULTILINE)
    ]
    assert len(names) > 30
    for name in names:
        assert importlib.util.find_spec(name), name


def definitions(path: Path) -> Iterator[tuple[str, ast.AST]]:
    """A module and its public classes, functions and methods, by name."""
    module = ast.parse(path.read_text())
    yield str(path), module
    for part in module.body:
        if isinstance(part, ast.ClassDef | ast.FunctionDef) and not part.name.startswith("_"):
            yield part.name, part
            for inner in part.body if isinstance(part, ast.ClassDef) else ():
                if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_"):
                    yield f"{part.name}.{inner.name}", inner


def test_what_is_public_has_a_docstring():
    # A method may leave it to the class that first says what it is for.
    found = [
        (name, ast.get_docstring(part))
        for room in ("passes", "targets", "compiler")
        for path in sorted((ROOT / room).rglob("*.py"))
        for name, part in definitions(path)
    ]
    assert len(found) > 1000
    said = {name.rpartition(".")[2] for name, text in found if text and "." in name}
    silent = [name for name, text in found if not text and name.rpartition(".")[2] not in said]
    assert not silent


def test_pictures_are_there_and_small():
    for path in (ROOT / "README.md", *PAGES):
        for name in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", path.read_text()):
            picture = (path.parent / name).resolve()
            assert picture.is_relative_to(ROOT / "docs")
            assert 0 < picture.stat().st_size < 300_000


@pytest.mark.slow
def test_the_site_builds_strictly(tmp_path):
    pytest.importorskip("mkdocs", reason="the site needs the packages of the extra `docs`")
    package = tmp_path / "api" / "ccnn"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    for room in ("compiler", "passes", "targets"):
        (package / room).symlink_to(ROOT / room)
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "CCNN_API": str(tmp_path / "api")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "differentiate" in (tmp_path / "site" / "reference" / "passes.html").read_text()
