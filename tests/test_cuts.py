"""The array mapper's choice in compiled programs: emitted as chosen, executed, timed, pinned."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_array_modes import FLEX, execute, gemm_graph, in_one_tile, waves
from test_mapper import CASES

from ccnn.compiler import CompileOptions, cli, compile_model
from ccnn.compiler.codegen import gemm_of, generate, make_context
from ccnn.compiler.cut import FLOWS, Cut, MappingError, Run, Strip, cut_text
from ccnn.compiler.failure import ExitCode
from ccnn.compiler.mapper import map_graph
from ccnn.compiler.mapper.array import Product, Rules, wave_rows
from ccnn.compiler.mapper.array_cost import piped_cycles
from ccnn.compiler.mapper.array_search import map_product
from ccnn.compiler.mapper.array_time import executed_cycles
from ccnn.compiler.mapper.cuts import choose_cuts, cut_of, tile_products
from ccnn.compiler.mapper.price import work
from ccnn.compiler.mapper.rule import make_grid
from ccnn.compiler.mapping import Mapping, Tiling, parse_mapping
from ccnn.targets.binary import decode, encode
from ccnn.targets.machine import Machine, load_machine
from ccnn.targets.modes import Mode
from ccnn.targets.program import Exec, ExecOS
from ccnn.targets.simulator import simulate
from ccnn.targets.text import parse_program, print_program
from ccnn.targets.verify import verify_program

RESNET = Path(__file__).parent / "data" / "resnet8_cifar" / "model.onnx"
OS = replace(FLEX, name="tiny", modes=(*FLEX.modes, Mode("OS", 4, 4, dataflow="os")))
IDEAL = Rules(fill_drain=False, ideal_memory=True)


def at_once(machine: Machine) -> Machine:
    """The machine with memory that takes no time."""
    return replace(machine, dram_bandwidth_gib_s=1e9, dram_latency_cycles=0)


def one_tile(m: int, n: int, k: int, machine: Machine, cut: Cut) -> Mapping:
    sizes = (("m", m), ("n", n), ("k", k))
    tiling = Tiling(("m", "n", "k"), sizes, 2, flow=cut.flow.name)
    return Mapping(machine.name, {"matmul": tiling}, {}, {((m, n, k), cut.flow.name): cut})


def program_of(m: int, n: int, k: int, machine: Machine, flow: str):
    cut = map_product(
        Product(m, n, k), machine, IDEAL, flow=next(f for f in FLOWS if f.name == flow)
    ).cut
    graph = gemm_graph(m, n, k)
    context = make_context(graph, machine, "float32")
    return graph, cut, generate(context, one_tile(m, n, k, machine, cut))


@pytest.mark.parametrize("flow", [flow.name for flow in FLOWS])
@settings(max_examples=12, deadline=None, derandomize=True)
@given(m=st.integers(1, 30), n=st.integers(1, 15), k=st.integers(1, 30))
def test_every_flow_is_safe_right_and_emitted_as_chosen(flow: str, m: int, n: int, k: int):
    graph, cut, program = program_of(m, n, k, OS, flow)
    execute(graph, program, OS)
    assert parse_program(print_program(program)) == program
    assert decode(encode(program)) == program
    kind = ExecOS if cut.flow.dataflow == "os" else Exec
    assert {type(wave) for wave in waves(program)} == {kind}
    chosen = {run.mode for strip in cut.strips for run in strip.runs}
    assert {wave.mode for wave in waves(program)} == chosen


@pytest.mark.parametrize("flow", ["a stays", "result stays"])
def test_one_gemm_in_each_flow(golden, flow: str):
    graph, _, program = program_of(10, 6, 9, OS, flow)
    execute(graph, program, OS)
    golden(f"modes/{flow.replace(' ', '_')}.asm", print_program(program))


@pytest.mark.parametrize("name", ["wavecore", "flexsa-1g1f", "ccnn-flex", "intergrad-32"])
@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    m=st.integers(1, 900), n=st.integers(1, 300), k=st.integers(1, 500),
    flow=st.sampled_from([flow.name for flow in FLOWS]),
)  # fmt: skip
def test_the_executed_array_takes_what_the_mapper_says(
    name: str, m: int, n: int, k: int, flow: str
):
    """At work: the streams of the chosen waves, exactly; from first to last cycle no less than
    predicted, and, with every wait for shift-ins and accumulators counted, little more."""
    machine = at_once(load_machine(name))
    if flow not in {
        f.name for f in FLOWS if f.dataflow in {x.dataflow for x in machine.array_modes}
    }:
        return
    _, cut, program = program_of(m, n, k, machine, flow)
    trace = simulate(program, machine)
    modes = {mode.name: mode for mode in machine.array_modes}
    streams = sum(
        count * strip.count * run.count * -(-rows // modes[run.mode].sub_waves)
        for strip in cut.strips for run in strip.runs for rows, count in cut.waves
    )  # fmt: skip
    array = next(e for e in trace.engines if e.name == "array")
    assert array.busy_cycles == streams <= cut.cycles
    hidden = all(
        run.depth <= -(-rows // modes[run.mode].sub_waves)
        for strip in cut.strips for run in strip.runs for rows, _ in cut.waves
    )  # fmt: skip
    assert not hidden or array.busy_cycles == cut.cycles
    longest = max(rows for rows, _ in cut.waves)
    once = 3 * (machine.rows + machine.cols + max(longest, wave_rows(machine)))
    assert trace.cycles >= cut.cycles
    assert trace.cycles <= 1.5 * piped_cycles(cut, machine) + once


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["wavecore", "intergrad-32"])
def test_the_array_of_a_kernel_is_busy_with_its_cuts(name: str, case: str):
    """Summed over the products of tiles, remainders and stride phases; too few lanes to help."""
    machine = replace(load_machine(name), lanes=1)
    context = make_context(CASES[case], machine, "bfloat16")
    mapping = map_graph(context)
    (node,) = context.graph.nodes
    products = tile_products(gemm_of(context, node), tiling := mapping.tilings[node.name])
    program = generate(context, mapping)
    assert verify_program(program, machine) == []
    modes = {mode.name: mode for mode in machine.array_modes}
    want: Counter[str] = Counter()
    for sizes, times in products.items():
        cut = mapping.cuts[sizes, tiling.flow]
        for strip in cut.strips:
            for run in strip.runs:
                rows = sum(-(-r // modes[run.mode].sub_waves) * c for r, c in cut.waves)
                want[run.mode] += times * strip.count * run.count * rows
    trace = simulate(program, machine)
    named = dict(trace.modes) if machine.modes else {"FW": trace.modes[0][1]}
    assert named == want
    assert trace.macs == sum(m * n * k * times for (m, n, k), times in products.items())


@pytest.mark.parametrize("case", ["3x3", "3x3 dx", "strided dw", "groups", "matmul"])
def test_price_counts_the_array_of_the_rule_in_modes(case: str):
    machine = replace(load_machine("flexsa-1g1f"), lanes=1)
    context = make_context(CASES[case], machine, "bfloat16")
    mapping = map_graph(context, mapper="heuristic")
    (tiling,) = mapping.tilings.values()
    tables, index = make_grid(gemm_of(context, context.graph.nodes[0]), machine)
    at = np.ones(len(next(iter(index.values()))), bool)
    for name, size in tiling.tiles:
        at &= tables.levels[name].sizes[index[name]] == size
    here = {name: rows[at][:1] for name, rows in index.items()}
    trace = simulate(generate(context, mapping), machine)
    array = next(e for e in trace.engines if e.name == "array")
    assert work(tables, machine, here).array.tolist() == [array.busy_cycles]


SEEN = {
    "flexsa-1g1f": {"FW", "VSW", "HSW", "ISW"},
    "ccnn-flex": {"FW", "VSW", "VQW", "VIW", "HQW", "IQW"},
    "intergrad-32": {"WS", "OS"},
}


@pytest.mark.parametrize("name", SEEN)
def test_a_network_uses_the_modes(name: str):
    """Each product takes no longer than by the rule; what else a kernel waits for may be a little
    different with other waves."""
    found = {}
    for mapper in ("exact", "heuristic"):
        c = compile_model(RESNET, CompileOptions(target=name, batch=16, mapper=mapper))
        assert verify_program(c.program, c.machine) == []
        found[mapper] = simulate(c.program, c.machine)
    assert {mode for mode, _ in found["exact"].modes} >= SEEN[name]
    assert found["exact"].cycles <= 1.005 * found["heuristic"].cycles
    assert found["exact"].macs == found["heuristic"].macs


# given by hand


def edited(name: str, change) -> Mapping:
    c = compile_model(RESNET, CompileOptions(target=name, batch=4))
    return parse_mapping(change(c.mapping.text()))


def test_a_mapping_is_read_back_and_compiles_to_the_same_program():
    first = compile_model(RESNET, CompileOptions(target="ccnn-flex", batch=4))
    read = parse_mapping(first.mapping.text())
    assert read == first.mapping
    again = compile_model(RESNET, CompileOptions(target="ccnn-flex", batch=4, pinned=read))
    assert again.program == first.program
    assert again.mapping.text() == first.mapping.text()


def test_what_is_pinned_is_emitted_and_the_rest_is_mapped():
    """Only one tiling and one cut, both unlike the mapper's."""
    graph, machine = gemm_graph(16, 8, 8), OS
    context = make_context(graph, machine, "float32")
    cut = Cut(
        FLOWS[0], (1, 1, 1), (1, 1, 1), (16, 8, 8), ((6, 2), (4, 1)),
        (Strip(2, 4, (Run("VSW", 3, 2), Run("ISW", 2, 1))),),
    )  # fmt: skip
    pinned = one_tile(16, 8, 8, machine, cut)
    mapping = map_graph(context, pinned=parse_mapping(pinned.text()))
    assert mapping.cuts == pinned.cuts
    program = generate(context, mapping)
    execute(graph, program, machine)
    assert {(w.mode, w.m.size, w.k.size, w.n.size) for w in waves(program)} == {
        ("VSW", 6, 3, 2), ("ISW", 6, 2, 2), ("VSW", 4, 3, 2), ("ISW", 4, 2, 2),
    }  # fmt: skip
    (tiling,) = mapping.tilings.values()
    assert tiling.dram_bytes == simulate(program, machine).dram_bytes


GOOD = in_one_tile(16, 8, 8).replace("a machine", "tiny")
SIZES = "m=16 n=8 k=8"
CUT = cut_text((16, 8, 8), "tiny", map_product(Product(16, 8, 8), OS, IDEAL, "heuristic").cut)
WRONG = [
    ("mapping for tiny", "mapping for other", "a cut for 'tiny' in a mapping for 'other'"),
    ("tiny", "other", "machine 'other', not tiny"),
    ("matmul:", "matmull:", "'matmull', and no GEMM .* did you mean 'matmul'"),
    ("order m,n,k", "order k,m,n", "the order k,m,n, which cannot be; use m,n,k or n,m,k"),
    (SIZES, "m=17 n=8 k=8", "m=17, which cannot be; use 1 to 16"),
    (SIZES, "m=16 n=8 k=8 flow b-goes", "is not a tiling"),
    ("depth 2", "depth 0", "depth 0, which cannot be"),
    ("dram 0", "pieces 3 dram 0", "pieces 3, which cannot be; use a divisor of 8"),
    ("waves 8 * 2", "waves 8 * 1", "the cut of 16 x 8 x 8: the waves cover 8 and should cover 16"),
    ("waves 8 * 2", "waves 16 * 1", "a wave of 16 rows"),
    ("FW 4 * 2", "FX 4 * 2", "no mode 'FX' on tiny; it has FW"),
    ("FW 4 * 2", "OS 4 * 2", "mode OS is none of those of 'b stays'"),
    ("on tiny", "on other", "a cut for 'other' in a mapping for 'tiny'"),
    ("strip", "strop", "should be 'strip"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "words"), WRONG)
def test_a_wrong_edit_is_refused(old: str, new: str, words: str):
    context = make_context(gemm_graph(16, 8, 8), OS, "float32")
    text = GOOD + "\n" + CUT
    map_graph(context, pinned=parse_mapping(text))
    assert old in text
    with pytest.raises(MappingError, match=words):
        map_graph(context, pinned=parse_mapping(text.replace(old, new)))


def test_the_command_takes_an_edited_mapping(capsys, tmp_path: Path):
    """Slots halved by hand: executed with them, and refused kindly when it makes no sense."""
    folder, path = tmp_path / "a", tmp_path / "mapping.txt"
    command = ["compile", str(RESNET), "--batch", "2", "--target", "ccnn-flex", "-q", "-o"]
    assert cli.run([*command, str(folder)]) == 0
    text = (folder / "mapping.txt").read_text(encoding="utf-8")
    path.write_text(text.replace("depth 2", "depth 1"), encoding="utf-8")
    assert cli.run([*command, str(tmp_path / "b"), "--from-mapping", str(path)]) == 0
    found = (tmp_path / "b" / "mapping.txt").read_text(encoding="utf-8")
    assert "depth 1" in found
    assert "depth 2" not in found
    for wrong in (text.replace("mapping for", "map of"), text.replace("waves ", "waves 7 * 7, ")):
        path.write_text(wrong, encoding="utf-8")
        capsys.readouterr()
        code = cli.run([*command, str(folder), "--from-mapping", str(path)])
        assert code == ExitCode.INPUT
        assert "Traceback" not in capsys.readouterr().err
    path.write_bytes(b"\xff")
    assert cli.run([*command, str(folder), "--from-mapping", str(path)]) == ExitCode.INPUT
    missing = str(tmp_path / "none")
    assert cli.run([*command, str(folder), "--from-mapping", missing]) == ExitCode.FILES


# waves in pieces


def of_pieces(pieces: int, m: int, n: int, k: int, machine: Machine):
    cut = map_product(Product(m, n, k), machine, IDEAL, flow=FLOWS[0]).cut
    mapping = one_tile(m, n, k, machine, cut)
    tiling = replace(mapping.tilings["matmul"], pieces=pieces)
    graph = gemm_graph(m, n, k)
    context = make_context(graph, machine, "float32")
    return graph, tiling, generate(context, replace(mapping, tilings={"matmul": tiling}))


def test_a_single_step_does_not_wait_for_the_drain():
    """A pointwise convolution of 64 channels: one block of weights, two slots of sums.  A slot is
    held while 256 rows stream, leave the array and are drained; in pieces of 128 rows, half so
    long each."""
    machine = at_once(load_machine("wavecore"))
    waited, cycles = {}, {}
    for pieces in (1, 2):
        graph, tiling, program = of_pieces(pieces, 4096, 64, 64, machine)
        execute(graph, program, machine)
        trace = simulate(program, machine)
        array = next(e for e in trace.engines if e.name == "array")
        waited[pieces] = dict(array.stalls).get("drain", 0)
        cycles[pieces] = trace.cycles
        assert array.busy_cycles == 4096
    context = make_context(graph, machine, "float32")
    gemm = gemm_of(context, graph.nodes[0])
    assert choose_cuts(gemm, tiling, machine, {}, FLOWS[:1]).pieces > 1
    # (256 + 126 + 256) / 2 cycles a wave of 256
    assert waited[1] == pytest.approx(4096 * 63 / 256, rel=0.15)
    assert waited[2] == 0
    assert cycles[2] < cycles[1]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    m=st.integers(1, 40), n=st.integers(1, 12), k=st.integers(1, 12),
    pieces=st.sampled_from([1, 2, 4]),
)  # fmt: skip
def test_pieces_are_safe_and_right(m: int, n: int, k: int, pieces: int):
    graph, tiling, program = of_pieces(pieces, m, n, k, FLEX)
    execute(graph, program, FLEX)
    assert decode(encode(program)) == program
    mapping = Mapping("tiny", {"matmul": tiling})
    assert parse_mapping(mapping.text()) == mapping


def test_sums_larger_than_their_slot_are_found():
    """Slots of four rows, and waves of eight."""
    _, _, program = of_pieces(1, 30, 4, 4, FLEX)
    (kernel,) = program.kernels
    buffers = tuple(
        replace(b, size=b.size // 2, depth=4) if b.space == "acc" else b for b in kernel.buffers
    )
    kernels = (replace(kernel, buffers=buffers),)
    found = "\n".join(f.message for f in verify_program(replace(program, kernels=kernels), FLEX))
    assert "a slot of 'acc' has 4 rows" in found
    buffers = tuple(replace(b, depth=3) if b.space == "acc" else b for b in kernel.buffers)
    kernels = (replace(kernel, buffers=buffers),)
    found = "\n".join(f.message for f in verify_program(replace(program, kernels=kernels), FLEX))
    assert "accumulators of 96 words; tiny has 64" in found


# a product alone, waits and all

RESNET50 = [(6272, 64, 576), (6272, 256, 64), (1568, 512, 1152), (392, 2048, 512), (64, 147, 12544)]
"""Some GEMMs of its training step."""


@pytest.mark.parametrize("name", ["wavecore", "flexsa-1g1f", "intergrad-32"])
@pytest.mark.parametrize("sizes", RESNET50)
def test_the_prediction_is_what_a_program_takes(name: str, sizes: tuple[int, int, int]):
    """In one tile, under ideal memory: the two operands take a cycle each to load, the result one
    to be stored; all else is the waves."""
    machine = replace(at_once(load_machine(name)), gbuf_bytes=2**31)
    for flow in [f.name for f in FLOWS if f.dataflow in {m.dataflow for m in machine.array_modes}]:
        _, cut, program = program_of(*sizes, machine, flow)
        first, further = executed_cycles(sizes, cut, machine)
        assert first < simulate(program, machine).cycles <= first + 3
        assert piped_cycles(cut, machine) <= further <= first


UNEVEN = [(280, 128, 1152), (392, 128, 512), (300, 256, 384), (1120, 64, 576), (64, 128, 3136)]
"""GEMMs that no multiple of the array's sizes cuts evenly."""


@pytest.mark.parametrize("sizes", UNEVEN)
def test_nothing_waits_behind_something_short(sizes: tuple[int, int, int]):
    """Waves in pieces take no longer than whole ones, and a product in blocks that take as long as
    they are deep takes what its blocks do: but for the last feed of each strip."""
    machine = load_machine("wavecore")
    for flow in [f for f in FLOWS if f.dataflow == "ws"]:
        cut = cut_of(sizes, machine, Rules(ideal_memory=True), flow).cut
        taken = {pieces: executed_cycles(sizes, cut, machine, pieces)[1] for pieces in (1, 2, 4)}
        assert max(taken[2], taken[4]) <= taken[1] * 1.01
        if all(run.depth > rows for s in cut.strips for run in s.runs for rows, _ in cut.waves):
            assert taken[4] <= cut.cycles * 1.01
