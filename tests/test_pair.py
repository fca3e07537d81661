"""Gradients interleaved element by element: safe, right, as fast as the schedule says, and chosen
where they pay."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paired import apart, connected, convolved, execute, program_of
from test_array_modes import change, waves
from test_cuts import at_once

from ccnn.compiler import CompileOptions, cli, compile_model, verify_values
from ccnn.compiler.codegen import make_context
from ccnn.compiler.explain import explain_node
from ccnn.compiler.failure import ExitCode
from ccnn.compiler.mapper import map_graph
from ccnn.compiler.mapping import MappingError, parse_mapping
from ccnn.passes.graph import Graph, GraphError, Group
from ccnn.passes.interleave_gradients import pair_of
from ccnn.passes.text import parse_graph, print_graph
from ccnn.targets.binary import decode, encode
from ccnn.targets.machine import MachineError, load_machine
from ccnn.targets.modes import Mode
from ccnn.targets.program import Exec, ExecOS, LoadH
from ccnn.targets.simulator import simulate
from ccnn.targets.text import parse_program, print_program
from ccnn.targets.verify import verify_program

RESNET = Path(__file__).parent / "data" / "resnet8_cifar" / "model.onnx"
PAIR = Mode("PAIR", 4, 4, dataflow="pair", turns=2)
TINY = replace(load_machine("tiny"), modes=(Mode("WS", 4, 4), PAIR))
LARGE = at_once(load_machine("intergrad-128"))


def in_turns(program) -> list[tuple[Exec, Exec]]:
    """The waves of a program, two by two."""
    found = waves(program)
    return list(zip(found[::2], found[1::2], strict=True))


# programs


def test_one_paired_gemm(golden):
    """W in two blocks of two deep and one wide; the rows in pieces of four."""
    graph = connected(10, 8, 4)
    program = program_of(graph, TINY)
    execute(graph, program, TINY)
    golden("modes/pair.asm", print_program(program))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    p=st.integers(1, 40), k=st.integers(1, 14), m=st.integers(1, 14), turned=st.booleans(),
    kib=st.sampled_from([1, 2, 64]),
)  # fmt: skip
def test_any_connected_layer_is_safe_right_and_round_trips(
    p: int, k: int, m: int, turned: bool, kib: int
):
    """Also in buffers so small that its tiles are many."""
    graph, machine = connected(p, k, m, turned), replace(TINY, gbuf_bytes=2048 * kib)
    program = program_of(graph, machine)
    execute(graph, program, machine)
    assert parse_program(print_program(program)) == program
    assert decode(encode(program)) == program
    for first, second in in_turns(program):
        assert (first.opcode, second.opcode) == ("ExecGEMM", "ExecOS")
        assert first.moving == second.moving


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    c=st.integers(1, 5), k=st.integers(1, 5), r=st.integers(1, 3), s=st.integers(1, 3),
    side=st.integers(4, 8), stride=st.integers(1, 3), dilation=st.integers(1, 2),
    pad=st.integers(0, 2), groups=st.integers(1, 2),
)  # fmt: skip
def test_any_convolution(
    c: int, k: int, r: int, s: int, side: int, stride: int, dilation: int, pad: int, groups: int
):
    """Strided ones phase by phase, dilated and grouped ones, with zeros around."""
    if side + 2 * pad < dilation * (max(r, s) - 1) + 1:
        return
    graph = convolved(
        (3, groups * c, side, side), (groups * k, c, r, s), strides=(stride, stride),
        dilations=(dilation, dilation), pads=(pad,) * 4, group=groups,
    )  # fmt: skip
    execute(graph, program_of(graph, TINY), TINY)


def test_narrow_types_round_once():
    """Sums gather in full precision over waves and tiles, whatever dtype the gradient has."""
    graph = connected(200, 9, 9)
    machine = replace(TINY, gbuf_bytes=4096)
    execute(graph, program_of(graph, machine, "bfloat16"), machine, within=2.0**-6)


# what it takes


@pytest.mark.parametrize(("p", "side"), [(1, 128), (16, 128), (128, 128), (100, 60)])
def test_a_fold_takes_what_the_schedule_says(p: int, side: int):
    """2P + 2S - 2 cycles from the first wave to the last result, once the weights are there."""
    program = program_of(connected(p, side, side), LARGE, "bfloat16")
    trace = simulate(program, LARGE, events=True)
    array = [e for e in trace.events if e.engine == "array"]
    assert len(array) == 2
    assert max(e.end for e in array) - array[0].start == 2 * p + 2 * side - 2
    assert dict(trace.modes) == {"PAIR": 2 * p}


@pytest.mark.parametrize("shape", [(64, 256, 384), (128, 128, 500), (300, 300, 300)])
def test_folds_follow_each_other(shape: tuple[int, int, int]):
    """The array works 2P cycles a fold, and waits for no more than a shift-in where P is a side."""
    p, k, m = shape
    trace = simulate(program_of(connected(p, k, m), LARGE, "bfloat16"), LARGE)
    array = next(e for e in trace.engines if e.name == "array")
    folds = -(-k // 128) * -(-m // 128)
    assert array.busy_cycles == folds * 2 * p
    assert trace.macs == 2 * p * k * m
    if p >= 128:
        assert trace.cycles <= array.busy_cycles + 4 * 128 + 3 * min(p, 384)


@pytest.mark.parametrize(("p", "gain"), [(16, 1.8), (32, 1.6), (64, 1.4)])
def test_connected_layers_of_few_rows_take_fewer_cycles(p: int, gain: float):
    """Against the best flows of each gradient alone, loads and drains overlapped in both."""
    graph = connected(p, 1024, 1024)
    cycles = [
        simulate(program_of(g, LARGE, "bfloat16"), LARGE).cycles for g in (apart(graph), graph)
    ]
    assert cycles[0] / cycles[1] > gain


def test_dy_comes_before_the_array_once():
    graph = connected(256, 512, 512)
    words = {}
    for form in (apart(graph), graph):
        program = program_of(form, LARGE, "bfloat16")
        trace = simulate(program, LARGE)
        words[bool(form.groups)] = trace.lbuf_bytes
        feeds = {e.name: e.busy_cycles for e in trace.engines}
        if form.groups:
            # one pass of dY for each strip of 128 columns
            assert feeds["feed_h"] == 256 * 4 * 4
    assert words[True] < words[False]


# safety

BROKEN = [
    (ExecOS, lambda i: replace(i, k=replace(i.k, size=i.k.size - 1)), "no ExecGEMM that it takes"),
    (ExecOS, lambda i: replace(i, mode="WS"), "not output-stationary"),
    (LoadH, lambda i: replace(i, mode="WS"), "was filled in mode WS, not PAIR"),
]


@pytest.mark.parametrize(("kind", "how", "words"), BROKEN)
def test_what_is_no_pair_is_found(kind: type, how, words: str):
    program = program_of(connected(8, 4, 4), TINY)
    assert verify_program(program, TINY) == []
    found = verify_program(change(program, kind, how), TINY)
    assert any(words in f.message for f in found)


def test_a_wave_on_its_own_takes_no_turns():
    program = program_of(connected(8, 4, 4), TINY)
    (kernel,) = program.kernels

    def without(body, kind):
        return tuple(
            replace(i, body=without(i.body, kind)) if hasattr(i, "body") else i
            for i in body if type(i) is not kind
        )  # fmt: skip

    for kind, words in ((Exec, "no ExecGEMM"), (ExecOS, "no ExecOS")):
        alone = replace(program, kernels=(replace(kernel, body=without(kernel.body, kind)),))
        found = [f for f in verify_program(alone, TINY) if f.rule == "turns"]
        assert found
        assert words in found[0].message


# in a step


def test_the_graph_is_read_back():
    graph = connected(4, 3, 2)
    text = print_graph(graph)
    assert "sub_batch 0 interleaved resident [] kept []" in text
    assert parse_graph(text) == graph


def test_other_nodes_are_no_pair():
    graph = connected(4, 3, 3)
    names = tuple(node.name for node in graph.nodes)
    with pytest.raises(GraphError, match="no dX and dW"):
        pair_of(graph, Group(names[:1], interleaved=True))
    # dW for weights that lie the other way round
    dx, dw = graph.nodes
    wrong = replace(dw, inputs=dw.inputs[::-1])
    with pytest.raises(GraphError, match="no dX and dW"):
        pair_of(replace(graph, nodes=(dx, wrong)), Group(names, interleaved=True))


@pytest.mark.parametrize(
    "target", ["intergrad-32", pytest.param("ccnn-flex", marks=pytest.mark.slow)]
)
def test_a_network_trains_with_all_layers_interleaved(target: str):
    options = CompileOptions(target=target, batch=4, dtype="float32", interleave="element")
    c = compile_model(RESNET, options)
    assert len([g for g in c.lowered.groups if g.interleaved]) == 9
    assert verify_program(c.program, c.machine) == []
    assert [e for e in verify_values(c) if not e.error <= e.bound] == []
    assert dict(simulate(c.program, c.machine).modes)["PAIR"] > 0


def test_a_mapping_is_read_back_and_taken():
    options = CompileOptions(target="ccnn-flex", batch=4, interleave="element")
    first = compile_model(RESNET, options)
    read = parse_mapping(first.mapping.text())
    assert read == first.mapping
    again = compile_model(RESNET, replace(options, pinned=read))
    assert again.program == first.program


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("dram", "pieces 2 dram", "pieces 2, which cannot be; both gradients"),
        ("dram", "flow a-stays dram", "the flow 'a stays'"),
        ("k=8", "k=4", "k=4, which cannot be"),
    ],
)
def test_a_wrong_edit_is_refused(old: str, new: str, words: str):
    context = make_context(connected(16, 8, 8), TINY, "float32")
    text = map_graph(context).text()
    with pytest.raises(MappingError, match=words):
        map_graph(context, pinned=parse_mapping(text.replace(old, new, 1)))


def test_machines_that_cannot_say_so(capsys, tmp_path: Path):
    with pytest.raises(MachineError, match="wavecore has no single array with a mode"):
        compile_model(RESNET, CompileOptions(batch=2, interleave="element"))
    command = ["compile", str(RESNET), "--batch", "2", "-q", "-o", str(tmp_path)]
    code = cli.run([*command, "--interleave", "element", "--target", "flexsa-1g1f"])
    assert code == ExitCode.MACHINE
    assert "or --interleave tile" in capsys.readouterr().err


def test_a_layer_that_does_not_fit_stays_apart():
    """8 rows of W and of its gradient take more than the buffer."""
    machine = replace(TINY, gbuf_bytes=256)
    with pytest.raises(MappingError, match="smallest tile"):
        map_graph(make_context(connected(4, 64, 1), machine, "float32"))


def test_explain_tells_of_both():
    options = CompileOptions(target="intergrad-32", batch=4, interleave="element")
    c = compile_model(RESNET, options)
    told = explain_node(c, "/features/stage2/unit1/body/conv1/conv/Conv")
    story = next(s for s in told.kernels if s.op == "conv_dx")
    assert any("conv_dw" in name for name in story.shared_with)
    assert story.runner_up is not None
    assert all(w.cycles for w in story.what_if)


def test_groups_without_their_layer_are_refused():
    graph: Graph = connected(4, 3, 2)
    only = replace(graph, nodes=graph.nodes[:1])
    with pytest.raises(GraphError):
        pair_of(only, graph.groups[0])
