"""What need not go through DRAM: operands that are fetched whole beside the regions of a group, and
gradients that an update takes in the epilogue of their layer."""

from dataclasses import replace

import numpy as np
from reference import DATA

from ccnn.compiler.codegen import generate, make_context, plan_groups
from ccnn.compiler.codegen.guests import Guest, welcomed
from ccnn.compiler.codegen.packing import Rectangle, pack, top
from ccnn.compiler.driver import CompileOptions, compile_model
from ccnn.compiler.execution import random_inputs, run_steps
from ccnn.compiler.mapper import map_graph
from ccnn.compiler.schedule import element_bytes
from ccnn.passes.autodiff import Optimizer
from ccnn.passes.fuse_updates import FuseUpdates
from ccnn.passes.graph import Builder, Group
from ccnn.passes.traffic import estimate
from ccnn.targets.machine import load_machine
from ccnn.targets.simulator import simulate
from ccnn.targets.verify import verify_program

RESNET = DATA / "resnet8_cifar" / "model.onnx"
SMALL = replace(load_machine("wavecore"), gbuf_bytes=256 * 1024)
MOMENTUM = Optimizer(momentum=0.9, weight_decay=1e-4)


def compiled(**options):
    return compile_model(RESNET, CompileOptions(**{"target": SMALL, "batch": 8, **options}))


def test_guests_take_the_room_that_regions_leave_at_their_node():
    regions = (Rectangle("a", 0, 2, 600, 0), Rectangle("b", 2, 4, 1000, 0))
    fits, too_large = Guest("n", "w", 1, 400), Guest("m", "w", 3, 64)
    small = Guest("o", "u", 0, 10)
    guests, placed = welcomed([small, too_large, fits], regions, 1700)
    assert guests == (fits,)
    assert placed == (*regions, Rectangle("w@1", 1, 2, 400, 600))


def test_statistics_lie_apart_from_what_the_array_reads():
    """Where they cost next to nothing; they take over each other's addresses, not those of data."""
    data = (Rectangle("x", 0, 3, 64 * 400), Rectangle("dx", 3, 6, 64 * 400))
    small = tuple(Rectangle(f"s{k}", k, k + 1, 64) for k in range(6))
    placed = {r.name: r for r in pack((*data, *small))}
    assert top(tuple(placed.values())) == 64 * 401
    for s in small:
        for d in data:
            a, b = placed[s.name], placed[d.name]
            assert a.address + a.size <= b.address or b.address + b.size <= a.address
    # not when that would take much: statistics as large as data share its room
    alike = tuple(replace(r, size=64) for r in (*data, *small[:3]))
    assert top(pack(alike)) == 2 * 64


def test_regions_are_loaded_in_the_order_of_their_need():
    c = compiled(serialize="mbs2", norm="group", halves=True)
    context = make_context(c.lowered, c.machine, c.options.dtype)
    early = 0
    for plan in plan_groups(context):
        place = {n.name: k for k, n in enumerate(plan.nodes)}
        order = [(at, place[n]) for at, found in sorted(plan.fetches.items()) for _, n in found]
        needs = [need for _, need in order]
        assert needs == sorted(needs)
        assert all(at <= need for at, need in order)
        early += sum(at < need for at, need in order)
    assert early  # what is needed later is fetched while the array is at a node before
    assert verify_program(c.program, c.machine) == []


def test_what_is_fetched_whole_is_fetched_once_in_an_iteration():
    """Wide tensors in front leave room beside the narrow ones behind."""
    b = Builder("chain")
    y = b.input("x", (8, 16, 8, 8))
    for k, (c, out) in enumerate(((16, 64), (64, 16), (16, 16), (16, 16))):
        w = b.declare(f"w{k}", (out, c, 3, 3), "parameter")
        square = {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1), "group": 1}
        y = b.emit("conv", [y, w], name=f"conv{k}", outputs=[f"y{k}"], **square)
    group = Group(("conv0", "conv1", "conv2", "conv3"), 2, ("y0", "y1", "y2"))
    machine = replace(SMALL, gbuf_bytes=80 * 1024)
    context = make_context(replace(b.build([y]), groups=(group,)), machine, "bfloat16")
    (plan,) = plan_groups(context)
    assert {(g.node, g.tensor) for g in plan.guests} == {("conv2", "w2"), ("conv3", "w3")}
    program = generate(context, map_graph(context))
    assert verify_program(program, machine) == []
    read = {t.name: t.read_bytes for t in simulate(program, machine).tensors}
    for guest in plan.guests:
        assert read[guest.tensor] == 4 * guest.size == 4 * 2 * 16 * 16 * 9


def test_gradients_that_are_no_results_are_not_written():
    """Nor read, as executed and as estimated; the weights are the same bit for bit."""
    inputs, values, moved, estimated = None, [], [], []
    for gradients in (True, False):
        c = compiled(serialize="best", optimizer=MOMENTUM, gradients=gradients)
        assert verify_program(c.program, SMALL) == []
        inputs = inputs or random_inputs(c)
        values.append(run_steps(c, inputs, 2))
        trace = simulate(c.program, SMALL)
        moved.append(trace.dram_bytes)
        estimated.append(estimate(c.lowered, element_bytes(c.options)).total)
        fused = [n for n in c.lowered.nodes if n.attr("fused")]
        assert len(fused) == 10  # every convolution and the matrix product
        assert {k.name for k in c.program.kernels}.isdisjoint(n.name for n in fused)
        gradient = {n.inputs[1]: 2 * c.lowered[n.inputs[1]].size for n in fused}
        written = {t.name: t.write_bytes for t in trace.tensors if t.name in gradient}
        assert written == (gradient if gradients else {})
        assert all(t.read_bytes == 0 for t in trace.tensors if t.name in gradient)
    assert moved[0] - moved[1] == estimated[0] - estimated[1] == sum(gradient.values())
    assert set(values[1]) < set(values[0])
    for key, value in values[1].items():
        np.testing.assert_array_equal(value, values[0][key], err_msg=key)
    assert sum(key.startswith("w2/") for key in values[1]) == len(c.lowered.gradients) + 10


def test_updates_apart_give_the_same_weights(monkeypatch):
    """The update as a kernel of its own reads what the epilogue has on chip.

    Groups have other room for tiles then, and sums another order: it takes float64 to compare.
    """
    options = {
        "serialize": "best",
        "optimizer": MOMENTUM,
        "dtype": "float64",
        "target": replace(SMALL, gbuf_bytes=4 * SMALL.gbuf_bytes),
    }
    fused = compiled(**options)
    assert sum(bool(n.attr("fused")) for n in fused.lowered.nodes) == 10
    monkeypatch.setattr(FuseUpdates, "__call__", lambda self, graph: graph)
    apart = compiled(**options)
    assert not any(n.attr("fused") for n in apart.lowered.nodes)
    inputs = random_inputs(fused)
    one, other = run_steps(fused, inputs, 2), run_steps(apart, inputs, 2)
    for key, value in one.items():
        np.testing.assert_allclose(value, other[key], rtol=1e-9, atol=1e-12, err_msg=key)
