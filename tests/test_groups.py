"""Data kept on chip: groups of nodes as one kernel, executed against PyTorch and the interpreter.

The buffer is shrunk until the mechanisms are needed: sub-batches that do not divide the batch, sums
over the batch kept on chip or put back to DRAM, moments merged over sub-batches, regions
that share addresses, tensors made anew in the backward pass.
"""

from dataclasses import replace

import numpy as np
import pytest
from onnx import helper
from onnx_models import build, ints, r
from reference import DATA, errors, read

from ccnn.compiler.driver import CompileOptions, compile_model
from ccnn.compiler.execution import random_inputs, run_steps, verify_values
from ccnn.compiler.mapping import parse_mapping
from ccnn.passes.autodiff import Optimizer
from ccnn.passes.interpret import interpret
from ccnn.targets.machine import load_machine
from ccnn.targets.program import Load, Loop, Store
from ccnn.targets.simulator import simulate
from ccnn.targets.verify import verify_program

WAVECORE = load_machine("wavecore")


def compiled(name, kib, **options):
    """A model's step in float64 on a WaveCore with a small buffer."""
    path = DATA / name / "model.onnx"
    truth, inputs = read(path.parent / "ref_f64.npz"), read(path.parent / "inputs.npz")
    lr, momentum, decay = (float(h) for h in truth["hyper"])
    asked = CompileOptions(
        target=replace(WAVECORE, gbuf_bytes=kib * 1024),
        dtype="float64",
        input_gradient=True,
        batch=len(inputs["input"]),
        optimizer=Optimizer("sgd", lr, momentum, decay),
        **options,
    )
    return compile_model(path, asked), truth, inputs


def instructions(program):
    def walk(body):
        for item in body:
            if isinstance(item, Loop):
                yield from walk(item.body)
            else:
                yield item

    for kernel in program.kernels:
        yield from walk(kernel.body)


@pytest.mark.parametrize("name", ["resnet8_cifar", "squeezenet", "mobilenetv1", "inception"])
@pytest.mark.parametrize("kib", [2048, 512, 256])
def test_exact_norm_against_pytorch(name, kib):
    c, truth, inputs = compiled(name, kib, serialize="best", recompute="cheap")
    assert c.lowered.groups
    assert verify_program(c.program, c.machine) == []
    fed = {c.model.inputs[0]: inputs["input"], c.model.target: inputs["target"]}
    worst = max(errors(truth, run_steps(c, fed, 2)).items(), key=lambda e: e[1])
    assert worst[1] <= 1e-9, worst


@pytest.mark.parametrize("mode", ["full", "mbs1", "mbs2"])
@pytest.mark.parametrize("name", ["squeezenet", "mobilenetv1"])
def test_every_mode_against_pytorch(name, mode):
    c, truth, inputs = compiled(name, 512, serialize=mode, recompute="layers")
    assert verify_program(c.program, c.machine) == []
    fed = {c.model.inputs[0]: inputs["input"], c.model.target: inputs["target"]}
    assert max(errors(truth, run_steps(c, fed, 2)).values()) <= 1e-9


@pytest.mark.parametrize("norm", ["group", "ghost"])
@pytest.mark.parametrize("name", ["resnet8_cifar", "mobilenetv1"])
def test_other_norms_against_the_interpreter(name, norm):
    c, _, _ = compiled(name, 512, norm=norm, serialize="best", recompute="cheap")
    assert verify_program(c.program, c.machine) == []
    values = random_inputs(c)
    want = interpret(c.step, {**c.step.data, **values})
    got = run_steps(c, values, 1)
    for parameter, gradient in c.step.gradients.items():
        key = f"grad/{parameter}" if f"grad/{parameter}" in got else "grad_input"
        scale = max(1e-3, float(np.abs(want[gradient]).max()))
        assert np.abs(got[key] - want[gradient]).max() <= 1e-9 * scale, parameter


def test_less_traffic_than_the_conventional_schedule():
    c, _, _ = compiled("mobilenetv1", 512, serialize="best", recompute="cheap")
    usual = compile_model(DATA / "mobilenetv1" / "model.onnx", c.options.conventional)
    ratio = (
        simulate(c.program, c.machine).dram_bytes / simulate(usual.program, c.machine).dram_bytes
    )
    assert ratio < 0.5


def test_sums_over_sub_batches_go_through_dram_when_they_must():
    c, _, _ = compiled("resnet8_cifar", 256, serialize="best", recompute="cheap", norm="group")
    partial = {t.name for t in c.program.tensors if t.name.endswith("/partial")}
    moved = list(instructions(c.program))
    assert {i.tensor for i in moved if isinstance(i, Store)} >= partial
    assert {i.tensor for i in moved if isinstance(i, Load)} >= partial
    assert any(g.sub_batch for g in c.lowered.groups)


def test_the_mapping_of_groups_reads_back():
    c, _, _ = compiled("mobilenetv1", 512, serialize="best")
    assert c.mapping.rooms
    assert parse_mapping(c.mapping.text()) == c.mapping


def test_timing_skips_nothing_that_matters():
    c, _, _ = compiled("mobilenetv1", 512, serialize="best", recompute="cheap")
    assert (
        simulate(c.program, c.machine).cycles == simulate(c.program, c.machine, fast=False).cycles
    )


@pytest.mark.parametrize("mode", ["mbs2", "best"])
@pytest.mark.parametrize(
    ("op", "places", "channels"),
    [
        ("Pad", (0, 0, 1, 2, 0, 0, 3, 0), 4),
        ("Pad", (0, -1, -1, 0, 0, 0, -2, 0), 3),
        ("Pad", (0, 1, -2, 1, 0, 0, 1, -1), 5),
        ("Slice", (0, 1, 2, -1, 9, 9, 7, -9), 3),
    ],
)
def test_padding_of_what_stays_on_chip(op, places, channels, mode):
    """No load fills what lies around a tensor that is in the buffer; a slice's gradient pads."""
    weights = {"w": r(4, 3, 3, 3), "v": r(2, channels, 2, 2)}
    if op == "Pad":
        given = {"p": ints(*places), "value": np.float32(2)}
    else:
        given = {"p": ints(*places[:4]), "e": ints(*places[4:]), "a": ints(0, 1, 2, 3)}
        given["t"] = ints(1, 1, 2, -1)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["k"]),
        helper.make_node(op, ["k", *given], ["m"]),
        helper.make_node("Conv", ["m", "v"], ["y"]),
    ]
    model = build(nodes, {"x": (4, 3, 9, 8)}, ["y"], weights | given)
    c = compile_model(model, CompileOptions(dtype="float64", loss="mse", serialize=mode))
    assert c.lowered.groups
    assert verify_program(c.program, c.machine) == []
    assert all(e.error <= e.bound for e in verify_values(c))


@pytest.mark.parametrize("shape", [(2, 4, 4, 16, 17), (3, 5, 4, 16, 17)])
@pytest.mark.parametrize("mode", ["fused", "mbs2"])
def test_matrices_of_what_stays_on_chip_by_part_of_their_heads(shape, mode):
    """Tiles that hold all samples and some heads: the heads of two samples lie apart."""
    n, heads, m, k, d = shape
    nodes = [
        helper.make_node("Mul", ["x", "s"], ["a"]),
        helper.make_node("MatMul", ["a", "y"], ["o"]),
        helper.make_node("Tanh", ["o"], ["t"]),
        helper.make_node("ReduceSum", ["t"], ["out"], keepdims=0),
    ]
    inputs = {"x": (n, heads, m, k), "y": (n, heads, k, d)}
    model = build(nodes, inputs, ["out"], {"s": r(k)})
    c = compile_model(model, CompileOptions(dtype="float64", serialize=mode))
    assert verify_program(c.program, c.machine) == []
    assert all(e.error <= e.bound for e in verify_values(c))
