"""Programs for machines of several arrays, which work in step: safe, right, and what they cost."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_array_modes import MODES, change, execute, gemm_graph, waves
from test_cuts import IDEAL, one_tile
from test_truth import check_float64

from ccnn.compiler import CompileOptions, compile_model
from ccnn.compiler.codegen import generate, make_context
from ccnn.compiler.cut import FLOWS, Cut, Run, Strip, part_of
from ccnn.compiler.mapper import map_graph
from ccnn.compiler.mapper.array import Product
from ccnn.compiler.mapper.array_search import map_product
from ccnn.targets.binary import decode, encode
from ccnn.targets.machine import EnergyRow, Machine, load_machine
from ccnn.targets.modes import Mode, splits, spread
from ccnn.targets.program import (
    ZERO,
    Buffer,
    Drain,
    Exec,
    ExecOS,
    Extent,
    Instruction,
    LoadH,
    LoadV,
    Matrix,
    Program,
    Shift,
    Slot,
)
from ccnn.targets.simulator import simulate
from ccnn.targets.simulator.cost import Facts, instruction_cost
from ccnn.targets.text import parse_program, print_program
from ccnn.targets.verify import verify_program

DATA = Path(__file__).parent / "data"
TINY = load_machine("tiny")
PRICED = (*TINY.energy, EnergyRow("link_byte", 1.0, "a test's"))
ROOMY = replace(TINY, gbuf_bytes=2**16, energy=PRICED)
MACHINES = {
    "units": replace(ROOMY, units=4, modes=(*MODES, Mode("OS", 4, 4, dataflow="os"))),
    "groups of units": replace(ROOMY, groups=2, units=3, rows=3, cols=2, port_words=5),
    "flexible groups": replace(ROOMY, groups=4, modes=MODES),
}


def program_of(m: int, n: int, k: int, machine: Machine, cut: Cut) -> Program:
    context = make_context(gemm_graph(m, n, k), machine, "float32")
    return generate(context, one_tile(m, n, k, machine, cut))


def cut_by(split: tuple[int, int, int], sizes: tuple[int, int, int], machine: Machine) -> Cut:
    """A plain cut of a GEMM whose parts go to the units of a machine of one group."""
    m, n, k = part = part_of(sizes, split)

    def along(total: int, most: int) -> list[tuple[int, int]]:
        return [(s, c) for s, c in ((most, total // most), (total % most, 1)) if s and c]

    runs = tuple(Run("FW", depth, count) for depth, count in along(k, machine.rows))
    strips = tuple(Strip(width, count, runs) for width, count in along(n, machine.cols))
    waves = tuple(along(m, machine.acc_rows))
    return Cut(FLOWS[0], (1, 1, 1), split, part, waves, strips)


@pytest.mark.parametrize("name", MACHINES)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    m=st.integers(1, 40), n=st.integers(1, 20), k=st.integers(1, 40), flow=st.sampled_from(FLOWS)
)
def test_any_gemm_is_safe_right_and_round_trips(name: str, m: int, n: int, k: int, flow):
    machine = MACHINES[name]
    if flow.dataflow not in {mode.dataflow for mode in machine.array_modes}:
        return
    cut = map_product(Product(m, n, k), machine, IDEAL, flow=flow).cut
    program = program_of(m, n, k, machine, cut)
    execute(gemm_graph(m, n, k), program, machine)
    assert parse_program(print_program(program)) == program
    assert decode(encode(program)) == program
    in_order = cut.split if flow.width == 1 else (cut.split[1], cut.split[0], cut.split[2])
    assert {machine.mode_named[w.mode].split for w in waves(program)} == {in_order}


@pytest.mark.parametrize("split", list(splits(4)), ids=str)
@settings(max_examples=10, deadline=None, derandomize=True)
@given(m=st.integers(1, 40), n=st.integers(1, 20), k=st.integers(1, 40))
def test_every_split_is_safe_and_right(split: tuple[int, int, int], m: int, n: int, k: int):
    machine = replace(ROOMY, units=4)
    program = program_of(m, n, k, machine, cut_by(split, (m, n, k), machine))
    execute(gemm_graph(m, n, k), program, machine)
    assert simulate(program, machine).macs == m * n * k


@pytest.mark.parametrize("split", [(4, 1, 1), (1, 2, 2)], ids=["by_rows", "by_columns_and_depth"])
def test_one_gemm_on_four_arrays(golden, split: tuple[int, int, int], request):
    machine = replace(ROOMY, units=4)
    program = program_of(30, 6, 9, machine, cut_by(split, (30, 6, 9), machine))
    execute(gemm_graph(30, 6, 9), program, machine)
    golden(f"modes/four_arrays_{request.node.callspec.id}.asm", print_program(program))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(m=st.integers(1, 40), n=st.integers(1, 20), k=st.integers(1, 20))
def test_the_rule_splits_over_the_arrays_too(m: int, n: int, k: int):
    machine, graph = MACHINES["flexible groups"], gemm_graph(m, n, k)
    context = make_context(graph, machine, "float32")
    program = generate(context, map_graph(context, mapper="heuristic"))
    execute(graph, program, machine)
    used = {machine.mode_named[w.mode].split for w in waves(program)}
    assert used <= {(4, 1, 1), (1, 1, 4)}


@pytest.mark.parametrize("name", ["flexsa-1g4c", "flexsa-4g4c", "flexsa-4g1f"])
@settings(max_examples=10, deadline=None, derandomize=True)
@given(m=st.integers(1, 3000), n=st.integers(1, 400), k=st.integers(1, 900))
def test_the_executed_arrays_take_what_the_mapper_says(name: str, m: int, n: int, k: int):
    """At work for the streams of the mapper's waves, exactly; with every shift-in hidden behind
    them, as long as it predicts."""
    machine = replace(load_machine(name), dram_bandwidth_gib_s=1e9, dram_latency_cycles=0)
    mapping = map_product(Product(m, n, k), machine, IDEAL)
    program = program_of(m, n, k, machine, mapping.cut)
    trace = simulate(program, machine)
    modes = {mode.name: mode for mode in machine.array_modes}
    cut = mapping.cut
    blocks = [
        (-(-rows // modes[run.mode].sub_waves), run.depth, count * strip.count * run.count)
        for strip in cut.strips for run in strip.runs for rows, count in cut.waves
    ]  # fmt: skip
    array = next(e for e in trace.engines if e.name == "array")
    assert array.busy_cycles == sum(stream * count for stream, _, count in blocks)
    assert sum(max(stream, depth) * count for stream, depth, count in blocks) == mapping.cycles
    if all(depth <= stream for stream, depth, _ in blocks):
        assert array.busy_cycles == mapping.cycles
    assert trace.cycles >= mapping.cycles
    assert trace.macs == m * n * k


# cost


def cost(machine: Machine, i: Instruction):
    spaces = {"g": "gbuf", "v": "lbuf_v", "h": "lbuf_h", "p": "pe", "c": "acc"}
    facts = Facts(machine, {}, {x: Buffer(x, s, "f32", 64) for x, s in spaces.items()})
    return instruction_cost(facts, i, {})


def matrix(rows: int, cols: int) -> Matrix:
    dims = ((Extent(rows), cols),), ((Extent(cols), 1),)
    return Matrix("g", *dims, ZERO, Extent(rows), ZERO, Extent(cols))


def test_what_parts_of_m_n_and_k_cost_by_hand():
    """Four arrays of 4 x 4: 21 rows to 4 as 6 each; columns 8 to 2; 7 deep to 4 as 2 each."""
    machine = replace(ROOMY, units=4)
    sizes = {"FW_4x1x1": (21, 4, 4), "FW_2x2x1": (21, 8, 4), "FW_1x1x4": (21, 4, 7)}
    found = {}
    for mode, (m, n, k) in sizes.items():
        three = Extent(m), Extent(k), Extent(n)
        found[mode] = [
            (c.occupancy, c.latency, c.gbuf_read, c.gbuf_write, c.lbuf, c.acc, c.link)
            for c in (
                cost(machine, LoadV(0, Slot("v"), matrix(k, n), mode=mode)),
                cost(machine, LoadH(0, Slot("h"), matrix(m, k), mode=mode)),
                cost(machine, Shift(0, Slot("p"), Slot("v"), three[1], three[2], mode=mode)),
                cost(machine, Exec(0, Slot("c"), Slot("h"), Slot("p"), *three, ZERO, mode=mode)),
                cost(machine, Drain(0, matrix(m, n), Slot("c"), mode=mode)),
            )
        ]
    words = 4  # bytes of each
    assert found["FW_4x1x1"] == [
        (4, 0, 4 * 16 * words, 0, 4 * 16 * words, 0, 0),  # a copy for each array
        (6, 0, 84 * words, 0, 84 * words, 0, 0),
        (4, 0, 0, 0, 4 * 16 * words, 0, 0),
        (6, 6, 0, 0, 84 * words, 84 * words, 0),
        (6, 0, 0, 84 * words, 0, 84 * words, 0),
    ]
    assert found["FW_2x2x1"] == [
        (4, 0, 2 * 32 * words, 0, 2 * 32 * words, 0, 0),
        (11, 0, 2 * 84 * words, 0, 2 * 84 * words, 0, 0),  # rows for the arrays of both halves
        (4, 0, 0, 0, 2 * 32 * words, 0, 0),
        (11, 6, 0, 0, 2 * 84 * words, 168 * words, 0),
        (11, 0, 0, 168 * words, 0, 168 * words, 0),
    ]
    assert found["FW_1x1x4"] == [
        (2, 0, 28 * words, 0, 28 * words, 0, 0),
        (21, 0, 147 * words, 0, 147 * words, 0, 0),
        (2, 0, 0, 0, 28 * words, 0, 0),
        (21, 4, 0, 0, 147 * words, 4 * 84 * words, 0),
        # one array after another; the sums of three go to the next one
        (4 * 21, 0, 0, 84 * words, 0, 4 * 84 * words, 3 * 84 * words),
    ]


def test_results_that_stay_are_split_by_hand():
    machine = replace(ROOMY, units=4, modes=(Mode("WS", 4, 4), Mode("OS", 4, 4, dataflow="os")))
    wave = ExecOS(
        0, Slot("c"), Slot("h"), Slot("v"), Extent(8), Extent(9), Extent(4), ZERO, mode="OS_2x1x2"
    )
    c = cost(machine, wave)
    assert (c.occupancy, c.latency) == (5, 4 + 4 - 2)
    assert (c.lbuf, c.acc) == ((8 * 9 + 2 * 4 * 9) * 4, 2 * 8 * 4 * 4)
    drain = cost(machine, Drain(0, matrix(8, 4), Slot("c"), mode="OS_2x1x2"))
    assert (drain.occupancy, drain.link) == (2 * 4, 8 * 4 * 4)


def test_arrays_wait_for_the_ports_they_share():
    """Rows for four arrays of 4 columns through a port of 8 words a cycle, or of two groups'."""
    block = LoadV(0, Slot("v"), matrix(4, 4), mode="FW_4x1x1")
    cycles = [
        cost(replace(ROOMY, units=4 // groups, groups=groups, port_words=words), block).occupancy
        for groups, words in ((1, 0), (1, 8), (2, 8), (1, 16))
    ]
    assert cycles == [4, 8, 4, 4]


def test_what_comes_from_another_groups_buffer_crosses():
    """Addresses go round four groups: three words of four come from elsewhere."""
    machine = replace(ROOMY, groups=4)
    rows = LoadH(0, Slot("h"), matrix(16, 4), mode="FW_4x1x1")
    assert cost(machine, rows).link == 16 * 4 * 4 * 3 // 4
    assert cost(replace(machine, groups=1, units=4), rows).link == 0


def test_a_spread_mode_is_as_many_times_larger():
    wide = spread(Mode("VSW", 4, 2, 2), (2, 3, 5))
    assert (wide.name, wide.rows, wide.cols, wide.sub_waves) == ("VSW_2x3x5", 20, 6, 4)
    assert (wide.loads, wide.copies) == (2, 4)
    held = spread(Mode("OS", 4, 4, dataflow="os"), (2, 3, 5))
    assert (held.rows, held.cols, held.sub_waves, held.copies) == (8, 12, 5, 2)
    for count in (1, 4, 6, 16):
        found = list(splits(count))
        assert len(set(found)) == len(found)
        assert {prod(split) for split in found} == {count}


def test_one_array_in_place_of_all_has_their_pes():
    for name in ("flexsa-1g4c", "flexsa-4g4c", "flexsa-4g1f"):
        machine = load_machine(name)
        assert machine.as_one.arrays == 1
        assert max(mode.pes for mode in machine.as_one.modes) == machine.peak_macs_per_cycle
    assert TINY.as_one is TINY


# safety


def four(split: tuple[int, int, int]) -> tuple[Program, Machine]:
    machine = replace(ROOMY, units=4)
    return program_of(30, 8, 9, machine, cut_by(split, (30, 8, 9), machine)), machine


def findings(program: Program, machine: Machine) -> str:
    return "\n".join(f"{f.rule}: {f.message}" for f in verify_program(program, machine))


def test_sums_stay_where_they_were_made():
    program, machine = four((2, 1, 2))
    assert findings(program, machine) == ""
    moved = change(program, Drain, lambda i: replace(i, mode="FW_4x1x1"))
    assert "sums: sums of 'acc' lie split (2, 1, 2)" in findings(moved, machine)


def test_an_array_too_many_or_a_row_too_long_is_found():
    program, machine = four((4, 1, 1))
    assert "is none of this instruction" in findings(program, replace(machine, units=2))
    assert "m reaches 30; tiny takes 16" in findings(program, replace(machine, acc_rows=4))


# networks


@pytest.mark.parametrize("target", ["flexsa-1g4c", "flexsa-4g4c"])
def test_a_network_trains_on_several_arrays(target: str):
    check_float64(DATA / "squeezenet" / "model.onnx", target)


def test_a_network_uses_modes_and_splits_together():
    options = CompileOptions(target="flexsa-4g1f", batch=8)
    c = compile_model(DATA / "resnet8_cifar" / "model.onnx", options)
    assert findings(c.program, c.machine) == ""
    trace = simulate(c.program, c.machine)
    named = [c.machine.mode_named[name] for name, _ in trace.modes]
    assert {mode.split for mode in named} >= {(4, 1, 1), (1, 1, 4)}
    assert {mode.name.split("_")[0] for mode in named} >= {"VSW", "ISW"}
    assert trace.pe_utilisation <= 1
    assert np.isclose(sum(pj for *_, pj in trace.energy), trace.energy_pj)
    assert {action: count for action, count, _ in trace.energy}["link_byte"] > 0
