"""Convolution, its two gradients, and transposed convolution.

x [N, C, H, W], w [K, C/group, R, S], y [N, K, P, Q] with P = (H + pads - dilation (R - 1) - 1) /
stride + 1, rounded down, and Q likewise.
The references multiply matrices: im2col gives columns [C/group R S, P Q] for each group, so
y = w cols, dw = dy colsᵀ and dx = col2im(wᵀ dy).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ccnn.passes.graph import Builder, Node, Tensor
from ccnn.passes.ops.base import Op, Result
from ccnn.passes.ops.common import (
    channel_shape,
    emit_map,
    emit_reduce,
    fail,
    given,
    ints,
    reshaped,
    take,
    two,
)


@dataclass(frozen=True)
class Geometry:
    """The attributes every convolution has."""

    strides: tuple[int, int]
    pads: tuple[int, int, int, int]
    """top, left, bottom, right"""
    dilations: tuple[int, int]
    group: int

    def out(self, size: Sequence[int], kernel: Sequence[int]) -> tuple[int, int]:
        """P and Q for an image H x W and a kernel R x S; below 1 when nothing fits."""
        p, q = (
            (size[k] + self.pads[k] + self.pads[k + 2] - self.dilations[k] * (kernel[k] - 1) - 1)
            // self.strides[k]
            + 1
            for k in (0, 1)
        )
        return p, q

    @property
    def attrs(self) -> dict[str, Any]:
        """As attributes of a node."""
        return {
            "strides": self.strides,
            "pads": self.pads,
            "dilations": self.dilations,
            "group": self.group,
        }


def geometry(node: Node) -> Geometry:
    """The geometry of a node; raises GraphError when an attribute is missing or out of range."""
    group = node.attr("group", 1)
    if type(group) is not int or group < 1:
        fail(node, f"attribute 'group' must be a positive integer, it is {group!r}")
    return Geometry(
        ints(node, "strides", 2, 1), ints(node, "pads", 4, 0), ints(node, "dilations", 2, 1), group
    )


def _check(node: Node, x: Sequence[int], w: Sequence[int], g: Geometry) -> tuple[int, int]:
    """P and Q of a convolution of shapes x and w; raises GraphError when they do not fit."""
    if len(x) != 4 or len(w) != 4:
        fail(node, f"needs x [N, C, H, W] and w [K, C/group, R, S], got {tuple(x)} and {tuple(w)}")
    if x[1] != w[1] * g.group or w[0] % g.group:
        fail(
            node,
            f"x has {x[1]} channels, but w {tuple(w)} with group {g.group} takes "
            f"{w[1] * g.group} and its {w[0]} filters must divide into the groups",
        )
    p, q = g.out(x[2:], w[2:])
    if p < 1 or q < 1:
        fail(
            node, f"a kernel {w[2]}x{w[3]} (dilations {g.dilations}) does not fit the padded image"
        )
    return p, q


def _shape_attr(node: Node) -> tuple[int, ...]:
    return ints(node, "shape", 4, 0)


class Conv(Op):
    """y = x * w (+ bias)."""

    name = "conv"
    primitive = True

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Result]:
        (x, w), bias = two(node, inputs)
        p, q = _check(node, x.shape, w.shape, geometry(node))
        k = w.shape[0]
        if bias is not None and bias.shape != (k,):
            fail(node, f"the bias has shape {bias.shape}, it should be ({k},)")
        return [((x.shape[0], k, p, q), "float")]

    def reference(self, node: Node, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        x, w = np.asarray(inputs[0]), np.asarray(inputs[1])
        y = _convolve(x, w, geometry(node))
        if len(inputs) > 2 and inputs[2] is not None:
            y = y + inputs[2].reshape(1, -1, 1, 1)
        return [y]

    def gradient(
        self, b: Builder, node: Node, douts: Sequence[str | None], wanted: Sequence[bool]
    ) -> list[str | None]:
        dy, (x, w) = douts[0], node.inputs[:2]
        grads: list[str | None] = [None] * len(node.inputs)
        if dy is None:
            return grads
        attrs = geometry(node).attrs
        if len(wanted) > 2 and wanted[2]:
            grads[2] = bias_gradient(b, dy, 1, b.shape(node.inputs[2]))
        if wanted[1]:
            grads[1] = b.emit("conv_dw", [x, dy], shape=b.shape(w), **attrs)
        if wanted[0]:
            grads[0] = b.emit("conv_dx", [dy, w], shape=b.shape(x), **attrs)
        return grads

    def macs(self, node: Node, inputs: Sequence[Tensor | None], outputs: Sequence[Tensor]) -> int:
        return outputs[0].size * _taps(inputs[1])


def _taps(w: Tensor | None) -> int:
    return w.size // w.shape[0] if w is not None and w.size else 0


def bias_gradient(b: Builder, dy: str, axis: int, shape: Sequence[int]) -> str:
    """The sum of dy over all axes but one, as a vector."""
    axes = [k for k in range(len(b.shape(dy))) if k != axis]
    return reshaped(b, emit_reduce(b, "sum", [dy], ["a"], axes, ["float"])[0], shape)


class ConvDx(Op):
    """dx of a convolution from dy and w; `shape` is that of x."""

    name = "conv_dx"
    primitive = True

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Result]:
        dy, w = given(take(node, inputs, 2))
        shape, g = _shape_attr(node), geometry(node)
        p, q = _check(node, shape, w.shape, g)
        expected = (shape[0], w.shape[0], p, q)
        if dy.shape != expected:
            fail(node, f"dy has shape {dy.shape}, x {shape} makes it {expected}")
        return [(shape, "float")]

    def reference(self, node: Node, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        dy, w = np.asarray(inputs[0]), np.asarray(inputs[1])
        g, shape, (k, cg, r, s) = geometry(node), node.attr("shape"), w.shape
        top, left, bottom, right = g.pads
        padded = np.zeros((*shape[:2], shape[2] + top + bottom, shape[3] + left + right), dy.dtype)
        stacked = w.reshape(g.group, k // g.group, cg * r * s).transpose(0, 2, 1)
        p, q = dy.shape[2:]
        for n in range(shape[0]):
            cols = np.matmul(stacked, dy[n].reshape(g.group, k // g.group, p * q))
            cols = cols.reshape(shape[1], r, s, p, q)
            for i, j, window in _taps_of(g, (r, s), (p, q)):
                padded[n][(slice(None), *window)] += cols[:, i, j]
        return [padded[:, :, top : top + shape[2], left : left + shape[3]]]

    def macs(self, node: Node, inputs: Sequence[Tensor | None], outputs: Sequence[Tensor]) -> int:
        return (inputs[0].size if inputs[0] else 0) * _taps(inputs[1])


class ConvDw(Op):
    """dw of a convolution from x and dy; `shape` is that of w."""

    name = "conv_dw"
    primitive = True

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Result]:
        x, dy = given(take(node, inputs, 2))
        shape = _shape_attr(node)
        p, q = _check(node, x.shape, shape, geometry(node))
        expected = (x.shape[0], shape[0], p, q)
        if dy.shape != expected:
            fail(node, f"dy has shape {dy.shape}, w {shape} makes it {expected}")
        return [(shape, "float")]

    def reference(self, node: Node, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        x, dy = np.asarray(inputs[0]), np.asarray(inputs[1])
        g, shape = geometry(node), node.attr("shape")
        dw = np.zeros((g.group, shape[0] // g.group, int(np.prod(shape[1:]))), x.dtype)
        for n, cols in enumerate(_columns(x, shape[2:], dy.shape[2:], g)):
            rows = dy[n].reshape(g.group, shape[0] // g.group, -1)
            dw += np.matmul(rows, cols.transpose(0, 2, 1))
        return [dw.reshape(shape)]

    def macs(self, node: Node, inputs: Sequence[Tensor | None], outputs: Sequence[Tensor]) -> int:
        return (inputs[1].size if inputs[1] else 0) * _taps(outputs[0])


class ConvTranspose(Op):
    """Transposed convolution: conv_dx of the convolution whose weight it shares, plus bias.

    Output padding of a whole stride or more is the same as zero rows after x.
    """

    name = "conv_transpose"

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Result]:
        (x, w), bias = two(node, inputs)
        g, extra = geometry(node), ints(node, "output_padding", 2, 0)
        if len(x.shape) != 4 or len(w.shape) != 4:
            fail(node, "needs x [N, C, H, W] and w [C, K/group, R, S]")
        if x.shape[1] != w.shape[0] or w.shape[0] % g.group:
            fail(
                node, f"x has {x.shape[1]} channels, w {w.shape} with group {g.group} does not fit"
            )
        size = [
            (x.shape[2 + k] - 1) * g.strides[k]
            + g.dilations[k] * (w.shape[2 + k] - 1)
            + 1
            + extra[k]
            - g.pads[k]
            - g.pads[k + 2]
            for k in (0, 1)
        ]
        if min(size) < 1:
            fail(node, f"its pads {g.pads} leave nothing of the result ({size[0]}x{size[1]})")
        channels = w.shape[1] * g.group
        if bias is not None and bias.shape != (channels,):
            fail(node, f"the bias has shape {bias.shape}, it should be ({channels},)")
        return [((x.shape[0], channels, *size), "float")]

    def reference(self, node: Node, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        x, w = np.asarray(inputs[0]), np.asarray(inputs[1])
        g, extra = geometry(node), node.attr("output_padding")
        (n, c, h, wide), (r, s) = x.shape, w.shape[2:]
        channels = w.shape[1] * g.group
        full = [
            (d - 1) * g.strides[k] + g.dilations[k] * ((r, s)[k] - 1) + 1 + extra[k]
            for k, d in enumerate((h, wide))
        ]
        y = np.zeros((n, g.group, w.shape[1], *full), x.dtype)
        xg = x.reshape(n, g.group, c // g.group, h, wide)
        wg = w.reshape(g.group, c // g.group, w.shape[1], r, s)
        for i, j, window in _taps_of(g, (r, s), (h, wide)):
            y[(..., *window)] += np.einsum("ngchw,gck->ngkhw", xg, wg[..., i, j])
        y = y.reshape(n, channels, *full)
        top, left, bottom, right = g.pads
        y = y[:, :, top : full[0] - bottom, left : full[1] - right]
        if len(inputs) > 2 and inputs[2] is not None:
            y = y + inputs[2].reshape(1, -1, 1, 1)
        return [y]

    def _lengthened(self, b: Builder, node: Node, x: str) -> str:
        """x with the zero rows and columns that stand for whole strides of output padding."""
        rows = [
            e // s for e, s in zip(node.attr("output_padding"), node.attr("strides"), strict=True)
        ]
        if not any(rows):
            return x
        return b.emit(
            "pad", [x], before=(0,) * 4, after=(0, 0, *rows), interior=(0,) * 4, value=0.0
        )

    def expand(self, b: Builder, node: Node) -> Sequence[str]:
        x, w = node.inputs[:2]
        shape = b.shape(node.outputs[0])
        y = b.emit(
            "conv_dx", [self._lengthened(b, node, x), w], shape=shape, **geometry(node).attrs
        )
        if len(node.inputs) > 2 and node.inputs[2]:
            bias = reshaped(b, node.inputs[2], channel_shape(shape[1], 4))
            y = emit_map(b, [y, bias], ["a + b"], ["float"])[0]
        return [y]

    def gradient(
        self, b: Builder, node: Node, douts: Sequence[str | None], wanted: Sequence[bool]
    ) -> list[str | None]:
        dy, (x, w) = douts[0], node.inputs[:2]
        grads: list[str | None] = [None] * len(node.inputs)
        if dy is None:
            return grads
        attrs = geometry(node).attrs
        if len(wanted) > 2 and wanted[2]:
            grads[2] = bias_gradient(b, dy, 1, b.shape(node.inputs[2]))
        if wanted[1]:
            long = self._lengthened(b, node, x)
            grads[1] = b.emit("conv_dw", [dy, long], shape=b.shape(w), **attrs)
        if wanted[0]:
            dx = b.emit("conv", [dy, w], **attrs)
            if b.shape(dx) != b.shape(x):
                dx = b.emit("slice", [dx], starts=(0,) * 4, steps=(1,) * 4, sizes=b.shape(x))
            grads[0] = dx
        return grads

    def macs(self, node: Node, inputs: Sequence[Tensor | None], outputs: Sequence[Tensor]) -> int:
        return (inputs[0].size if inputs[0] else 0) * _taps(inputs[1])


def _convolve(x: np.ndarray, w: np.ndarray, g: Geometry) -> np.ndarray:
    k, _, r, s = w.shape
    p, q = g.out(x.shape[2:], (r, s))
    y = np.empty((x.shape[0], k, p, q), x.dtype)
    stacked = w.reshape(g.group, k // g.group, -1)
    for n, cols in enumerate(_columns(x, (r, s), (p, q), g)):
        y[n] = np.matmul(stacked, cols).reshape(k, p, q)
    return y


def _columns(
    x: np.ndarray, kernel: Sequence[int], out: Sequence[int], g: Geometry
) -> Iterator[np.ndarray]:
    """For each image the im2col matrix [group, C/group R S, P Q]."""
    (n, c), (r, s), (p, q) = x.shape[:2], kernel, out
    top, left, bottom, right = g.pads
    for image in range(n):
        padded = np.pad(x[image], ((0, 0), (top, bottom), (left, right)))
        cols = np.empty((c, r, s, p, q), x.dtype)
        for i, j, window in _taps_of(g, kernel, out):
            cols[:, i, j] = padded[(slice(None), *window)]
        yield cols.reshape(g.group, (c // g.group) * r * s, p * q)


def _taps_of(
    g: Geometry, kernel: Sequence[int], out: Sequence[int]
) -> Iterator[tuple[int, int, tuple[slice, slice]]]:
    """Each kernel position and the part of the padded image it meets."""
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            top, left = i * g.dilations[0], j * g.dilations[1]
            yield (
                i,
                j,
                (
                    slice(top, top + (out[0] - 1) * g.strides[0] + 1, g.strides[0]),
                    slice(left, left + (out[1] - 1) * g.strides[1] + 1, g.strides[1]),
                ),
            )


CONVOLUTION: tuple[Op, ...] = (Conv(), ConvDx(), ConvDw(), ConvTranspose())
