"""Layer normalisation with its gradient, and local response normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ccnn.passes.graph import Builder, Node, Tensor
from ccnn.passes.ops.base import Op, Result
from ccnn.passes.ops.common import axis_of, emit_map, emit_reduce, fail, given, reshaped, take
from ccnn.passes.ops.normalization import check_vector, finish, istd_of, norm_grads


class LayerNorm(Op):
    """Normalises over the axes from `axis` on; also gives mean and istd."""

    name = "layer_norm"

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Result]:
        x, scale, bias = take(node, inputs, 1, 3)
        if x is None:
            fail(node, "needs x")
        axis = axis_of(node, len(x.shape))
        check_vector(node, scale, x.shape[axis:], "scale")
        check_vector(node, bias, x.shape[axis:], "bias")
        stats = (*x.shape[:axis], *[1] * (len(x.shape) - axis))
        return [(x.shape, "float"), (stats, "accum"), (stats, "accum")]

    def reference(self, node: Node, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        x, scale, bias = (*inputs, None, None)[:3]
        x = np.asarray(x)
        axes = tuple(range(node.attr("axis"), x.ndim))
        mean = x.mean(axes, keepdims=True)
        istd = istd_of(node, x.var(axes, keepdims=True))
        y = (x - mean) * istd * (1 if scale is None else scale)
        return [y if bias is None else y + bias, mean, istd]

    def expand(self, b: Builder, node: Node) -> Sequence[str]:
        x, scale, bias = (*node.inputs, "", "")[:3]
        rank, axis = len(b.shape(x)), node.attr("axis")
        mean, var = b.emit_all("moments", [x], axes=tuple(range(axis, rank)))
        istd = finish(b, node, var)
        operands, text = [x, mean, istd], "(a - b) * c"
        for sign, tensor in (("*", scale), ("+", bias)):
            if tensor:
                text += f" {sign} {'abcde'[len(operands)]}"
                operands.append(reshaped(b, tensor, (*[1] * axis, *b.shape(x)[axis:])))
        return [emit_map(b, operands, [text], ["float"])[0], mean, istd]

    def gradient(
        self, b: Builder, node: Node, douts: Sequence[str | None], wanted: Sequence[bool]
    ) -> list[str | None]:
        if douts[0] is None:
            return [None] * len(node.inputs)
        x, scale = (*node.inputs, "")[:2]
        inputs = [douts[0], x, scale, *node.outputs[1:3]]
        grads = b.emit_all("layer_norm_grad", inputs, axis=node.attr("axis"))
        return [g if n else None for g, n in zip(grads, node.inputs, strict=False)]


class LayerNormGrad(Op):
    """dx, dscale, dbias of layer_norm; scale may be absent."""

    name = "layer_norm_grad"

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Result]:
        if len(inputs) != 5 or inputs[1] is None:
            fail(node, "needs dy, x, scale or nothing, mean and istd")
        x = inputs[1]
        params = (x.shape[axis_of(node, len(x.shape)) :], "float")
        return [(x.shape, "float"), params, params]

    def reference(self, node: Node, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        dy, x, mean, istd = (np.asarray(inputs[k]) for k in (0, 1, 3, 4))
        scale = np.ones(1, x.dtype) if inputs[2] is None else inputs[2]
        axis = node.attr("axis")
        return norm_grads(dy, x, scale, mean, istd, tuple(range(axis, x.ndim)), tuple(range(axis)))

    def expand(self, b: Builder, node: Node) -> Sequence[str]:
        dy, x, scale, mean, istd = node.inputs
        shape, axis = b.shape(x), node.attr("axis")
        inner, outer = tuple(range(axis, len(shape))), tuple(range(axis))
        factors, gain = (
            ([], "") if not scale else ([reshaped(b, scale, (*[1] * axis, *shape[axis:]))], " * e")
        )
        sums = emit_reduce(
            b,
            "sum",
            [dy, x, mean, istd, *factors],
            [f"a{gain}", f"a * ((b - c) * d){gain}"],
            inner,
            ["accum", "accum"],
        )
        n = int(np.prod(shape[axis:], dtype=np.int64))
        s, t = ("f", "g") if factors else ("e", "f")
        dx = emit_map(
            b,
            [dy, x, mean, istd, *factors, *sums],
            [f"d * (a{gain} - {s} * {1 / n!r} - (b - c) * d * ({t} * {1 / n!r}))"],
            ["float"],
        )[0]
        small = emit_reduce(
            b, "sum", [dy, x, mean, istd], ["a * ((b - c) * d)", "a"], outer, ["float", "float"]
        )
        return [dx, *(reshaped(b, v, shape[axis:]) for v in small)]


class Lrn(Op):
    """y = x / s^beta, s = bias + alpha/size Σ x² over `size` channels; s is an extra result.

    (Krizhevsky et al. 2012, section 3.3.)
    """

    name = "lrn"

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Result]:
        x, size = given(take(node, inputs, 1))[0], node.attr("size")
        if len(x.shape) < 2 or type(size) is not int or size < 1:
            fail(node, f"needs x [N, C, …] and a positive size, got {x.shape} and {size!r}")
        return [(x.shape, "float"), (x.shape, "float")]

    def _window(self, node: Node, rank: int, turned: bool) -> dict[str, Any]:
        before, after = (node.attr("size") - 1) // 2, node.attr("size") // 2
        if turned:
            before, after = after, before
        ones, zeros = (1,) * rank, (0,) * rank
        return {
            "kernel": (1, node.attr("size"), *ones[2:]),
            "strides": ones,
            "dilations": ones,
            "before": (0, before, *zeros[2:]),
            "after": (0, after, *zeros[2:]),
        }

    def reference(self, node: Node, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        x, size = np.asarray(inputs[0]), node.attr("size")
        total = np.zeros_like(x)
        for c in range(x.shape[1]):
            near = x[:, max(0, c - (size - 1) // 2) : c + size // 2 + 1]
            total[:, c] = np.square(near).sum(1)
        s = node.attr("bias", 1.0) + node.attr("alpha", 1e-4) / size * total
        return [x / s ** node.attr("beta", 0.75), s]

    def expand(self, b: Builder, node: Node) -> Sequence[str]:
        x = node.inputs[0]
        square = emit_map(b, [x], ["a * a"], ["accum"])[0]  # float16 overflows from 256 on
        total = b.emit("window_sum", [square], **self._window(node, len(b.shape(x)), False))
        ratio = float(node.attr("alpha", 1e-4)) / node.attr("size")
        s = f"({float(node.attr('bias', 1.0))!r} + {ratio!r} * b)"
        beta = float(node.attr("beta", 0.75))
        return emit_map(b, [x, total], [f"a * pow({s}, {-beta!r})", s], ["float", "float"])

    def gradient(
        self, b: Builder, node: Node, douts: Sequence[str | None], wanted: Sequence[bool]
    ) -> list[str | None]:
        """dx = dy s^-beta - 2 alpha beta/size x Σ dy x s^(-beta-1) over the windows with x in."""
        if douts[0] is None:
            return [None]
        (x,), (dy, s) = node.inputs, (douts[0], node.outputs[1])
        beta = float(node.attr("beta", 0.75))
        ratio = 2 * beta * float(node.attr("alpha", 1e-4)) / node.attr("size")
        part = emit_map(b, [dy, x, s], [f"a * b * pow(c, {-beta - 1!r})"], ["float"])[0]
        total = b.emit("window_sum", [part], **self._window(node, len(b.shape(x)), True))
        return [
            emit_map(
                b, [dy, x, s, total], [f"a * pow(c, {-beta!r}) - {ratio!r} * b * d"], ["float"]
            )[0]
        ]


LAYER_NORM: tuple[Op, ...] = (LayerNorm(), LayerNormGrad(), Lrn())
