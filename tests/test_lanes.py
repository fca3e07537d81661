"""Grouped convolutions on the vector unit: values, the choice of the unit, mappings, the report."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from reference import DATA
from test_truth import check
from test_truth import executed as executed_step

from ccnn.compiler.codegen import gemm_of, generate, make_context
from ccnn.compiler.codegen.lanes import may_use_lanes
from ccnn.compiler.driver import CompileOptions, compile_model
from ccnn.compiler.explain import explain_node
from ccnn.compiler.explain_text import show_explanation
from ccnn.compiler.mapper import map_graph
from ccnn.compiler.mapper.cuts import choose_cuts, tile_products, usable_flows
from ccnn.compiler.mapper.rule import choose_tiling
from ccnn.compiler.mapper.units import array_cycles
from ccnn.compiler.mapping import Mapping, MappingError, parse_mapping
from ccnn.compiler.report import Precision, bounds
from ccnn.passes.graph import Builder, Graph
from ccnn.passes.ops import op_named
from ccnn.targets.machine import Machine, load_machine
from ccnn.targets.program import Exec, ExecOS, Program, Reduce
from ccnn.targets.simulator import Execution, simulate
from ccnn.targets.verify import verify_program
from ccnn.targets.verify_common import instructions

MACHINES = {name: load_machine(name) for name in ("tiny", "wavecore")}
WAVECORE = MACHINES["wavecore"]
MOBILENET = DATA / "mobilenetv1" / "model.onnx"


def one_node(op: str, inputs: list[np.ndarray], **attrs) -> Graph:
    b = Builder("t")
    names = [b.input(f"in{i}", x.shape) for i, x in enumerate(inputs)]
    return b.build([b.emit(op, names, name="out", **attrs)])


def on(unit: str, graph: Graph, machine: Machine, dtype: str = "float64") -> Program:
    """The program of a graph of one node on the unit asked for, whatever it costs."""
    context = make_context(graph, machine, dtype)
    gemm = gemm_of(context, graph.nodes[0], unit == "lanes")
    tiling, cuts = choose_tiling(gemm, machine), {}
    tiling = choose_cuts(gemm, tiling, machine, cuts, usable_flows(gemm, tiling, machine, False))
    return generate(context, Mapping(machine.name, {"out": tiling}, {}, cuts))


def runs_on(program: Program) -> set[str]:
    """The units that multiply."""
    every = [i for kernel in program.kernels for i, _ in instructions(kernel)]
    found = {"array" for i in every if isinstance(i, Exec | ExecOS)}
    return found | {"lanes" for i in every if isinstance(i, Reduce) and "mul" in i.code}


def executed(program: Program, machine: Machine, inputs: list[np.ndarray]) -> np.ndarray:
    assert verify_program(program, machine) == []
    run = Execution(program, machine, poison=True)
    for i, value in enumerate(inputs):
        run.write(f"in{i}", value)
    run.step()
    return run["out"]


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


@st.composite
def grouped(draw):
    """Shapes of x, w and y, and attributes; several channels and several filters a group, too."""
    group = draw(st.sampled_from([2, 3, 4, 7]))
    c, k = group * draw(st.integers(1, 3)), group * draw(st.integers(1, 3))
    r, s = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    strides = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    dilations = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    pads = tuple(draw(st.integers(0, 3)) for _ in range(4))
    h, w = draw(st.integers(1, 16)), draw(st.integers(1, 16))
    p = (h + pads[0] + pads[2] - dilations[0] * (r - 1) - 1) // strides[0] + 1
    q = (w + pads[1] + pads[3] - dilations[1] * (s - 1) - 1) // strides[1] + 1
    assume(p >= 1 and q >= 1)
    n = draw(st.integers(1, 5))
    attrs = {"strides": strides, "pads": pads, "dilations": dilations, "group": group}
    return (n, c, h, w), (k, c // group, r, s), (n, k, p, q), attrs


@settings(max_examples=25, deadline=None)
@given(grouped(), st.sampled_from(sorted(MACHINES)))
def test_values(case, name):
    """Against the plain reference; float64, so only the order of summation differs."""
    (x, w, y, attrs), machine = case, MACHINES[name]
    vx, vw, vy = normal(*x), normal(*w, seed=1), normal(*y, seed=2)
    for op, inputs, more in (
        ("conv", [vx, vw, normal(w[0], seed=3)], {}),
        ("conv_dx", [vy, vw], {"shape": x}),
        ("conv_dw", [vx, vy], {"shape": w}),
    ):
        graph = one_node(op, inputs, **attrs, **more)
        program = on("lanes", graph, machine)
        assert runs_on(program) == {"lanes"} or op == "conv_dx"  # of which no tap may meet a pixel
        (want,) = op_named(op).reference(graph.nodes[0], inputs)
        scale = max(1.0, float(np.abs(want).max()))
        assert np.abs(executed(program, machine, inputs) - want).max() <= 1e-12 * scale * want.size


def test_sums_are_kept_wide_and_rounded_once():
    """bfloat16: off by half a unit in the last place of the exact result, and float32's noise.

    A sum that is rounded before it meets the bias would be off by more.
    """
    attrs = {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1), "group": 8}
    raw = [normal(2, 8, 9, 9), normal(16, 1, 3, 3, seed=1), 100 + normal(16, seed=2)]
    inputs = [(v.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32) for v in raw]
    graph = one_node("conv", inputs, **attrs)
    (want,) = op_named("conv").reference(graph.nodes[0], [v.astype(np.float64) for v in inputs])
    found = executed(on("lanes", graph, WAVECORE, "bfloat16"), WAVECORE, inputs)
    last_place = 2.0 ** (np.floor(np.log2(np.abs(want))) - 7)
    assert np.all(np.abs(found - want) <= last_place / 2 + 2.0**-20 * np.abs(want))


# The choice


def depthwise(op: str, c: int, side: int, stride: int = 1, each: int = 1) -> Graph:
    """A 3x3 convolution of c channels in groups of `each`, or a gradient of it, batch 4."""
    out = (side - 1) // stride + 1
    x, w, y = (4, c, side, side), (c, each, 3, 3), (4, c, out, out)
    shapes = {"conv": (x, w), "conv_dx": (y, w), "conv_dw": (x, y)}[op]
    attrs = {"strides": (stride, stride), "pads": (1,) * 4, "dilations": (1, 1), "group": c // each}
    attrs |= {"conv": {}, "conv_dx": {"shape": x}, "conv_dw": {"shape": w}}[op]
    return one_node(op, [np.zeros(s) for s in shapes], **attrs)


CASES = {
    "depthwise": ("conv", 32, 28),
    "depthwise, strided dX": ("conv_dx", 32, 28, 2),
    "depthwise dW": ("conv_dw", 32, 28),
    "eight channels a group": ("conv", 64, 14, 1, 8),
    "32 channels a group": ("conv", 128, 14, 1, 32),
    "dW of 32 channels a group": ("conv_dw", 128, 14, 1, 32),
}


@pytest.mark.parametrize("lanes", [1, 16, 1024])
@pytest.mark.parametrize("name", CASES)
def test_the_cheaper_unit_is_chosen(name, lanes):
    graph, machine = depthwise(*CASES[name]), replace(WAVECORE, lanes=lanes)
    chosen = generate(context := make_context(graph, machine, "bfloat16"), map_graph(context))
    assert runs_on(chosen) in ({"array"}, {"lanes"})
    cycles = simulate(chosen, machine).cycles
    for unit in ("array", "lanes"):
        assert cycles <= simulate(on(unit, graph, machine, "bfloat16"), machine).cycles


@pytest.mark.parametrize("target", ["wavecore", "intergrad-32", "ccnn-flex"])
@pytest.mark.parametrize("name", CASES)
def test_what_decides_without_executing_is_what_the_engines_do(name, target):
    graph, machine = depthwise(*CASES[name]), load_machine(target)
    context = make_context(graph, machine, "bfloat16")
    gemm = gemm_of(context, graph.nodes[0])
    flows = usable_flows(gemm, tiling := choose_tiling(gemm, machine), machine, grouped=False)
    tiling = choose_cuts(gemm, tiling, machine, cuts := {}, flows)
    trace = simulate(generate(context, Mapping(target, {"out": tiling}, {}, cuts)), machine)
    busy = {engine.name: engine.busy_cycles for engine in trace.engines}
    least = array_cycles(tile_products(gemm, tiling), tiling, cuts, machine)
    assert least == max(busy["array"], busy["shift"])


@pytest.mark.parametrize("name", ["depthwise", "depthwise, strided dX", "depthwise dW"])
def test_lanes_decide(name):
    """A single lane multiplies no faster than a column of the array, a thousand do."""
    graph = depthwise(*CASES[name])
    for lanes, unit in ((1, "array"), (1024, "lanes")):
        context = make_context(graph, replace(WAVECORE, lanes=lanes), "bfloat16")
        assert runs_on(generate(context, map_graph(context))) == {unit}


def test_the_objective_decides():
    """Lanes that multiply at a high price are left alone when energy counts."""
    rows = tuple(replace(r, pj=1e4) if r.action == "vector_op" else r for r in WAVECORE.energy)
    context = make_context(depthwise("conv", 32, 28), replace(WAVECORE, energy=rows), "bfloat16")
    for objective, unit in (("time", "lanes"), ("energy", "array")):
        assert runs_on(generate(context, map_graph(context, objective=objective))) == {unit}


def test_only_groups_go_to_the_lanes():
    """A convolution without groups stays on the array even where lanes abound."""
    machine = replace(WAVECORE, lanes=2**20)
    context = make_context(depthwise("conv", 2, 14, 1, 2), machine, "bfloat16")
    assert runs_on(generate(context, map_graph(context))) == {"array"}


# Mappings


def test_a_mapping_says_the_unit_and_is_fed_back():
    graph = depthwise("conv", 32, 28)
    context = make_context(graph, WAVECORE, "bfloat16")
    mapping = map_graph(context)
    assert " flow lanes " in mapping.text()
    assert "gemm" not in mapping.text()  # nothing is cut for the array
    assert parse_mapping(mapping.text()) == mapping
    slow = replace(WAVECORE, lanes=1)
    pinned = map_graph(make_context(graph, slow, "bfloat16"), pinned=mapping)
    assert pinned.tilings == mapping.tilings
    by_hand = parse_mapping(mapping.text().replace(" flow lanes", ""))
    assert runs_on(generate(context, map_graph(context, pinned=by_hand))) == {"array"}


@pytest.mark.parametrize(
    ("each", "change", "complaint"),
    [
        (2, ("", ""), "the flow 'lanes'"),
        (1, (" flow lanes", " flow lanes pieces 2"), "pieces 2"),
    ],
)
def test_a_mapping_that_cannot_be(each, change, complaint):
    text = map_graph(make_context(depthwise("conv", 2, 14), WAVECORE, "bfloat16")).text()
    pinned = parse_mapping(text.replace(*change).replace("g=2", "g=1"))
    context = make_context(depthwise("conv", 2, 14, 1, each), WAVECORE, "bfloat16")
    with pytest.raises(MappingError, match=complaint):
        map_graph(context, pinned=pinned)


# Whole steps


@pytest.mark.parametrize("schedule", ["none", "mbs2"])
def test_a_step_uses_both_units_within_its_bounds(schedule):
    c = compile_model(MOBILENET, CompileOptions(serialize=schedule))
    assert verify_program(c.program, c.machine) == []
    units = {tiling.on_lanes for tiling in c.mapping.tilings.values()}
    assert units == {True, False}
    trace = simulate(c.program, c.machine)
    found = {b.key: b.value for b in bounds(c.primitives, c.machine, Precision(2, 4), trace.macs)}
    assert trace.macs >= found["macs"] > 0
    assert trace.cycles >= found["cycles"]
    assert trace.energy_pj >= found["energy_pj"]
    assert trace.pe_utilisation <= found["pe_utilisation"]


@pytest.mark.parametrize(
    ("name", "kib", "schedule", "halves"),
    [
        ("mobilenetv1", 512, "none", False),
        pytest.param("mobilenetv1", 128, "fused", False, marks=pytest.mark.slow),
        ("mobilenetv1", 64, "mbs2", True),
        pytest.param("mobilenetv1", 64, "best", False, marks=pytest.mark.slow),
        ("mobilenetv1", 40, "mbs1", False),
        pytest.param("convnext", 96, "mbs2", False, marks=pytest.mark.slow),
    ],
)
def test_two_steps_agree_with_pytorch(name, kib, schedule, halves):
    """Sub-batches, bands of rows and halves that a small buffer forces; float64."""
    machine, path = replace(WAVECORE, gbuf_bytes=kib * 1024), DATA / name / "model.onnx"
    c, found = executed_step(path, machine, "float64", serialize=schedule, halves=halves)
    assert any(tiling.on_lanes for tiling in c.mapping.tilings.values())
    check(path, "float64", found)


def test_sums_on_the_lanes_gather_in_dram():
    """A weight gradient of which sub-batches make parts, made by the vector unit."""
    machine = replace(WAVECORE, gbuf_bytes=40 * 1024)
    c = compile_model(MOBILENET, CompileOptions(target=machine, dtype="float64", serialize="mbs1"))
    parts = {t.name.removesuffix("/partial") for t in c.program.tensors if "/partial" in t.name}
    made = {c.lowered.producer[name].name for name in parts}
    assert any(c.mapping.tilings[name].on_lanes for name in made)


def test_bounds_of_a_depthwise_convolution():
    """Worked out by hand: 4 x 8 x 10 x 10 results, of 9 taps each those inside the image."""
    graph = depthwise("conv", 8, 10)
    macs = 4 * 8 * (8 * 3 + 2 * 2) ** 2
    fast = replace(MACHINES["tiny"], dram_bandwidth_gib_s=1e6)
    found = {b.key: b.value for b in bounds(graph, fast, Precision(2, 4))}
    assert found["macs"] == found["lbuf_bytes"] == 0
    assert found["cycles"] == -(-macs // (16 + 4))
    pj, moved = fast.energy_pj, found["dram_read_bytes"] + found["dram_write_bytes"]
    rest = found["gbuf_bytes"] * pj["gbuf_byte"] + found["cycles"] * pj["static_cycle"]
    assert found["energy_pj"] == pytest.approx(
        macs * min(pj["mac_16bit"], pj["vector_op"]) + moved * pj["dram_byte"] + rest
    )


def test_explain_puts_one_layer_of_a_block_on_the_other_unit():
    c = compile_model(MOBILENET, CompileOptions(batch=4, serialize="mbs2"))
    inside = {name for group in c.lowered.groups for name in group.nodes}
    node = next(n for n in c.lowered.nodes if n.name in inside and may_use_lanes(n))
    story = next(s for s in explain_node(c, node.name).kernels if s.node == node.name)
    assert story.tiling is not None
    assert story.tiling.on_lanes
    assert story.elsewhere is not None
    assert "lanes" not in story.elsewhere.tiling
    assert story.elsewhere.cycles != story.detail.cycles


def test_explain_says_what_the_other_unit_takes(capsys):
    c = compile_model(MOBILENET, CompileOptions(batch=4))
    node = next(n for n in c.lowered.nodes if n.op == "conv" and n.attributes["group"] > 1)
    told = explain_node(c, node.origin)
    assert len(told.kernels) == 3
    for story in told.kernels:
        assert story.tiling is not None
        assert story.tiling.on_lanes
        assert story.elsewhere is not None
        assert "lanes" not in story.elsewhere.tiling
        assert story.elsewhere.cycles >= story.detail.cycles
    show_explanation(told, sys.stdout, verbose=True)
    words = "unit       vector unit; on the array the kernel takes"
    said = capsys.readouterr().out
    others = [story.elsewhere for story in told.kernels]
    assert all(f"{words} {other.cycles:,} cycles" in said for other in others if other)
