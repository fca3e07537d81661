"""Groups that run band by band of rows, the rows at the edges made in both bands or carried from
one to the next: executed in float64 against the interpreter, and proved safe."""

from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from onnx import helper
from onnx_models import build
from reference import errors
from serialised import run_serialised
from test_groups import compiled

from ccnn.compiler import schedule
from ccnn.compiler.codegen import generate, make_context, plan_groups
from ccnn.compiler.codegen.emit import CodegenError
from ccnn.compiler.driver import CompileOptions
from ccnn.compiler.execution import run_steps
from ccnn.compiler.mapper import map_graph
from ccnn.compiler.reader import ReadOptions, read_model
from ccnn.passes.autodiff import Optimizer, differentiate
from ccnn.passes.batch_axis import batch_axis
from ccnn.passes.check import verify
from ccnn.passes.group_plan import Plan
from ccnn.passes.interpret import interpret
from ccnn.passes.pipeline import DEFAULT, run_pipeline
from ccnn.passes.place_groups import place_groups
from ccnn.passes.row_bands import row_bands
from ccnn.passes.row_plan import macs_made_again
from ccnn.passes.row_work import NoBands, work_of
from ccnn.passes.serialize_minibatch import SerializeMinibatch
from ccnn.passes.steps import ElementBytes, make_steps
from ccnn.passes.text import parse_graph, print_graph
from ccnn.passes.traffic import estimate
from ccnn.targets.machine import load_machine
from ccnn.targets.simulator import Execution, simulate
from ccnn.targets.verify import verify_program

WAVECORE = replace(load_machine("wavecore"), gbuf_bytes=128 * 1024)

CHAINS = {
    "vgg": ((16, 10), [("Conv", 3, 1, 1, 1), ("Conv", 3, 1, 1, 1), ("MaxPool", 2, 2, 0, 1)]),
    "deep": (
        (24, 9),
        [("Conv", 3, 1, 1, 1), ("MaxPool", 2, 2, 0, 1), ("Conv", 5, 1, 2, 1), ("Conv", 3, 1, 1, 1),
         ("MaxPool", 2, 2, 0, 1), ("Conv", 3, 1, 1, 1)],
    ),
    "tall": (
        (72, 5),
        [("Conv", 3, 1, 1, 1), ("MaxPool", 2, 2, 0, 1), ("Conv", 5, 1, 2, 1), ("Conv", 3, 1, 1, 1),
         ("MaxPool", 2, 2, 0, 1), ("Conv", 3, 1, 1, 1)],
    ),
    "stem": ((31, 13), [("Conv", 7, 2, 3, 1), ("MaxPool", 3, 2, 1, 1), ("Conv", 3, 1, 1, 1)]),
    "valid": ((33, 9), [("Conv", 3, 2, 0, 1), ("Conv", 3, 1, 0, 1), ("AveragePool", 3, 2, 1, 1)]),
    "norm": (
        (17, 8),
        [("Conv", 3, 1, 1, 1), ("BatchNormalization", 1, 1, 0, 1), ("MaxPool", 2, 2, 0, 1),
         ("Conv", 3, 1, 1, 1), ("BatchNormalization", 1, 1, 0, 1)],
    ),
    "dilated": ((21, 9), [("Conv", 3, 1, 2, 2), ("AveragePool", 2, 2, 0, 1), ("Conv", 1, 1, 0, 1)]),
}  # fmt: skip
"""Image and layers: operator, kernel, stride, padding, dilation; a convolution has a bias and a
Relu behind it."""


@cache
def step_of(name, batch=2):
    """The training step of a chain in primitives."""
    (height, width), layers = CHAINS[name]
    rng = np.random.default_rng(1)
    nodes, weights, at, channels = [], {}, "x", 3
    for k, (op, kernel, stride, pad, dilation) in enumerate(layers):
        more = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [pad] * 4}
        inputs = [at]
        if op == "Conv":
            more["dilations"] = [dilation] * 2
            inputs += [f"w{k}", f"b{k}"]
            weights[f"w{k}"] = rng.normal(size=(4 + k, channels, kernel, kernel)) / kernel
            weights[f"b{k}"] = rng.normal(size=4 + k)
            channels = 4 + k
        if op == "BatchNormalization":
            more = {}
            inputs += [f"s{k}", f"b{k}", f"m{k}", f"v{k}"]
            weights |= {name: rng.uniform(0.5, 1.5, channels) for name in inputs[1:]}
        nodes.append(helper.make_node(op, inputs, [f"y{k}"], name=f"l{k}", **more))
        at = f"y{k}"
        if op == "Conv":
            nodes.append(helper.make_node("Relu", [at], [f"z{k}"], name=f"r{k}"))
            at = f"z{k}"
    weights = {k: v.astype(np.float32) for k, v in weights.items()}
    model = build(nodes, {"x": (batch, 3, height, width)}, [at], weights)
    read = read_model(model, ReadOptions(loss="mse", batch=batch))
    graph = differentiate(
        read.graph, read.loss, input_gradients=read.inputs[:1], optimizer=Optimizer()
    )
    return run_pipeline(graph, DEFAULT)


def runs_of(graph, steps):
    """The longest runs of kernels that can go by rows, forward and backward."""
    runs, start = [], None
    for k, node in enumerate((*steps.nodes, None)):
        try:
            fits = node is not None and bool(work_of(graph, node))
        except NoBands:
            fits = False
        if start is not None and (not fits or k == steps.backward or steps.barrier[k] >= start):
            runs.append((start, k))
            start = None
        if fits and start is None:
            start = k
    return runs


def in_rows(
    graph, rows, resident=lambda store, written: True, keep=False, sub_batch=1, carried=False
):
    """The graph with its longest runs in groups of so many rows, one sample at a time."""
    steps = make_steps(graph, batch_axis(graph), ElementBytes())
    chosen = []
    for low, high in runs_of(graph, steps):
        stores = [s for k in range(low, high) for s in (*steps.reads[k], *steps.writes[k])]
        inside = {
            s for s in stores
            if steps.stores[s].batched and resident(s, low <= steps.stores[s].writer < high)
        }  # fmt: skip
        rowed = row_bands(graph, steps.nodes[low:high], rows).scale
        kept = {s for s in stores if not steps.stores[s].batched and keep and s not in rowed}
        plan = Plan(0.0, 0.0, sub_batch, tuple(inside), tuple(kept), rows=rows, carried=carried)
        chosen.append(((low, high), plan))
    return place_groups(steps, chosen)


def check(grouped, machine=WAVECORE):
    """Executes a grouped step on poisoned memory; every result is the interpreter's."""
    context = make_context(grouped, machine, "float64")
    program = generate(context, map_graph(context))
    assert verify_program(program, machine) == []
    rng = np.random.default_rng(2)
    values = {
        t.name: grouped.data.get(t.name, rng.standard_normal(t.shape))
        for t in grouped.tensors.values()
        if t.role != "value"
    }
    run = Execution(program, machine, True)
    for name, value in values.items():
        run.write(name, value)
    run.step()
    wanted = sorted(grouped.needed)
    truth = interpret(grouped, values, keep=set(wanted))
    for name in wanted:
        scale = max(1e-6, float(np.abs(truth[name]).max()))
        np.testing.assert_allclose(run[name], truth[name], rtol=0, atol=1e-12 * scale, err_msg=name)
    return program


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("name", CHAINS)
def test_all_resident(name, rows):
    grouped = in_rows(step_of(name), rows)
    assert len(grouped.groups) > 1
    check(grouped)


CARRIED = [("vgg", 2), ("tall", 6), ("stem", 2), ("valid", 2), ("norm", 2), ("dilated", 3)]


@pytest.mark.parametrize(("name", "rows"), CARRIED)
def test_rows_carried_from_band_to_band(name, rows):
    again, carried = (in_rows(step_of(name), rows, carried=c) for c in (False, True))
    program, other = check(carried), check(again)
    macs, more = simulate(program, WAVECORE).macs, simulate(other, WAVECORE).macs
    assert macs_made_again(carried) == 0
    assert more - macs == macs_made_again(again) or name not in ("vgg", "dilated")
    assert more > macs or name == "norm"  # whose rows at the edges are vector work
    assert any(b.name.endswith("/above") for k in program.kernels for b in k.buffers)


@pytest.mark.parametrize(("name", "rows"), CARRIED)
def test_carried_bands_make_each_row_once_and_read_what_was_made(name, rows):
    graph = step_of(name)
    steps = make_steps(graph, batch_axis(graph), ElementBytes())
    carried = set()
    for low, high in runs_of(graph, steps):
        bands = row_bands(graph, steps.nodes[low:high], rows, carry=True)
        carried |= {*bands.carried}
        for tensor in bands.makes(0):
            made = [bands.makes(band)[tensor] for band in range(bands.count)]
            assert (made[0][0], made[-1][1]) == (0, bands.height(tensor))
            assert all(a[1] == b[0] for a, b in pairwise(made))
            for band in range(bands.count):
                first, last = bands.needs(band)[tensor]
                assert first <= made[band][0]
                assert last == made[band][1]
                if band and tensor in bands.carries(band):
                    low_row, high_row = bands.carries(band)[tensor]
                    assert high_row == made[band][0]
                    assert first <= low_row
                    assert bands.needs(band - 1)[tensor][0] <= low_row
    assert carried


def test_bands_too_low_to_carry_rows_are_refused():
    graph = step_of("deep")
    steps = make_steps(graph, batch_axis(graph), ElementBytes())
    low, high = runs_of(graph, steps)[0]
    with pytest.raises(NoBands, match="has no rows in band"):
        row_bands(graph, steps.nodes[low:high], 1, carry=True)
    assert row_bands(graph, steps.nodes[low:high], 1).count == 6


@pytest.mark.parametrize("name", CHAINS)
def test_inputs_from_dram_and_weights_kept(name):
    grouped = in_rows(step_of(name), 2, lambda store, written: written, keep=True)
    assert all(g.kept for g in grouped.groups)
    check(grouped)


@pytest.mark.parametrize(("keep", "carried"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("name", [name for name in CHAINS if name != "norm"])
def test_the_formula_counts_what_bands_move(name, keep, carried):
    if (name, carried) == ("deep", True):
        pytest.skip("its bands are too low to carry rows")
    rows = 6 if name == "tall" else 2
    grouped = in_rows(step_of(name), rows, keep=keep, carried=carried)
    rng = np.random.default_rng(3)
    values = {t.name: rng.standard_normal(t.shape) for t in grouped.of_role("input")}
    run = run_serialised(grouped, values)
    moved = estimate(grouped)
    assert (run.read, run.written) == (moved.read, moved.written)


def test_the_pass_cuts_rows_where_one_sample_does_not_fit_and_nowhere_else():
    graph = step_of("deep", 4)
    chosen = {}
    for kib in (1, 2, 64):
        for rows in (False, True):
            options = SerializeMinibatch(buffer_bytes=kib * 1024, mode="best", rows=rows)
            grouped = options(graph)
            verify(grouped)
            assert parse_graph(print_graph(grouped)).groups == grouped.groups
            rng = np.random.default_rng(3)
            values = {t.name: rng.standard_normal(t.shape) for t in grouped.of_role("input")}
            run = run_serialised(grouped, values)
            moved = estimate(grouped)
            assert (run.read, run.written) == (moved.read, moved.written)
            assert run.most <= kib * 1024
            chosen[kib, rows] = moved.total, any(g.rows for g in grouped.groups)
    assert [chosen[kib, True][1] for kib in (1, 2, 64)] == [True, True, False]
    assert not any(chosen[kib, False][1] for kib in (1, 2, 64))
    assert chosen[1, True][0] < chosen[1, False][0]
    assert chosen[2, True][0] < chosen[2, False][0]
    assert chosen[64, True] == chosen[64, False]


@pytest.mark.parametrize("name", ["vgg", "deep", "dilated"])
def test_the_work_that_bands_do_twice_is_what_the_program_does_more(name):
    graph = step_of(name)
    grouped = in_rows(graph, 3)
    macs = [
        simulate(generate(c, map_graph(c)), WAVECORE).macs
        for c in (make_context(g, WAVECORE, "float64") for g in (graph, grouped))
    ]
    assert macs[1] - macs[0] == macs_made_again(grouped) > 0
    assert macs_made_again(graph) == 0


@pytest.mark.parametrize("rows", ["auto", "off"])
def test_rows_can_be_switched_off(rows):
    machine = replace(WAVECORE, gbuf_bytes=2048)
    options = CompileOptions(serialize="best", rows=rows)
    graph = schedule.grouped(step_of("deep", 4), machine, options, 0.0)
    assert graph.groups
    assert any(g.rows for g in graph.groups) == (rows == "auto")


def test_what_bands_make_twice_must_be_resident():
    grouped = in_rows(step_of("vgg"), 2, lambda store, written: not written)
    context = make_context(grouped, WAVECORE, "float64")
    with pytest.raises(CodegenError, match="bands share rows of 'y0'"):
        plan_groups(context)


@pytest.mark.parametrize("carried", [False, True])
def test_several_samples_of_unequal_number(carried):
    check(in_rows(step_of("vgg", 3), 2, sub_batch=2, carried=carried))


@pytest.mark.parametrize(
    ("name", "kib"),
    [("squeezenet", 128)]
    + [pytest.param(name, 64, marks=pytest.mark.slow) for name in ("squeezenet", "resnet8_cifar")],
)
def test_a_network_by_rows_against_pytorch(name, kib):
    c, truth, inputs = compiled(name, kib, serialize="best", recompute="cheap")
    backward = {n.name for n in c.lowered.nodes if n.phase == "backward"}
    by_rows = [g for g in c.lowered.groups if g.rows]
    assert {bool(backward & {*g.nodes}) for g in by_rows} == {False, True}
    assert verify_program(c.program, c.machine) == []
    fed = {c.model.inputs[0]: inputs["input"], c.model.target: inputs["target"]}
    assert max(errors(truth, run_steps(c, fed, 2)).values()) <= 1e-9
    slow = simulate(c.program, c.machine, fast=False)
    assert simulate(c.program, c.machine).cycles == slow.cycles
