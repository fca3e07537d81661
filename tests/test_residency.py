"""What need not go through DRAM: operands that are fetched whole beside the regions of a group, and
gradients that an update takes in the epilogue of their layer."""

from dataclasses import replace

import numpy as np
from reference import DATA

from ccnn.compiler.codegen import make_context, plan_groups
from ccnn.compiler.codegen.guests import Guest, welcomed
from ccnn.compiler.codegen.packing import Rectangle
from ccnn.compiler.driver import CompileOptions, compile_model, random_inputs, run_steps
from ccnn.compiler.schedule import element_bytes
from ccnn.passes.autodiff import Optimizer
from ccnn.passes.fuse_updates import FuseUpdates
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


def test_what_is_fetched_whole_is_fetched_once_in_an_iteration():
    machine = replace(SMALL, gbuf_bytes=192 * 1024)
    c = compiled(target=machine, serialize="best", norm="group", tiles=0.1)
    assert verify_program(c.program, machine) == []
    trace = simulate(c.program, machine)
    took = {layer.name: layer.counts.dram_read_bytes for layer in trace.layers}
    seen = 0
    for plan in plan_groups(make_context(c.lowered, machine, "bfloat16")):
        times = sum(run.part.count for run in plan.runs)
        for guest in plan.guests:
            node = next(n for n in plan.nodes if n.name == guest.node)
            if all(i in plan.names for i in node.inputs if i != guest.tensor):
                assert took[guest.node] == times * 2 * c.lowered[guest.tensor].size
                seen += times
    assert seen > 1  # some in a loop


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
    """The update as a kernel of its own reads what the epilogue has on chip."""
    fused = compiled(serialize="best", optimizer=MOMENTUM)
    monkeypatch.setattr(FuseUpdates, "__call__", lambda self, graph: graph)
    apart = compiled(serialize="best", optimizer=MOMENTUM)
    assert not any(n.attr("fused") for n in apart.lowered.nodes)
    inputs = random_inputs(fused)
    one, other = run_steps(fused, inputs, 2), run_steps(apart, inputs, 2)
    for key, value in one.items():
        np.testing.assert_array_equal(value, other[key], err_msg=key)
