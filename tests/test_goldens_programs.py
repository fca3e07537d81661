"""Emitted programs of small graphs on `tiny`, as text: tests/golden/programs.

NAME.ccnn is the graph, in primitives; NAME.mapping the tilings (kept, because a solver may find
others of the same cost tomorrow); NAME.asm what has to come out.  `pytest --update-golden` writes
the last, and the mapping where there is none.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ccnn.compiler.codegen import generate, make_context
from ccnn.compiler.mapper import map_graph
from ccnn.compiler.mapping import Mapping, parse_mapping
from ccnn.passes.graph import Graph
from ccnn.passes.interpret import interpret
from ccnn.passes.text import parse_graph
from ccnn.targets.machine import load_machine
from ccnn.targets.program import Program
from ccnn.targets.simulator import Execution
from ccnn.targets.text import print_program
from ccnn.targets.verify import verify_program

FOLDER = Path(__file__).parent / "golden" / "programs"
TINY = load_machine("tiny")
NAMES = sorted(path.stem for path in FOLDER.glob("*.ccnn"))


def graph_of(name: str) -> Graph:
    return parse_graph((FOLDER / f"{name}.ccnn").read_text(encoding="utf-8"))


def mapping_of(name: str, graph: Graph, write: bool = False) -> Mapping:
    path = FOLDER / f"{name}.mapping"
    if write and not path.exists():
        path.write_text(map_graph(make_context(graph, TINY, "float32")).text(), encoding="utf-8")
    return parse_mapping(path.read_text(encoding="utf-8"))


def program_of(name: str, write: bool = False) -> Program:
    graph = graph_of(name)
    return generate(make_context(graph, TINY, "float32"), mapping_of(name, graph, write))


@pytest.mark.parametrize("name", NAMES)
def test_program(name, golden, request):
    text = print_program(program_of(name, request.config.getoption("--update-golden")))
    assert len(text.splitlines()) < 120, "one idea a file: make the graph smaller"
    golden(f"programs/{name}.asm", text)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_expected_is_safe_and_right(name):
    """A golden that nobody executed may be wrong for years."""
    graph, program = graph_of(name), program_of(name)
    assert verify_program(program, TINY) == []
    rng = np.random.default_rng(0)
    values = {
        t.name: rng.standard_normal(t.shape).astype(np.float32)
        for t in graph.of_role("input", "parameter", "state", "constant")
    }
    run = Execution(program, TINY, poison=True)
    for tensor, value in values.items():
        run.write(tensor, value)
    run.step()
    want = interpret(graph, values, keep=graph.needed)
    for tensor in graph.needed:
        scale = max(1.0, float(np.abs(want[tensor]).max()))
        assert np.abs(run[tensor] - want[tensor]).max() <= 1e-5 * scale, tensor


def test_every_file_belongs_to_a_graph():
    found = {path.stem for path in FOLDER.iterdir()}
    assert found == set(NAMES)
    assert len(NAMES) >= 10
