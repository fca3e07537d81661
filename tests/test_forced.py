"""Every mechanism that keeps data on chip, forced by a small buffer, on every network.

What happened is read from the program and its trace: groups in several iterations (`loops`),
moments merged over sub-batches (`merges`), sums over the batch that gather in DRAM (`partial`),
tensors (`again`) and convolutions (`layers`) made anew in the backward pass, gradients of
activations taken behind a max pool (`pools`), weights and sums kept through all iterations
(`kept`), samples that the next group finds on chip (`handed`).  Two steps must then agree with
PyTorch as in test_truth.py.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from reference import DATA, errors, read
from test_truth import CORPUS, check

from ccnn.compiler.driver import Compilation, CompileOptions, compile_model
from ccnn.compiler.execution import run_steps
from ccnn.passes.autodiff import Optimizer
from ccnn.passes.batch_axis import batch_axis
from ccnn.targets.machine import load_machine
from ccnn.targets.simulator import simulate
from ccnn.targets.verify import verify_program

KIB = {"float64": 96, "float32": 48}
"""A buffer in which the same part of a network fits in either precision."""

TIES = {("vgg_bn", "float32"): 56}
"""At 48 KiB float32 takes the other of two values that are 1.04e-6 apart in a pooled window of the
second step (of 4.8; found by comparing the windows chosen with those of float64)."""

BEST, MBS2 = ("float64", "best", "layers"), ("float32", "mbs2", "none")
ALL = "loops merges kept again layers partial"
HANDED = "loops merges kept again layers handed"
CASES = {  # network: what is forced by BEST and by MBS2
    "alexnet_lrn": ("loops kept again layers", "loops kept"),
    "convnext": ("loops kept again", "loops kept"),
    "densenet": (HANDED, "loops merges kept"),
    "efficientnet": (HANDED, "loops merges kept"),
    "inception": ("loops merges kept again layers", "loops merges kept"),
    "lenet5": ("loops again layers", "loops"),
    "mobilenetv1": (HANDED, "loops merges kept"),
    "mobilenetv2": (HANDED, "loops merges kept"),
    "regnetx": (HANDED, "loops merges kept"),
    "resnet20_cifar": (HANDED, "loops merges kept"),
    "resnet8_cifar": (ALL, "loops merges kept"),
    "resnet8_fresh": (ALL, "loops merges kept"),
    "seresnet_cifar": ("loops merges kept again layers", "loops merges kept"),
    "squeezenet": ("loops kept again pools", "loops kept partial"),
    "vgg_bn": ("loops merges kept again layers", "loops merges kept"),
}


def rounds(reason: str) -> pytest.MarkDecorator:
    """What float32 may miss by rounding alone: the same program in float64 is within its bound."""
    return pytest.mark.xfail(strict=False, raises=AssertionError, reason=reason)


ROUNDING = {
    ("seresnet_cifar", MBS2): "16 sums over 4 samples in which most cancels: 5.6 times PyTorch's",
}
RUNS = [
    pytest.param(
        name,
        *run,
        forced,
        id=f"{name}-{run[0]}",
        marks=[rounds(ROUNDING[name, run])] if (name, run) in ROUNDING else [],
    )
    for name, case in CASES.items()
    for run, forced in zip((BEST, MBS2), case, strict=True)
]


def found_in(name: str) -> Path:
    """The model, of those that ship or of the corpus."""
    shipped = DATA / name / "model.onnx"
    return shipped if shipped.exists() else CORPUS / "tiny" / name / "model.onnx"


def mechanisms(c: Compilation) -> set[str]:
    """What the program does."""
    axis, nodes = batch_axis(c.lowered), {n.name: n for n in c.lowered.nodes}
    loops = [g for g in c.lowered.groups if 0 < g.sub_batch < axis.batch]
    again = [n for n in nodes if "/again" in n]
    trace = simulate(c.program, c.machine)
    producer = c.lowered.producer
    masks = [producer[n.inputs[0]] for n in nodes.values() if n.op == "window_max_grad"]
    moved = [t for t in trace.tensors if t.name.endswith("/partial")]
    seen = {
        "loops": loops,
        "merges": [n for g in loops for n in g.nodes if axis.kinds[n] == "merges"],
        "kept": [t for g in loops for t in g.kept],
        "again": again,
        "layers": [n for n in again if nodes[n].op == "conv"],
        "pools": [
            m
            for m in masks
            if m.op == "map"
            and len(m.inputs) > 1
            and m.inputs[1] in producer
            and producer[m.inputs[1]].op == "window_max"
        ],
        "handed": [t for g in c.lowered.groups for t in g.left],
        "partial": [t for t in moved if t.read_bytes and t.write_bytes],
    }
    return {what for what, instances in seen.items() if instances}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dtype", "serialize", "recompute", "forced"), RUNS)
def test_two_steps_agree_with_pytorch(name, dtype, serialize, recompute, forced):
    path = found_in(name)
    if not path.exists():
        pytest.skip(f"no model corpus at {CORPUS}; set CCNN_CORPUS")
    truth, inputs = read(path.parent / "ref_f64.npz"), read(path.parent / "inputs.npz")
    lr, momentum, decay = (float(h) for h in truth["hyper"])
    options = CompileOptions(
        target=replace(
            load_machine("wavecore"), gbuf_bytes=TIES.get((name, dtype), KIB[dtype]) * 1024
        ),
        dtype=dtype,
        batch=len(inputs["input"]),
        input_gradient=True,
        optimizer=Optimizer("sgd", lr, momentum, decay),
        serialize=serialize,
        recompute=recompute,
    )
    c = compile_model(path, options)
    if findings := verify_program(c.program, c.machine):  # not what a known fault is about
        pytest.fail(str(findings))
    if missing := set(forced.split()) - mechanisms(c):
        pytest.fail(f"not forced: {sorted(missing)}")
    fed = {c.model.inputs[0]: inputs["input"], c.model.target: inputs["target"]}
    check(path, dtype, errors(truth, run_steps(c, fed, 2)))


def test_every_mechanism_is_forced_on_several_networks():
    for what in {*ALL.split(), *HANDED.split()}:
        assert sum(what in forced for case in CASES.values() for forced in case) >= 3, what


def test_every_network_is_among_the_cases():
    there = {p.parent.name for p in (*DATA.glob("*/model.onnx"), *CORPUS.glob("tiny/*/model.onnx"))}
    assert there <= set(CASES)
