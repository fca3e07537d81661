"""The README tells the truth: its commands run, its tables match, its picture is real."""

from __future__ import annotations

import json
import os
import re
import tomllib
from pathlib import Path

import onnx
import pytest
from documents import blocks as all_blocks
from documents import commands, make_workplace, run, shell

from ccnn.compiler.failure import MEANING

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    return [block.text for block in all_blocks(README) if block.language == language]


def table(heading: str) -> dict[str, str]:
    """The two-column table below a heading."""
    section = README.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `?(.*?)`? \| (.*?) \|$", section, re.MULTILINE)
    return {left: right for left, right in rows if set(left) != {"-"} and left != ""}


def tutorial() -> list[str]:
    """Every command of the tutorial."""
    consoles = [block for block in all_blocks(README) if block.language == "console"]
    return [command for block in consoles for command, _ in commands(block)]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A folder where the commands find the test data and write their own files."""
    return make_workplace(tmp_path_factory.mktemp("tutorial"))


@pytest.mark.slow
def test_the_tutorial_runs_word_for_word(workplace):
    commands = tutorial()
    assert len(commands) >= 8
    for command in commands:
        done = shell(workplace, command)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    reports = [
        json.loads((workplace / "ccnn-out" / name / "report.json").read_text())["totals"]
        for name in ("first", "second")
    ]
    assert reports[0]["macs"] == reports[1]["macs"]
    assert reports[0]["cycles"] < reports[1]["cycles"]
    assert (workplace / "ccnn-out" / "results.npz").stat().st_size > 0


@pytest.mark.slow
def test_the_python_example_runs(workplace):
    (example,) = blocks("python")
    done = run(workplace, "python", "-c", example)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"\d+ \d+ \d+\.\d%\n", done.stdout)


@pytest.mark.slow
def test_the_picture_is_what_compile_prints(workplace, request):
    # All but measured figures is compared: those change with every better schedule.
    # `make golden` takes a new picture.
    (picture,) = blocks("text")
    done = shell(
        workplace, f"ccnn compile {LIGHT}/light_resnet50.onnx --batch 32 -q -o r && ccnn report r"
    )
    assert done.returncode == 0, done.stderr
    if request.config.getoption("--update-golden"):
        new = "".join(f"{line.rstrip()}\n" for line in done.stdout.splitlines())
        (ROOT / "README.md").write_text(README.replace(picture, new))
        return
    real = {" ".join(line.split()) for line in done.stdout.splitlines()}
    shown = [" ".join(line.split()) for line in picture.splitlines()]
    for line in shown[:3]:
        assert line in real
    heading = next(line for line in shown if line.startswith("this program"))
    assert heading in real
    macs = next(line for line in shown if line.startswith("MACs"))
    assert macs in real
    assert (workplace / "r" / "report.html").stat().st_size < 1_500_000  # opens on a phone


def test_exit_codes():
    assert table("Exit codes") == {"code": "meaning"} | {
        str(code.value): meaning for code, meaning in MEANING.items()
    }


def test_dependencies():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[>\[]", line)[0] for line in project["dependencies"]}
    assert set(table("What it needs, and why")) == {"package"} | names
    for line in project["optional-dependencies"]["dev"]:
        assert re.split(r"[>\[]", line)[0] in README


def test_ten_words():
    assert len(set(table("Ten words")) - {"word"}) == 10


def test_files_that_are_named_exist():
    for name in table("Where things are"):
        assert (ROOT / name).exists(), name


def test_make_targets_that_are_named_exist():
    makefile = (ROOT / "Makefile").read_text()
    for text in (README, CONTRIBUTING):
        for name in re.findall(r"`?make ([a-z]+)`?", text):
            assert re.search(rf"^{name}:", makefile, re.MULTILINE) or name == "and", name


def test_ci_runs_what_the_readme_says():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text().splitlines()[-1] == "exec make test"
    assert "make test" in README


@pytest.mark.slow
def test_the_commands_of_contributing_run(workplace):
    """With a shipped model and machine in the place of one's own."""
    commands = re.findall(r"`(ccnn [^`]+)`", CONTRIBUTING)
    assert len(commands) >= 6
    for command in commands:
        line = command.replace("MODEL", "tests/data/squeezenet/model.onnx").replace("NAME", "tiny")
        done = shell(workplace, line)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        assert done.stdout.strip(), line


def test_the_places_that_contributing_names_exist():
    places = re.findall(r"`((?:passes|targets|compiler|tests)/[\w./]+)`", CONTRIBUTING)
    own = [p for p in places if not re.search(r"NAME|do_something", p)]
    assert len(own) >= 8
    assert [p for p in own if not (ROOT / p).exists()] == []


@pytest.mark.parametrize("heading", ["Add an op", "Add a pass", "Add a machine"])
def test_contributing_takes_ten_lines_each(heading):
    section = CONTRIBUTING.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line]
    assert [line.split(".")[0] for line in lines] == [str(n) for n in range(1, 11)]
