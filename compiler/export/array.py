"""What the systolic array computes: convolutions, their gradients and matrix products."""

from __future__ import annotations

from typing import Any

from ccnn.compiler.export.writer import Writer
from ccnn.passes.graph import Node
from ccnn.passes.ops.convolution import Geometry, geometry


def _inputs(w: Writer, node: Node) -> list[str]:
    """The inputs in the type of the result; an absent bias is left away."""
    kind = w.type_of(w.graph[node.outputs[0]])
    return [w.cast(w.named(i), kind) for i in node.inputs if i]


def _attrs(g: Geometry) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in g.attrs.items()}


def write_conv(w: Writer, node: Node) -> list[str]:
    """Conv, whose attributes mean the same."""
    return [w.emit("Conv", _inputs(w, node), **_attrs(geometry(node)))]


def write_conv_dx(w: Writer, node: Node) -> list[str]:
    """ConvTranspose of dy; its output padding is what the division by the stride left over."""
    g, size, kernel = geometry(node), node.attr("shape")[2:], w.shape(node.inputs[1])[2:]
    out = w.shape(node.inputs[0])[2:]
    extra = [
        size[k] + g.pads[k] + g.pads[k + 2]
        - ((out[k] - 1) * g.strides[k] + g.dilations[k] * (kernel[k] - 1) + 1)
        for k in (0, 1)
    ]  # fmt: skip
    return [w.emit("ConvTranspose", _inputs(w, node), output_padding=extra, **_attrs(g))]


def write_conv_dw(w: Writer, node: Node) -> list[str]:
    """A Conv over the batch: dw[k, c] = Σ over n, p, q of dy[n, k, p, q] x[n, c, stride p + …].

    x becomes [C/group, group N, H, W] and dy the kernel [K, N, P, Q], with strides and dilations
    changing places.  Rows of x that no window reached give results past R and S: cut off.
    """
    g, shape = geometry(node), node.attr("shape")
    x, dy = _inputs(w, node)
    (n, c, h, wide), (cg, r, s) = w.shape(node.inputs[0]), shape[1:]
    if g.group > 1:
        x = w.reshape(x, (n, g.group, cg, h, wide))
        x = w.reshape(w.transpose(x, (2, 1, 0, 3, 4)), (cg, c // cg * n, h, wide))
    else:
        x = w.transpose(x, (1, 0, 2, 3))
    dw = w.emit(
        "Conv",
        [x, w.transpose(dy, (1, 0, 2, 3))],
        strides=list(g.dilations),
        dilations=list(g.strides),
        pads=list(g.pads),
        group=g.group,
    )
    cut = [w.ints((0, 0)), w.ints((r, s)), w.ints((2, 3))]
    return [w.transpose(w.emit("Slice", [dw, *cut]), (1, 0, 2, 3))]


def write_matmul(w: Writer, node: Node) -> list[str]:
    """Gemm for plain matrices, else MatMul with what it lacks around it."""
    inputs = _inputs(w, node)
    flip = [bool(node.attr("trans_a", False)), bool(node.attr("trans_b", False))]
    ranks = [len(w.shape(i)) for i in node.inputs[:2]]
    if ranks == [2, 2]:
        return [w.emit("Gemm", inputs, transA=int(flip[0]), transB=int(flip[1]))]
    turned = [
        w.transpose(name, (*range(rank - 2), rank - 1, rank - 2)) if turn else name
        for name, turn, rank in zip(inputs, flip, ranks, strict=False)
    ]
    y = w.emit("MatMul", turned)
    return [w.emit("Add", [y, inputs[2]]) if len(inputs) > 2 else y]
