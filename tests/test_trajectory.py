"""Twenty optimizer steps of serialized programs on a small buffer, against PyTorch's losses.

tests/data/trajectory/make.py made the reference, with a batch, a group and a ghost norm.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_models import build
from reference import DATA, read

from ccnn.compiler.driver import Compilation, CompileOptions, compile_model
from ccnn.compiler.execution import start
from ccnn.passes.autodiff import Optimizer
from ccnn.targets.machine import load_machine
from ccnn.targets.verify import verify_program

REFERENCE = read(DATA / "trajectory" / "losses.npz")
BATCH, STEPS = 12, 20
KIB = 72
"""So small that no feature map of the batch fits: one of float64 takes 120 KiB."""
NORMS = {"exact": "batch", "group": "group", "ghost": "ghost"}


def network() -> onnx.ModelProto:
    """What make.py builds, as ONNX; names of weights are PyTorch's."""
    weights = {k[3:]: v for k, v in REFERENCE.items() if k.startswith("w0/")}
    for k in range(3):
        for name, value in (("running_mean", np.zeros), ("running_var", np.ones)):
            weights[f"norm{k}.{name}"] = value(20, np.float32)
    nodes = []

    def node(op: str, inputs: list[str], result: str, **attributes: object) -> str:
        nodes.append(helper.make_node(op, inputs, [result], result, **attributes))
        return result

    def conv_norm(x: str, k: int) -> str:
        x = node("Conv", [x, f"conv{k}.weight"], f"c{k}", pads=[1] * 4)
        rest = [f"norm{k}.{n}" for n in ("weight", "bias", "running_mean", "running_var")]
        return node("BatchNormalization", [x, *rest], f"n{k}", epsilon=1e-5, momentum=0.9)

    x = node("Relu", [conv_norm("input", 0)], "r0")
    x = node("MaxPool", [x], "p", kernel_shape=[2, 2], strides=[2, 2])
    y = conv_norm(node("Relu", [conv_norm(x, 1)], "r1"), 2)
    x = node("Relu", [node("Add", [y, x], "sum")], "r2")
    x = node("Flatten", [node("GlobalAveragePool", [x], "mean")], "flat")
    node("Gemm", [x, "fc.weight", "fc.bias"], "scores", transB=1)
    return build(nodes, {"input": (BATCH, 3, 8, 8)}, ["scores"], weights)


def compiled(norm: str) -> Compilation:
    lr, momentum, decay = (float(h) for h in REFERENCE["hyper"])
    options = CompileOptions(
        target=replace(load_machine("wavecore"), gbuf_bytes=KIB * 1024),
        batch=BATCH,
        dtype="float64",
        optimizer=Optimizer("sgd", lr, momentum, decay),
        norm=norm,  # type: ignore[arg-type]
        serialize="best",
        recompute="cheap",
    )
    return compile_model(network(), options)


@pytest.mark.parametrize("norm", NORMS)
def test_losses_are_pytorchs(norm):
    c = compiled(norm)
    assert verify_program(c.program, c.machine) == []
    assert sum(bool(g.sub_batch) for g in c.lowered.groups) >= 3
    assert any(n.name.endswith("/again") for n in c.lowered.nodes)
    x, target = c.model.inputs[0], c.model.target
    assert target is not None
    run, losses = None, []
    for step in range(STEPS):
        batch = {x: REFERENCE["input"][step % 4], target: REFERENCE["target"][step % 4]}
        run = run or start(c, batch)
        for name, value in batch.items():
            run.write(name, value)
        run.step()
        losses.append(float(run[c.model.loss]))
    truth = REFERENCE[f"loss/{NORMS[norm]}"]
    assert truth[-1] < truth[0] / 3  # it learns
    np.testing.assert_allclose(losses, truth, rtol=1e-9)
    if norm == "exact":
        for key, value in REFERENCE.items():
            if key.startswith("state/"):
                found = run[c.lowered.updates[key[6:]]]
                np.testing.assert_allclose(found, value, rtol=1e-9, atol=1e-12)


def test_the_three_norms_are_three_different_networks():
    ends = [REFERENCE[f"loss/{n}"][-1] for n in NORMS.values()]
    assert min(abs(a - b) for a in ends for b in ends if a is not b) > 1e-2
