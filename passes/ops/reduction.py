"""Reductions over axes, softmax and log-softmax."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from ccnn.passes.graph import Builder, Node, Tensor
from ccnn.passes.ops.base import Op, Result
from ccnn.passes.ops.common import axes_of, axis_of, emit_map, emit_reduce, given, reshaped, take


class Reduction(Op):
    """Base of the reductions: `kind` over `term`, then `finish` of the total.

    In the formulas `a` is an element (in `finish` the total) and `{n}` the number of elements
    reduced; in `slope` b is the result and c its gradient, and `a` is not read when
    `needs_input` is False.
    """

    kind: ClassVar[str] = "sum"
    term: ClassVar[str] = "a"
    finish: ClassVar[str] = "a"
    slope: ClassVar[str] = "c"
    needs_input: ClassVar[bool] = True
    plain: ClassVar[Callable[..., Any]]

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Result]:
        x = given(take(node, inputs, 1))[0]
        axes = axes_of(node, len(x.shape))
        kept = tuple(1 if k in axes else d for k, d in enumerate(x.shape))
        if not node.attr("keepdims", True):
            kept = tuple(d for k, d in enumerate(x.shape) if k not in axes)
        return [(kept, x.dtype)]

    def reference(self, node: Node, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        return [
            type(self).plain(
                inputs[0], axis=node.attr("axes"), keepdims=bool(node.attr("keepdims", True))
            )
        ]

    def expand(self, b: Builder, node: Node) -> Sequence[str]:
        x, n = b.tensors[node.inputs[0]], repr(1 / max(self.count(b, node), 1))
        partial = "accum" if self.finish != "a" else x.dtype
        total = emit_reduce(
            b, self.kind, [x.name], [self.term.format(n=n)], node.attr("axes"), [partial]
        )[0]
        if self.finish != "a":
            total = emit_map(b, [total], [self.finish], [x.dtype])[0]
        return [reshaped(b, total, b.shape(node.outputs[0]))]

    def count(self, b: Builder, node: Node) -> int:
        """How many elements go into one."""
        shape = b.shape(node.inputs[0])
        return int(np.prod([shape[k] for k in node.attr("axes")], dtype=np.int64))

    def kept_shape(self, b: Builder, node: Node) -> tuple[int, ...]:
        """The shape of the result with the reduced axes as 1."""
        shape = b.shape(node.inputs[0])
        return tuple(1 if k in node.attr("axes") else d for k, d in enumerate(shape))

    def gradient(
        self, b: Builder, node: Node, douts: Sequence[str | None], wanted: Sequence[bool]
    ) -> list[str | None]:
        if douts[0] is None:
            return [None]
        x, kept = b.tensors[node.inputs[0]], self.kept_shape(b, node)
        dy = reshaped(b, douts[0], kept)
        slope = self.slope.format(n=repr(1 / max(self.count(b, node), 1)))
        if self.needs_input:
            y = reshaped(b, node.outputs[0], kept)
            return [emit_map(b, [x.name, y, dy], [slope], [x.dtype])[0]]
        if slope != "c":
            dy = emit_map(b, [dy], [slope.replace("c", "a")], [x.dtype])[0]
        return [b.emit("expand", [dy], shape=x.shape) if kept != x.shape else dy]


class ReduceSum(Reduction):
    """The sum."""

    name = "reduce_sum"
    needs_input = False
    plain = staticmethod(np.sum)


class ReduceMean(Reduction):
    """The mean."""

    name = "reduce_mean"
    term = "a * {n}"
    slope = "c * {n}"
    needs_input = False
    plain = staticmethod(np.mean)


class ReduceSumsq(Reduction):
    """The sum of squares."""

    name = "reduce_sumsq"
    term = "a * a"
    slope = "2 * a * c"
    plain = staticmethod(lambda x, axis, keepdims: np.square(x).sum(axis=axis, keepdims=keepdims))


class ReduceL1(Reduction):
    """The sum of magnitudes."""

    name = "reduce_l1"
    term = "abs(a)"
    slope = "c * sign(a)"
    plain = staticmethod(lambda x, axis, keepdims: np.abs(x).sum(axis=axis, keepdims=keepdims))


class ReduceL2(Reduction):
    """The root of the sum of squares; its gradient is 0 where it is 0."""

    name = "reduce_l2"
    term = "a * a"
    finish = "sqrt(a)"
    slope = "where(b == 0, 0, c * a / b)"
    plain = staticmethod(
        lambda x, axis, keepdims: np.sqrt(np.square(x).sum(axis=axis, keepdims=keepdims))
    )


class _Extreme(Reduction):
    def gradient(
        self, b: Builder, node: Node, douts: Sequence[str | None], wanted: Sequence[bool]
    ) -> list[str | None]:
        """Shared evenly between the elements that equal the result."""
        if douts[0] is None:
            return [None]
        x, kept = b.tensors[node.inputs[0]], self.kept_shape(b, node)
        y, dy = reshaped(b, node.outputs[0], kept), reshaped(b, douts[0], kept)
        ties = emit_reduce(b, "sum", [x.name, y], ["a == b"], node.attr("axes"), ["accum"])[0]
        return [emit_map(b, [x.name, y, dy, ties], ["where(a == b, c / d, 0)"], [x.dtype])[0]]


class ReduceMax(_Extreme):
    """The largest element."""

    name = "reduce_max"
    kind = "max"
    plain = staticmethod(np.max)


class ReduceMin(_Extreme):
    """The smallest element."""

    name = "reduce_min"
    kind = "min"
    plain = staticmethod(np.min)


class Softmax(Op):
    """e^x over its sum along one axis, the maximum taken out first."""

    name = "softmax"

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Result]:
        x = given(take(node, inputs, 1))[0]
        axis_of(node, len(x.shape))
        return [(x.shape, x.dtype)]

    def reference(self, node: Node, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        x, axis = np.asarray(inputs[0]), node.attr("axis")
        grown = np.exp(x - x.max(axis=axis, keepdims=True))
        return [grown / grown.sum(axis=axis, keepdims=True)]

    def expand(self, b: Builder, node: Node) -> Sequence[str]:
        x, dtype = node.inputs[0], b.tensors[node.outputs[0]].dtype
        top, total = max_and_sum(b, x, node.attr("axis"))
        return emit_map(b, [x, top, total], ["exp(a - b) / c"], [dtype])

    def gradient(
        self, b: Builder, node: Node, douts: Sequence[str | None], wanted: Sequence[bool]
    ) -> list[str | None]:
        """dx = y (dy - sum(dy y))."""
        if douts[0] is None:
            return [None]
        dy, y, axes = douts[0], node.outputs[0], [node.attr("axis")]
        dot = emit_reduce(b, "sum", [dy, y], ["a * b"], axes, ["accum"])[0]
        dtype = b.tensors[node.inputs[0]].dtype
        return [emit_map(b, [dy, y, dot], ["b * (a - c)"], [dtype])[0]]


def max_and_sum(b: Builder, x: str, axis: int) -> tuple[str, str]:
    """The maximum along an axis and the sum of e^(x - maximum)."""
    top = emit_reduce(b, "max", [x], ["a"], [axis], ["accum"])[0]
    return top, emit_reduce(b, "sum", [x, top], ["exp(a - b)"], [axis], ["accum"])[0]


class LogSoftmax(Softmax):
    """The logarithm of softmax."""

    name = "log_softmax"

    def reference(self, node: Node, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        x, axis = np.asarray(inputs[0]), node.attr("axis")
        low = x - x.max(axis=axis, keepdims=True)
        return [low - np.log(np.exp(low).sum(axis=axis, keepdims=True))]

    def expand(self, b: Builder, node: Node) -> Sequence[str]:
        x, dtype = node.inputs[0], b.tensors[node.outputs[0]].dtype
        top, total = max_and_sum(b, x, node.attr("axis"))
        shift = emit_map(b, [top, total], ["a + log(b)"], ["accum"])[0]
        return emit_map(b, [x, shift], ["a - b"], [dtype])

    def gradient(
        self, b: Builder, node: Node, douts: Sequence[str | None], wanted: Sequence[bool]
    ) -> list[str | None]:
        """dx = dy - e^y sum(dy)."""
        if douts[0] is None:
            return [None]
        dy, axes = douts[0], [node.attr("axis")]
        total = emit_reduce(b, "sum", [dy], ["a"], axes, ["accum"])[0]
        dtype = b.tensors[node.inputs[0]].dtype
        return [emit_map(b, [dy, node.outputs[0], total], ["a - exp(b) * c"], [dtype])[0]]


REDUCTION: tuple[Op, ...] = (
    ReduceSum(),
    ReduceMean(),
    ReduceSumsq(),
    ReduceL1(),
    ReduceL2(),
    ReduceMax(),
    ReduceMin(),
    Softmax(),
    LogSoftmax(),
)
