"""The rooms: passes and targets know nothing of each other, the compiler stands on both.

Each module is imported first thing in a fresh interpreter, which also shows any import circle.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("passes", "targets", "compiler")
ALLOWED = {
    "passes": {"numpy", "networkx", "ccnn.passes"},
    "targets": {"numpy", "jinja2", "yaml", "jsonschema", "ml_dtypes", "ccnn.targets"},
}
ALLOWED["compiler"] = {
    *ALLOWED["passes"], *ALLOWED["targets"],
    "onnx", "google", "ortools", "click", "rich", "ccnn.compiler",
}  # fmt: skip
LONGEST_FILE = 450
LONGEST_FUNCTION = 70
"""Lines; the taste is 400 and 60, and this is where a reviewer need not be asked."""

PROBE = """
import importlib, json, sys
failed = {}
for name in sys.argv[1:]:
    for loaded in [m for m in sys.modules if m.split(".")[0] == "ccnn"]:
        del sys.modules[loaded]
    try:
        importlib.import_module(name)
    except Exception as error:
        failed[name] = repr(error)
print(json.dumps({"failed": failed, "loaded": sorted(sys.modules)}))
"""


def modules(room: str) -> list[str]:
    """Import names of all modules of a folder."""
    names = []
    for path in sorted((ROOT / room).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if parts[-1] != "__main__":
            names.append(".".join(("ccnn", *parts)))
    return names


def probe(names: list[str]) -> dict:
    """Import modules, each as if it were the first of ccnn, in one fresh interpreter."""
    result = subprocess.run(
        [sys.executable, "-sP", "-c", PROBE, *names], capture_output=True, text=True, check=True
    )
    return json.loads(result.stdout)


def imports(path: Path) -> set[str]:
    """Names that a file imports anywhere in it, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            if node.module in ("ccnn", "ccnn.compiler", "ccnn.passes", "ccnn.targets"):
                found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


@pytest.mark.parametrize("room", ["passes", "targets"])
def test_a_room_can_be_imported_alone(room):
    found = probe(modules(room))
    assert found["failed"] == {}
    roots = {name.split(".")[0] for name in found["loaded"]}
    assert not roots & {"onnx", "ortools", "click", "rich", "passes", "targets", "compiler"}
    others = [f"ccnn.{other}" for other in ROOMS if other != room]
    assert not [name for name in found["loaded"] if name.startswith(tuple(others))]


def test_every_compiler_module_can_be_the_first_import():
    found = probe(modules("compiler"))
    assert found["failed"] == {}
    assert not {name.split(".")[0] for name in found["loaded"]} & set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_files_import_only_what_their_room_may_use(room):
    strangers = {}
    for path in (ROOT / room).rglob("*.py"):
        for name in imports(path):
            root = name.split(".")[0]
            group = ".".join(name.split(".")[:2]) if root == "ccnn" else root
            if root not in sys.stdlib_module_names and group not in ALLOWED[room]:
                strangers.setdefault(str(path.relative_to(ROOT)), []).append(name)
    assert strangers == {}


@pytest.mark.parametrize("room", ROOMS)
def test_no_module_level_import_goes_round_in_a_circle(room):
    names = set(modules(room))
    net = nx.DiGraph()
    for path in (ROOT / room).rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        here = ".".join(("ccnn", *(parts[:-1] if parts[-1] == "__init__" else parts)))
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ImportFrom) and node.module:
                inner = [f"{node.module}.{alias.name}" for alias in node.names]
                net.add_edges_from((here, name) for name in (node.module, *inner) if name in names)
    circles = [c for c in nx.strongly_connected_components(net) if len(c) > 1]
    assert circles == []


def test_help_loads_nothing_heavy():
    code = (
        "import sys\n"
        "from ccnn.compiler.cli import run\n"
        "assert run(['--help']) == 0\n"
        "assert run(['compile', '--help']) == 0\n"
        "heavy = {'numpy', 'onnx', 'ortools', 'networkx', 'rich', 'jinja2', 'yaml', 'jsonschema'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    result = subprocess.run(
        [sys.executable, "-sP", "-c", code], capture_output=True, text=True, check=True
    )
    assert "Usage: ccnn" in result.stdout
    assert result.stderr.strip() == "heavy: []"


def test_bare_folder_names_were_not_imported_by_the_tests():
    assert not set(ROOMS) & set(sys.modules)


def _lines(node: ast.FunctionDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def test_no_file_or_function_has_grown_too_long():
    long = []
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            text = path.read_text()
            if text.count("\n") > LONGEST_FILE:
                long.append(f"{path.relative_to(ROOT)}: {text.count(chr(10))} lines")
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef) and _lines(node) > LONGEST_FUNCTION:
                    long.append(f"{path.relative_to(ROOT)}: {node.name} is too long")
    assert long == []
