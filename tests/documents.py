"""The pages people read, as tests: their commands run, their Python runs, their output is real.

What a fenced block means is said by its language:

    console   lines after `$ ` are commands; lines below one, if any, are all that it prints
    python    a program; a block of `text` or `ccnn` right below it is what it prints
    ccnn      a graph, which must parse and pass the checker; asm: a whole program, which must be
              safe; yaml: a machine; toml: must parse
    any language with title="NAME": also written to that file, for the blocks below it to use

Printed figures change with every better schedule, so numbers (with their units) are compared by
being there, not by value, and each line that is shown must be among those printed.
`pytest --update-golden` writes what is printed now into the page.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parent.parent
_FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_NUMBER = re.compile(
    r"[-+]?\d[\d,]*(\.\d+)?(e[-+]?\d+)?( ?([KMG]iB|[KMG]?MAC|[munp]?[sJ]|B|%|x)\b)?"
)
PRINTED = ("text", "ccnn")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the file it is written to (or ''), and its text."""

    language: str
    title: str
    text: str


def blocks(page: str) -> list[Block]:
    """All fenced blocks of a page, in order."""
    return [
        Block(language, "".join(re.findall(r'title="([^"]*)"', info)), text)
        for language, info, text in _FENCE.findall(page)
    ]


def commands(block: Block) -> Iterator[tuple[str, str]]:
    """Each command of a console block with what is shown below it."""
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, _, shown = part.partition("\n")
        yield command, shown


def make_workplace(folder: Path) -> Path:
    """Make a folder look like the top of a checkout with `ccnn` on the path."""
    for name in ("tests", "examples"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "report.schema.json").symlink_to(ROOT / "compiler/report/report.schema.json")
    scripts = folder / "bin"
    scripts.mkdir()
    for name, start in (("ccnn", "-m ccnn.compiler"), ("python", "")):
        (scripts / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {start} "$@"\n')
        (scripts / name).chmod(0o755)
    return folder


def run(workplace: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a workplace, whose Python files can be imported."""
    path = f"{workplace / 'bin'}{os.pathsep}{os.environ['PATH']}"
    modules = f"{workplace}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    return subprocess.run(
        words, cwd=workplace, env={**os.environ, "PATH": path, "PYTHONPATH": modules},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def shell(workplace: Path, command: str) -> subprocess.CompletedProcess[str]:
    """Run a line as a shell would."""
    return run(workplace, "sh", "-c", command)


def essence(text: str) -> list[str]:
    """The lines of an output without its figures and spacing."""
    return [" ".join(_NUMBER.sub("#", line).split()) for line in text.splitlines() if line.strip()]


def real_output(
    workplace: Path, page: str, skip: Callable[[Block], bool]
) -> Iterator[tuple[str, str, str]]:
    """Do what a page says, in order; gives what was run, what is shown and what was printed.

    Blocks that are to be skipped are; AssertionError when a command fails.
    """
    found = blocks(page)
    for block, below in pairwise([*found, Block("", "", "")]):
        if block.title:
            (workplace / block.title).write_text(block.text)
        elif block.language == "console":
            for command, shown in commands(block):
                done = shell(workplace, command)
                assert done.returncode == 0, f"$ {command}\n{done.stdout}{done.stderr}"
                if shown:
                    yield command, shown, _tidy(done.stdout)
        elif block.language == "python" and not skip(block):
            done = run(workplace, "python", "-c", block.text)
            assert done.returncode == 0, f"{block.text}\n{done.stderr}"
            if below.language in PRINTED and not below.title:
                yield block.text, below.text, _tidy(done.stdout)


def _tidy(text: str) -> str:
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())
