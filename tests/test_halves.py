"""Groups in halves: array and vector unit work on two parts of a sub-batch at once."""

from dataclasses import replace

import pytest
from reference import DATA, errors
from test_groups import WAVECORE, compiled

from ccnn.compiler.codegen.lives import settled
from ccnn.compiler.driver import CompileOptions, compile_model
from ccnn.compiler.execution import run_steps, verify_values
from ccnn.passes.check import verify
from ccnn.passes.graph import Node
from ccnn.passes.text import parse_graph, print_graph
from ccnn.targets.simulator import simulate
from ccnn.targets.verify import verify_program


def halved(program):
    """Kernels with regions that have a part for each half."""
    return [
        k for k in program.kernels if any(b.name[:2] == "r." and b.depth == 2 for b in k.buffers)
    ]


@pytest.mark.parametrize(
    ("name", "mode"), [("resnet8_cifar", "mbs2"), ("squeezenet", "mbs2"), ("squeezenet", "fused")]
)
def test_exact_norms_against_pytorch(name, mode):
    c, truth, inputs = compiled(name, 512, serialize=mode, halves=True)
    assert halved(c.program)
    assert verify_program(c.program, c.machine) == []
    fed = {c.model.inputs[0]: inputs["input"], c.model.target: inputs["target"]}
    worst = max(errors(truth, run_steps(c, fed, 2)).items(), key=lambda e: e[1])
    assert worst[1] <= 1e-9, worst


def grouped(batch, kib, **options):
    asked = CompileOptions(
        target=replace(WAVECORE, gbuf_bytes=kib * 1024), dtype="float64", batch=batch,
        norm="group", serialize="mbs2", **options,
    )  # fmt: skip
    return compile_model(DATA / "resnet8_cifar" / "model.onnx", asked)


@pytest.mark.parametrize(("batch", "kib"), [(10, 1300), (11, 1200)])
def test_unequal_halves_against_the_interpreter(batch, kib):
    c = grouped(batch, kib, halves=True)
    assert any(g.halves and batch % g.sub_batch for g in c.lowered.groups)
    assert halved(c.program)
    assert verify_program(c.program, c.machine) == []
    assert max(e.error for e in verify_values(c)) <= 1e-9


def test_time_is_saved_for_bytes():
    plain, c = grouped(16, 1400), grouped(16, 1400, halves=True)
    assert halved(c.program)
    before, after = (simulate(x.program, x.machine) for x in (plain, c))
    assert after.cycles < before.cycles
    assert after.macs == before.macs
    assert after.dram_bytes >= before.dram_bytes  # what streams in comes once for each half


def test_backward_groups_stay_whole():
    c, _, _ = compiled("squeezenet", 512, serialize="mbs2", halves=True)
    phases = {n.name: n.phase for n in c.lowered.nodes}
    for group in c.lowered.groups:
        assert group.halves == all(phases[n] != "backward" for n in group.nodes)


def test_the_graph_reads_back():
    c, _, _ = compiled("squeezenet", 512, serialize="mbs2", halves=True)
    assert any(g.halves for g in c.lowered.groups)
    again = parse_graph(print_graph(c.lowered))
    verify(again)
    assert again.groups == c.lowered.groups


def node(name, op, inputs, **attrs):
    return Node(name, op, tuple(inputs), (f"{name}.out",), tuple(attrs.items()), "", "backward")


def test_weight_gradients_wait_for_vector_work_on_their_operands():
    dx, dw = node("dx", "conv_dx", ["dy", "w"]), node("dw", "conv_dw", ["x", "dy"])
    step = node("step", "map", ["w", "dw.out"], fused=True)
    add, relu = node("add", "map", ["dx.out", "s"]), node("relu", "map", ["add.out", "x"])
    norm, after = node("norm", "reduce", ["relu.out"]), node("after", "conv_dx", ["norm.out", "x"])
    nodes = (dx, dw, step, add, relu, norm, after)
    root = {t: t for n in nodes for t in (*n.inputs, *n.outputs)}
    assert settled(nodes, root, {"x"}) == (dx, add, relu, dw, step, norm, after)
    assert settled(nodes, root, {"dy"}) == nodes  # nobody else reads it
    read = node("read", "map", ["dw.out"])
    assert settled((dx, dw, read, relu), root, {"x"}) == (dx, dw, read, relu)
