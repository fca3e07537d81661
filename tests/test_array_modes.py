"""Programs whose waves run in modes: as text, safe, with values, and what they cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import ceil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccnn.compiler import CompileOptions, compile_model, verify_values
from ccnn.compiler.codegen import generate, make_context
from ccnn.compiler.mapper import map_graph
from ccnn.compiler.mapper.array import Product, Rules
from ccnn.compiler.mapper.array_search import map_product
from ccnn.compiler.mapping import parse_mapping
from ccnn.passes.graph import Builder, Graph
from ccnn.passes.ops import op_named
from ccnn.targets.binary import ProgramError, decode, encode
from ccnn.targets.machine import Machine, load_machine
from ccnn.targets.modes import Mode, best_mode
from ccnn.targets.program import (
    ZERO,
    Buffer,
    Drain,
    Exec,
    Extent,
    Instruction,
    Load,
    LoadH,
    LoadV,
    Loop,
    Matrix,
    Program,
    Shift,
    Slot,
)
from ccnn.targets.simulator import Execution, SimulationError, simulate
from ccnn.targets.simulator.cost import Facts, instruction_cost
from ccnn.targets.text import parse_program, print_program
from ccnn.targets.verify import verify_program

MODES = (Mode("FW", 4, 4), Mode("VSW", 4, 2, 2), Mode("HSW", 2, 4, 2), Mode("ISW", 2, 2, 4))
FLEX = replace(load_machine("tiny"), modes=MODES)


def gemm_graph(m: int, n: int, k: int) -> Graph:
    b = Builder("gemm")
    operands = [b.input("a", (m, k)), b.input("b", (k, n))]
    out = b.emit("matmul", operands, trans_a=False, trans_b=False)
    return b.build([out])


def program_of(graph: Graph, machine: Machine = FLEX, mapping: str | None = None) -> Program:
    context = make_context(graph, machine, "float32")
    by_rule = parse_mapping(mapping) if mapping else map_graph(context, mapper="heuristic")
    return generate(context, by_rule)


def in_one_tile(m: int, n: int, k: int) -> str:
    """A mapping that leaves all cutting to the array."""
    head = "mapping for a machine\nmatmul: order m,n,k depth 2 "
    return head + f"tiles m={m} n={n} k={k} dram 0 bound 0\n"


def waves(program: Program) -> list[Exec]:
    found: list[Exec] = []

    def look(body) -> None:
        for item in body:
            if isinstance(item, Loop):
                look(item.body)
            elif isinstance(item, Exec):
                found.append(item)

    for kernel in program.kernels:
        look(kernel.body)
    return found


def execute(graph: Graph, program: Program, machine: Machine) -> None:
    """Safe, and equal to the op's reference."""
    assert verify_program(program, machine) == []
    rng = np.random.default_rng(1)
    values = [
        rng.standard_normal(graph[x].shape).astype(np.float32) for x in graph.nodes[0].inputs if x
    ]
    run = Execution(program, machine, poison=True)
    for name, value in zip(graph.nodes[0].inputs, values, strict=True):
        run.write(name, value)
    run.step()
    node = graph.nodes[0]
    (want,) = op_named(node.op).reference(node, values)
    assert np.abs(run[node.outputs[0]] - want).max() <= 1e-5 * max(1.0, np.abs(want).max())


# M x N x K whose blocks need these modes; 6 x 6 needs all four
SHAPES = {
    "full_wave": ((8, 4, 4), {"FW"}),
    "vertical_sub_waves": ((8, 2, 4), {"VSW"}),
    "horizontal_sub_waves": ((8, 4, 2), {"HSW"}),
    "independent_sub_waves": ((8, 2, 2), {"ISW"}),
    "all_modes": ((8, 6, 6), {"FW", "VSW", "HSW", "ISW"}),
}


@pytest.mark.parametrize("name", SHAPES)
def test_one_gemm_in_each_mode(golden, name: str):
    (m, n, k), modes = SHAPES[name]
    graph = gemm_graph(m, n, k)
    program = program_of(graph, FLEX, in_one_tile(m, n, k))
    assert {wave.mode for wave in waves(program)} == modes
    execute(graph, program, FLEX)
    golden(f"modes/{name}.asm", print_program(program))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(m=st.integers(1, 30), n=st.integers(1, 15), k=st.integers(1, 15))
def test_any_gemm_is_safe_right_and_round_trips(m: int, n: int, k: int):
    graph = gemm_graph(m, n, k)
    program = program_of(graph)
    execute(graph, program, FLEX)
    assert parse_program(print_program(program)) == program
    assert decode(encode(program)) == program
    for wave in waves(program):
        assert wave.mode == best_mode(MODES, wave.k.size, wave.n.size).name


@settings(max_examples=15, deadline=None, derandomize=True)
@given(c=st.integers(1, 7), k=st.integers(1, 7), r=st.integers(1, 3), side=st.integers(3, 9))
def test_convolutions_in_modes(c: int, k: int, r: int, side: int):
    b = Builder("conv")
    out = b.emit(
        "conv", [b.input("x", (2, c, side, side)), b.input("w", (k, c, r, r))],
        strides=(1, 1), pads=(1, 1, 1, 1), dilations=(1, 1), group=1,
    )  # fmt: skip
    graph = b.build([out])
    execute(graph, program_of(graph), FLEX)


def test_machines_of_one_shape_name_no_mode():
    for name in ("tiny", "wavecore"):
        program = program_of(gemm_graph(20, 6, 6), load_machine(name))
        assert {wave.mode for wave in waves(program)} == {""}


@pytest.mark.parametrize("name", ["flexsa-1g1f", "ccnn-flex"])
def test_every_mode_is_seen_on_the_shipped_machines(name: str):
    machine = load_machine(name)
    for mode in machine.modes:
        if mode.dataflow == "ws":
            graph = gemm_graph(70, mode.cols, mode.rows)
            program = program_of(graph, machine, in_one_tile(70, mode.cols, mode.rows))
            assert {wave.mode for wave in waves(program)} == {mode.name}
            execute(graph, program, machine)


SMALL = """
name: small
description: FlexSA of four 12 x 12 sub-cores
inherits: flexsa-1g1f
array:
  rows: 24
  cols: 24
  modes:
    FW: {rows: 24, cols: 24}
    VSW: {rows: 24, cols: 12}
    HSW: {rows: 12, cols: 24}
    ISW: {rows: 12, cols: 12}
"""
SEEN = {
    "flexsa-1g1f": {"FW", "VSW", "ISW"},
    "ccnn-flex": {"VQW", "VIW", "IQW"},
    "intergrad-32": {"WS", "OS"},
    "small.yaml": {"FW", "VSW", "HSW", "ISW"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SEEN)
def test_a_network_trains_in_modes(name: str, tmp_path: Path):
    """A whole step with values, against the interpreter in float64."""
    (tmp_path / "small.yaml").write_text(SMALL)
    target = str(tmp_path / name) if name.endswith(".yaml") else name
    model = Path(__file__).parent / "data" / "resnet8_cifar" / "model.onnx"
    c = compile_model(model, CompileOptions(target=target, dtype="float32"))
    assert verify_program(c.program, c.machine) == []
    assert [e for e in verify_values(c) if not e.error <= e.bound] == []
    assert {mode for mode, _ in simulate(c.program, c.machine).modes} >= SEEN[name]


# cost


def test_what_a_mode_costs_by_hand():
    """16 rows through two sub-waves of 2 deep x 4 wide: half the cycles; the block read once."""
    facts = Facts(
        FLEX, {}, {x: Buffer(x, s, "f32", 64) for x, s in
                   (("g", "gbuf"), ("v", "lbuf_v"), ("h", "lbuf_h"), ("p", "pe"), ("c", "acc"))}
    )  # fmt: skip

    def matrix(rows: int, cols: int) -> Matrix:
        dims = ((Extent(rows), cols),), ((Extent(cols), 1),)
        return Matrix("g", *dims, ZERO, Extent(rows), ZERO, Extent(cols))

    def cost(i: Instruction):
        return instruction_cost(facts, i, {})

    sizes = Extent(15), Extent(2), Extent(4)
    wave = Exec(0, Slot("c"), Slot("h"), Slot("p"), *sizes, ZERO, mode="HSW")
    assert (cost(wave).occupancy, cost(wave).latency, cost(wave).macs) == (8, 4, 15 * 2 * 4)
    assert cost(replace(wave, mode="")).occupancy == 15
    assert cost(replace(wave, mode="ISW")).occupancy == 4
    block = LoadV(0, Slot("v"), matrix(2, 4), mode="HSW")
    assert (cost(block).occupancy, cost(block).gbuf_read, cost(block).lbuf) == (2, 32, 2 * 32)
    rows = LoadH(0, Slot("h"), matrix(15, 2), mode="HSW")
    assert (cost(rows).occupancy, cost(rows).gbuf_read, cost(rows).lbuf) == (8, 120, 120)
    shift = Shift(0, Slot("p"), Slot("v"), Extent(2), Extent(4), mode="HSW")
    assert (cost(shift).occupancy, cost(shift).lbuf) == (2, 2 * 32)
    drain = Drain(0, matrix(15, 4), Slot("c"), mode="HSW")
    assert cost(drain).occupancy == 8
    with pytest.raises(SimulationError, match="no mode 'QSW'"):
        cost(replace(wave, mode="QSW"))


@pytest.mark.parametrize("shape", [(512, 64, 200), (512, 100, 192), (512, 37, 60), (512, 200, 30)])
def test_the_simulated_array_is_as_busy_as_the_heuristic_says(shape: tuple[int, int, int]):
    """With waves long enough to hide every shift-in the model and the simulator agree exactly."""
    machine = load_machine("flexsa-1g1f")
    program = program_of(gemm_graph(*shape), machine, in_one_tile(*shape))
    trace = simulate(program, machine)
    rules = Rules(fill_drain=False, ideal_memory=True)
    want = map_product(Product(*shape), machine, rules, "heuristic").cycles
    assert dict(trace.layers[0].busy)["array"] == want
    assert trace.cycles >= want


def test_modes_make_a_narrow_gemm_faster():
    machine = load_machine("flexsa-1g1f")
    graph = gemm_graph(4096, 64, 256)
    cycles = [
        simulate(program_of(graph, m), m).cycles for m in (machine, replace(machine, modes=()))
    ]
    assert cycles[0] < cycles[1]


# safety


def change(program: Program, kind: type, how: Callable[[Instruction], Instruction]) -> Program:
    """The program with every instruction of a kind changed."""

    def body(items):
        return tuple(
            replace(i, body=body(i.body)) if isinstance(i, Loop)
            else how(i) if isinstance(i, kind) else i
            for i in items
        )  # fmt: skip

    return replace(program, kernels=tuple(replace(k, body=body(k.body)) for k in program.kernels))


@pytest.mark.parametrize(
    ("kind", "mode", "words"),
    [
        (Exec, "ISW", "k reaches 4; tiny takes 2"),
        (Exec, "QSW", "mode 'QSW' is none of this instruction"),
        (Exec, "", "filled in mode VSW, not none"),
        (Shift, "FW", "filled in mode VSW, not FW"),
        (LoadH, "FW", "filled in mode FW, not VSW"),
        (LoadV, "FW", "filled in mode FW, not VSW"),
        (Load, "VSW", "mode 'VSW' is none of this instruction"),
        (Drain, "ISW", ""),
    ],
)
def test_a_wrong_mode_is_found(kind: type, mode: str, words: str):
    """A drain may take any mode that is wide enough; no other instruction may."""
    program = program_of(gemm_graph(20, 2, 12), FLEX, in_one_tile(20, 2, 12))
    assert {wave.mode for wave in waves(program)} == {"VSW"}
    findings = verify_program(change(program, kind, lambda i: replace(i, mode=mode)), FLEX)
    text = "\n".join(f.message for f in findings)
    assert (words in text) if words else not findings


def test_modes_of_another_dataflow_run_no_wave():
    machine = replace(FLEX, modes=(*MODES, Mode("OS", 4, 4, dataflow="os")))
    program = program_of(gemm_graph(8, 4, 4), machine)
    wrong = change(program, Exec, lambda i: replace(i, mode="OS"))
    assert any("not weight-stationary" in f.message for f in verify_program(wrong, machine))


def test_a_mode_left_over_from_the_iteration_before_is_found():
    """The wave stands above the load that feeds it the next time round."""
    program = program_of(gemm_graph(30, 2, 4))
    found = verify_program(change(program, LoadH, lambda i: replace(i, mode="FW")), FLEX)
    assert found[0].rule == "modes"


@pytest.mark.parametrize("text", ["ExecGEMM. ", "ExecGEMM.9 ", "ExecGEMM.a.b "])
def test_a_mode_without_a_proper_name_is_not_read(text: str):
    good = print_program(program_of(gemm_graph(8, 2, 4)))
    assert "ExecGEMM.VSW " in good
    with pytest.raises(ProgramError, match="names no mode"):
        parse_program(good.replace("ExecGEMM.VSW ", text))
    program = change(parse_program(good), Exec, lambda i: replace(i, mode="a b"))
    with pytest.raises(ProgramError, match="mode 'a b'"):
        print_program(program)


def test_rows_are_dealt_out_evenly():
    for rows in range(1, 20):
        for mode in MODES:
            shares = [len(range(i, rows, mode.sub_waves)) for i in range(mode.sub_waves)]
            assert max(shares) == ceil(rows / mode.sub_waves)
