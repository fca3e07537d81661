"""Ops, passes and machines of a package that ccnn knows only by its entry points."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parent / "plugin_example"
PROJECT = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())
MODEL = Path(__file__).parent / "data" / "resnet8_cifar" / "model.onnx"


def declare(folder: Path, name: str, entries: dict[str, str]) -> None:
    """What an installer writes for a package: its name and its entry points."""
    info = folder / f"{name.replace('-', '_')}-0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
    lines = [f"{key} = {value}" for key, value in entries.items()]
    (info / "entry_points.txt").write_text("[ccnn.plugins]\n" + "\n".join(lines) + "\n")


def python(path: list[Path], *arguments: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter that finds packages in these folders too."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd="/")


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> list[Path]:
    """The toy package as if it were installed."""
    folder = tmp_path_factory.mktemp("site")
    project = PROJECT["project"]
    declare(folder, project["name"], project["entry-points"]["ccnn.plugins"])
    return [folder, EXAMPLE]


USE = """
import sys
import numpy as np
from ccnn.passes.autodiff import differentiate
from ccnn.passes.graph import Builder
from ccnn.passes.interpret import interpret
from ccnn.passes.ops import op_named
from ccnn.passes.pipeline import DEFAULT, pass_named, run_pipeline

assert "ccnn_toy" not in sys.modules
b = Builder("squares")
x = b.declare("x", (5,), "parameter", data=np.arange(5.0))
y = b.emit("mul", [x, x])
loss = b.emit("reduce_sum", [y], axes=(0,), keepdims=False)
graph = run_pipeline(b.build([loss]), [pass_named("find-squares")()])
assert [n.op for n in graph.nodes] == ["toy_square", "reduce_sum"], graph.nodes
step = differentiate(graph, loss)
lowered = run_pipeline(step, DEFAULT)
assert all(op_named(n.op).primitive for n in lowered.nodes), lowered.nodes
for made in (step, lowered):
    values = interpret(made, {})
    assert float(values[loss]) == 30.0
    assert values[made.gradients["x"]].tolist() == [0, 2, 4, 6, 8]
assert not {"onnx", "ortools", "click"} & set(sys.modules)
print("fine")
"""


def test_an_op_and_a_pass_from_outside_work_like_ours(toy):
    done = python(toy, "-c", USE)
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr


def test_the_lists_know_them_and_load_nothing_for_other_names(toy):
    code = (
        "import sys\n"
        "from ccnn.passes.ops import op_named, op_names\n"
        "from ccnn.targets.machine import load_machine\n"
        "names = op_names()\n"
        "assert 'toy_square' in names and list(names) == sorted(names)\n"
        "op_named('relu'), load_machine('tiny')\n"
        "assert not [m for m in sys.modules if m.startswith('ccnn_toy')]\n"
        "assert load_machine('toy').clock_ghz == 0.2\n"
        "assert load_machine('toy').rows == load_machine('tiny').rows\n"
    )
    done = python(toy, "-c", code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ops"], ["toy_square", "y = x²."]),
        (["passes"], ["find-squares", "Writes a tensor times itself as toy_square."]),
        (["targets"], ["toy ", "The tiny machine with a faster clock"]),
        (["targets", "show", "toy"], ["toy: The tiny machine with a faster clock", "0.2 GHz"]),
    ],
    ids=" ".join,
)
def test_the_command_shows_them(toy, arguments, words):
    done = python(toy, "-m", "ccnn.compiler", *arguments)
    assert done.returncode == 0, done.stderr
    for word in words:
        assert word in done.stdout


def test_a_model_compiles_for_a_machine_from_outside(toy, tmp_path):
    out = str(tmp_path / "out")
    done = python(
        toy, "-m", "ccnn.compiler", "compile", str(MODEL), "--target", "toy", "-o", out, "-q"
    )
    assert done.returncode == 0, done.stderr
    assert "toy" in (tmp_path / "out" / "program.asm").read_text()


BROKEN = {
    "op.absent": "no_such_module:Op",
    "op.wrong": "math:pi",
    "op.misnamed": "ccnn_toy.ops:Square",
    "pass.failing": "failing_module:Pass",
    "pass.wrong": "math:pi",
    "machine.absent": "ccnn_toy:NO_MACHINE",
    "machine.wrong": "math:pi",
}


@pytest.fixture(scope="module")
def broken(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("broken")
    declare(folder, "ccnn-broken", BROKEN)
    (folder / "failing_module.py").write_text("raise RuntimeError('not today')\n")
    return [folder, EXAMPLE]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (
            "from ccnn.passes.ops import op_named; op_named('absent')",
            "PluginError: the plug-in op.absent = no_such_module:Op of ccnn-broken 0.1 cannot be "
            "loaded: ModuleNotFoundError: No module named 'no_such_module'; repair that package "
            "or uninstall it",
        ),
        (
            "from ccnn.passes.ops import op_named; op_named('wrong')",
            "PluginError: the plug-in op.wrong is 3.14",
        ),
        (
            "from ccnn.passes.ops import op_named; op_named('misnamed')",
            "must be a subclass of ccnn.passes.ops.base.Op whose name is 'misnamed'",
        ),
        (
            "from ccnn.passes.pipeline import pass_named; pass_named('failing')",
            "cannot be loaded: RuntimeError: not today; repair that package",
        ),
        (
            "from ccnn.passes.pipeline import pass_named; pass_named('wrong')",
            "it must be a class whose `name` is 'wrong' and whose instances take a graph",
        ),
        (
            "from ccnn.targets.machine import load_machine; load_machine('absent')",
            "MachineError: the plug-in machine.absent = ccnn_toy:NO_MACHINE of ccnn-broken 0.1 "
            "cannot be loaded: AttributeError",
        ),
        (
            "from ccnn.targets.machine import load_machine; load_machine('wrong')",
            "cannot be loaded: AttributeError: 'float' object has no attribute 'read_bytes'",
        ),
    ],
)
def test_a_broken_plugin_is_named(broken, code, words):
    done = python(broken, "-c", code)
    assert done.returncode == 1
    assert words in done.stderr


def test_a_broken_plugin_harms_only_those_who_ask_for_it(broken):
    assert python(broken, "-m", "ccnn.compiler", "check", str(MODEL), "-q").returncode == 0
    done = python(broken, "-m", "ccnn.compiler", "ops")
    assert done.returncode == 3
    assert done.stderr.startswith("ccnn: the plug-in op.absent = no_such_module:Op of ccnn-broken")
    assert "bug" not in done.stderr


def test_two_packages_with_one_name_are_told_apart(toy, tmp_path):
    declare(tmp_path, "ccnn-other", PROJECT["project"]["entry-points"]["ccnn.plugins"])
    for code, what in (
        ("from ccnn.passes.ops import op_named; op_named('toy_square')", "op 'toy_square'"),
        ("from ccnn.targets.machine import load_machine; load_machine('toy')", "machine 'toy'"),
    ):
        done = python([tmp_path, *toy], "-c", code)
        assert f"the {what} is declared by ccnn-other 0.1 and ccnn-toy 0.1; " in done.stderr


def test_ours_cannot_be_replaced(tmp_path):
    declare(tmp_path, "ccnn-thief", {"op.relu": "no:Op", "machine.tiny": "no:MACHINE"})
    code = (
        "from ccnn.passes.ops import op_named, op_names\n"
        "from ccnn.targets.machine import load_machine\n"
        "assert type(op_named('relu')).__module__ == 'ccnn.passes.ops.activations'\n"
        "assert op_names().count('relu') == 1\n"
        "assert load_machine('tiny').rows == 4\n"
    )
    done = python([tmp_path], "-c", code)
    assert done.returncode == 0, done.stderr


def test_a_misspelt_name_is_told_the_plugins_too(toy):
    done = python(
        toy, "-c", "from ccnn.passes.pipeline import pass_named; pass_named('find-sqares')"
    )
    assert "there is no pass 'find-sqares'; did you mean find-squares?" in done.stderr
    done = python(toy, "-c", "from ccnn.passes.ops import op_named; op_named('toy_sqare')")
    assert "there is no op 'toy_sqare'; did you mean toy_square" in done.stderr


@pytest.mark.slow
def test_it_installs_as_any_package_does(tmp_path):
    command = ("-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps", "--no-index")
    copy = tmp_path / "source"
    for path in EXAMPLE.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            target = copy / path.relative_to(EXAMPLE)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    done = python([], *command, "--target", str(tmp_path / "site"), str(copy))
    assert done.returncode == 0, done.stderr
    done = python([tmp_path / "site"], "-c", USE)
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr
