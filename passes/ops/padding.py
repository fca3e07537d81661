"""Padding: elements put around, between or taken away."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ccnn.passes.graph import Builder, Node, Tensor
from ccnn.passes.ops.base import Op, Result
from ccnn.passes.ops.common import add_up, emit_reduce, fail, given, ints, take
from ccnn.passes.ops.movement import slice_gradient, span


class Pad(Op):
    """Elements put around (negative: taken away) and, with value zero, between neighbours.

    mode 'constant' is a primitive; 'reflect' and 'edge' stand for slices and concats.
    """

    name = "pad"
    primitive = True

    def is_primitive(self, node: Node) -> bool:
        return node.attr("mode", "constant") == "constant"

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Result]:
        x = given(take(node, inputs, 1))[0]
        rank, mode = len(x.shape), node.attr("mode", "constant")
        if mode not in ("constant", "reflect", "edge"):
            fail(node, f"mode {mode!r} is none of constant, reflect, edge")
        before, after, interior = (
            ints(node, "before", rank),
            ints(node, "after", rank),
            _interior(node, rank),
        )
        shape = []
        for k, dim in enumerate(x.shape):
            size = before[k] + after[k] + dim + max(dim - 1, 0) * interior[k]
            limit = {"constant": size, "reflect": dim - 1, "edge": size}[mode]
            if (
                size < 0
                or max(before[k], after[k]) > max(limit, 0)
                or (mode != "constant" and (min(before[k], after[k]) < 0 or interior[k]))
            ):
                fail(
                    node,
                    f"cannot pad axis {k} of size {dim} by {before[k]} and {after[k]} ({mode})",
                )
            shape.append(size)
        return [(tuple(shape), x.dtype)]

    def reference(self, node: Node, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        x = np.asarray(inputs[0])
        before, after, interior = node.attr("before"), node.attr("after"), _interior(node, x.ndim)
        if not self.is_primitive(node):
            around = list(zip(before, after, strict=True))
            if node.attr("mode") == "edge":
                return [np.pad(x, around, mode="edge")]
            return [np.pad(x, around, mode="reflect")]
        spread = np.zeros(
            [d + max(d - 1, 0) * i for d, i in zip(x.shape, interior, strict=True)], x.dtype
        )
        spread[tuple(slice(None, None, i + 1) for i in interior)] = x
        grown = np.pad(
            spread,
            [(max(p, 0), max(q, 0)) for p, q in zip(before, after, strict=True)],
            constant_values=node.attr("value", 0.0),
        )
        crop = tuple(
            slice(max(-p, 0), d - max(-q, 0))
            for p, q, d in zip(before, after, grown.shape, strict=True)
        )
        return [grown[crop]]

    def expand(self, b: Builder, node: Node) -> Sequence[str]:
        x = node.inputs[0]
        for axis in range(len(b.shape(x))):
            parts = [p for p in self._sides(b, node, x, axis) if p]
            x = b.emit("concat", parts, axis=axis) if len(parts) > 1 else x
        return [x]

    def _sides(self, b: Builder, node: Node, x: str, axis: int) -> list[str]:
        """What stands before, at and after x along one axis ('' where there is nothing)."""
        before, after = node.attr("before")[axis], node.attr("after")[axis]
        size = b.shape(x)[axis]
        if node.attr("mode") == "reflect":
            return [
                span(b, x, axis, before, -1, before),
                x,
                span(b, x, axis, size - 2, -1, after),
            ]
        return [
            _repeat(b, span(b, x, axis, 0, 1, min(before, 1)), axis, before),
            x,
            _repeat(b, span(b, x, axis, size - 1, 1, min(after, 1)), axis, after),
        ]

    def gradient(
        self, b: Builder, node: Node, douts: Sequence[str | None], wanted: Sequence[bool]
    ) -> list[str | None]:
        dy, shape = douts[0], b.shape(node.inputs[0])
        if dy is None:
            return [None]
        if self.is_primitive(node):
            return [_crop_gradient(b, node, dy, shape)]
        for axis in reversed(range(len(shape))):
            dy = self._fold_sides(b, node, dy, axis, shape[axis])
        return [dy]

    def _fold_sides(self, b: Builder, node: Node, dy: str, axis: int, size: int) -> str:
        """The gradient along one axis: the middle of dy plus what its sides give back."""
        before, after = node.attr("before")[axis], node.attr("after")[axis]
        if not before and not after:
            return dy
        terms = [span(b, dy, axis, before, 1, size)]
        shape = b.shape(terms[0])
        for start, count, edge in ((0, before, 0), (before + size, after, size - 1)):
            if not count:
                continue
            if node.attr("mode") == "reflect":
                side = span(b, dy, axis, start + count - 1, -1, count)
                first = 1 if not edge else size - 1 - count
            else:
                side = span(b, dy, axis, start, 1, count)
                side = emit_reduce(b, "sum", [side], ["a"], [axis], [b.tensors[dy].dtype])[0]
                first = edge
            starts = tuple(first if k == axis else 0 for k in range(len(shape)))
            terms.append(slice_gradient(b, side, shape, starts, (1,) * len(shape)))
        return add_up(b, terms, b.tensors[dy].dtype)


def _interior(node: Node, rank: int) -> tuple[int, ...]:
    return ints(node, "interior", rank, 0) if node.attr("interior") else (0,) * rank


def _repeat(b: Builder, x: str, axis: int, count: int) -> str:
    if count < 2:
        return x
    shape = tuple(count if k == axis else d for k, d in enumerate(b.shape(x)))
    return b.emit("expand", [x], shape=shape)


def _crop_gradient(b: Builder, node: Node, dy: str, shape: Sequence[int]) -> str | None:
    """dx[k] = dy[before + (interior + 1) k] where that lies inside dy, else 0."""
    before, interior = node.attr("before"), _interior(node, len(shape))
    starts, steps, sizes, first = [], [], [], []
    for k, dim in enumerate(shape):
        step = interior[k] + 1
        low = max(0, -(before[k] // step)) if before[k] < 0 else 0
        high = min(dim - 1, (b.shape(dy)[k] - 1 - before[k]) // step)
        if high < low:
            return None  # everything was cropped away
        starts.append(before[k] + step * low)
        steps.append(step)
        sizes.append(high - low + 1)
        first.append(low)
    if tuple(sizes) != b.shape(dy) or any(starts):
        dy = b.emit("slice", [dy], starts=tuple(starts), steps=tuple(steps), sizes=tuple(sizes))
    return slice_gradient(b, dy, shape, first, (1,) * len(shape))


PADDING: tuple[Op, ...] = (Pad(),)
