"""Gradients of strided and dilated convolutions multiply no zeros that nobody put there."""

from __future__ import annotations

import pytest
from test_array_modes import execute

from ccnn.compiler.codegen import generate, make_context
from ccnn.compiler.mapper import map_graph
from ccnn.passes.graph import Builder, Graph
from ccnn.targets.machine import load_machine
from ccnn.targets.simulator import simulate

WAVECORE = load_machine("wavecore")
# samples, channels in and out, input side, filter side, stride, dilation
LAYERS = {
    "alexnet_conv4_strided": (1, 256, 384, 13, 3, 2, 1),
    "mobilenet_conv5": (1, 512, 1, 15, 3, 2, 1),
    "stride_of_three": (2, 6, 7, 17, 5, 3, 1),
    "pointwise_strided": (2, 12, 18, 14, 1, 2, 1),
    "dilated": (2, 6, 7, 15, 3, 1, 2),
    "dilated_and_strided": (2, 6, 7, 17, 3, 2, 3),
    "stride_divides_dilation": (2, 6, 7, 17, 3, 2, 2),
}


def layer(kind: str, n: int, c: int, k: int, side: int, r: int, stride: int, dilation: int):
    """The gradient's graph, and the multiplications that EcoFlow (Orosa et al.) calls useful."""
    reach = (r - 1) * dilation + 1
    pad = reach // 2
    out = (side + 2 * pad - reach) // stride + 1
    attrs = {
        "strides": (stride,) * 2, "pads": (pad,) * 4, "dilations": (dilation,) * 2, "group": 1,
    }  # fmt: skip
    x, w, y = (n, c, side, side), (k, c, r, r), (n, k, out, out)
    b = Builder(kind)
    shapes, shape = ((y, w), x) if kind == "conv_dx" else ((x, y), w)
    operands = [b.input(f"in{i}", s) for i, s in enumerate(shapes)]
    graph: Graph = b.build([b.emit(kind, operands, **attrs, shape=shape)])
    return graph, n * c * k * r * r * out * out


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("kind", ["conv_dx", "conv_dw"])
def test_no_inserted_zero_is_multiplied(kind: str, name: str):
    """dW takes a multiplication for each pair; dX leaves out those that only meet padding."""
    graph, useful = layer(kind, *LAYERS[name])
    context = make_context(graph, WAVECORE, "float32")
    program = generate(context, map_graph(context))
    macs = simulate(program, WAVECORE).macs
    assert macs == useful if kind == "conv_dw" else macs <= useful
    execute(graph, program, WAVECORE)
