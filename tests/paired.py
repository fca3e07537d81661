"""Layers of which only both gradients are there, apart or interleaved, for tests."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ccnn.compiler.codegen import generate, make_context
from ccnn.compiler.mapper import map_graph
from ccnn.passes.graph import Builder, Graph, Group
from ccnn.passes.ops import op_named
from ccnn.targets.machine import Machine
from ccnn.targets.program import Program
from ccnn.targets.simulator import Execution
from ccnn.targets.verify import verify_program


def _together(graph: Graph) -> Graph:
    nodes = tuple(replace(node, phase="backward") for node in graph.nodes)
    names = tuple(node.name for node in nodes)
    return replace(graph, nodes=nodes, groups=(Group(names, interleaved=True),))


def connected(p: int, k: int, m: int, turned: bool = False) -> Graph:
    """dX[P, M] = dY W and dW = dY^T X of a fully connected layer; `turned`: W lies [M, K]."""
    b = Builder("connected")
    dy, x = b.input("dy", (p, k)), b.input("x", (p, m))
    w = b.input("w", (m, k) if turned else (k, m))
    dx = b.emit("matmul", [dy, w], trans_a=False, trans_b=turned)
    dw = b.emit("matmul", [x, dy] if turned else [dy, x], trans_a=True, trans_b=False)
    return _together(b.build([dx, dw]))


def convolved(x: tuple[int, ...], w: tuple[int, ...], **attrs) -> Graph:
    """Both gradients of a convolution of x [N, C, H, W] with w [K, C/groups, R, S]."""
    attrs = {
        "strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1), "group": 1, **attrs
    }  # fmt: skip
    top, left, bottom, right = attrs["pads"]
    p, q = (
        (size + around - dilation * (taps - 1) - 1) // stride + 1
        for size, around, dilation, taps, stride in zip(
            x[2:], (top + bottom, left + right), attrs["dilations"], w[2:], attrs["strides"],
            strict=True,
        )
    )  # fmt: skip
    b = Builder("convolved")
    dy = b.input("dy", (x[0], w[0], p, q))
    a, weight = b.input("x", x), b.input("w", w)
    dw = b.emit("conv_dw", [a, dy], shape=w, **attrs)
    dx = b.emit("conv_dx", [dy, weight], shape=x, **attrs)
    return _together(b.build([dw, dx]))


def apart(graph: Graph) -> Graph:
    """The same nodes as kernels of their own."""
    return replace(graph, groups=())


def program_of(graph: Graph, machine: Machine, precision: str = "float32") -> Program:
    """The program of a graph, every GEMM mapped."""
    context = make_context(graph, machine, precision)
    return generate(context, map_graph(context))


def execute(graph: Graph, program: Program, machine: Machine, within: float = 1e-5) -> None:
    """Safe, and equal to the references of its ops."""
    assert verify_program(program, machine) == []
    rng = np.random.default_rng(1)
    values = {t.name: rng.standard_normal(t.shape) for t in graph.of_role("input")}
    run = Execution(program, machine, poison=True)
    for name, value in values.items():
        run.write(name, value)
    run.step()
    for node in graph.nodes:
        (want,) = op_named(node.op).reference(node, [values[x] for x in node.inputs])
        got = run[node.outputs[0]]
        assert np.abs(got - want).max() <= within * max(1.0, np.abs(want).max()), node.op
