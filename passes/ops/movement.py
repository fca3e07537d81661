"""Ops that only move data: reshape, transpose, slice, concat and expand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ccnn.passes.graph import Builder, Node, Tensor
from ccnn.passes.ops.base import Op, Result
from ccnn.passes.ops.common import (
    axis_of,
    broadcast_axes,
    emit_reduce,
    fail,
    given,
    ints,
    reshaped,
    take,
)


class Reshape(Op):
    """The same elements in row-major order under another shape; free of traffic."""

    name = "reshape"
    primitive = True

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Result]:
        x, shape = given(take(node, inputs, 1))[0], ints(node, "shape", low=0)
        if int(np.prod(shape, dtype=object)) != x.size:
            fail(node, f"shape {shape} does not hold the {x.size} elements of {x.shape}")
        return [(shape, x.dtype)]

    def reference(self, node: Node, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        return [np.reshape(np.asarray(inputs[0]), node.attr("shape"))]

    def gradient(
        self, b: Builder, node: Node, douts: Sequence[str | None], wanted: Sequence[bool]
    ) -> list[str | None]:
        return [douts[0] and reshaped(b, douts[0], b.shape(node.inputs[0]))]


class Transpose(Op):
    """Axes reordered: result axis k is input axis perm[k]."""

    name = "transpose"
    primitive = True

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Result]:
        x, perm = given(take(node, inputs, 1))[0], ints(node, "perm")
        if sorted(perm) != list(range(len(x.shape))):
            fail(node, f"perm {perm} is no order of the {len(x.shape)} axes")
        return [(tuple(x.shape[p] for p in perm), x.dtype)]

    def reference(self, node: Node, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        return [np.transpose(np.asarray(inputs[0]), node.attr("perm"))]

    def gradient(
        self, b: Builder, node: Node, douts: Sequence[str | None], wanted: Sequence[bool]
    ) -> list[str | None]:
        inverse = tuple(int(k) for k in np.argsort(node.attr("perm")))
        return [douts[0] and b.emit("transpose", [douts[0]], perm=inverse)]


class Slice(Op):
    """x[starts + steps * i]; a negative step walks backwards."""

    name = "slice"
    primitive = True

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Result]:
        x = given(take(node, inputs, 1))[0]
        rank = len(x.shape)
        starts, sizes = ints(node, "starts", rank), ints(node, "sizes", rank, 0)
        for k, step in enumerate(ints(node, "steps", rank)):
            last = starts[k] + step * (sizes[k] - 1)
            if not step or (
                sizes[k] and not (0 <= min(starts[k], last) <= max(starts[k], last) < x.shape[k])
            ):
                fail(
                    node,
                    f"axis {k} of size {x.shape[k]} has no {sizes[k]} elements "
                    f"from {starts[k]} in steps of {step}",
                )
        return [(sizes, x.dtype)]

    def reference(self, node: Node, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        x = np.asarray(inputs[0])
        for axis, (start, step, size) in enumerate(
            zip(node.attr("starts"), node.attr("steps"), node.attr("sizes"), strict=True)
        ):
            x = x.take(start + step * np.arange(size), axis=axis)
        return [x]

    def gradient(
        self, b: Builder, node: Node, douts: Sequence[str | None], wanted: Sequence[bool]
    ) -> list[str | None]:
        if douts[0] is None:
            return [None]
        return [
            slice_gradient(
                b, douts[0], b.shape(node.inputs[0]), node.attr("starts"), node.attr("steps")
            )
        ]


def slice_gradient(
    b: Builder, dy: str, shape: Sequence[int], starts: Sequence[int], steps: Sequence[int]
) -> str:
    """dy put back where a slice of a tensor of `shape` took it from, zeros elsewhere."""
    sizes = b.shape(dy)
    if any(s < 0 for s in steps):
        dy = b.emit(
            "slice",
            [dy],
            sizes=sizes,
            starts=tuple(n - 1 if s < 0 else 0 for n, s in zip(sizes, steps, strict=True)),
            steps=tuple(-1 if s < 0 else 1 for s in steps),
        )
    before, after, interior = [], [], []
    for dim, size, start, step in zip(shape, sizes, starts, steps, strict=True):
        last = start + step * (size - 1)
        before.append(min(start, last) if size else 0)
        after.append(dim - 1 - max(start, last) if size else dim)
        interior.append(abs(step) - 1 if size > 1 else 0)
    if not any((*before, *after, *interior)):
        return dy
    return b.emit(
        "pad", [dy], before=tuple(before), after=tuple(after), interior=tuple(interior), value=0.0
    )


def span(b: Builder, x: str, axis: int, start: int, step: int, size: int) -> str:
    """`size` elements of x along an axis; '' for none, x itself for all."""
    shape = b.shape(x)
    if not size:
        return ""
    if size == shape[axis] and step == 1:
        return x
    return b.emit(
        "slice",
        [x],
        starts=tuple(start if k == axis else 0 for k in range(len(shape))),
        steps=tuple(step if k == axis else 1 for k in range(len(shape))),
        sizes=tuple(size if k == axis else d for k, d in enumerate(shape)),
    )


class Concat(Op):
    """Tensors put one after the other along an axis."""

    name = "concat"
    primitive = True

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Result]:
        tensors = given(inputs)
        if len(tensors) != len(inputs) or not tensors:
            fail(node, "takes at least one input and none may be left out")
        first = tensors[0]
        axis = axis_of(node, len(first.shape))
        for t in tensors[1:]:
            if t.dtype != first.dtype or _without(t.shape, axis) != _without(first.shape, axis):
                fail(node, f"{t.shape} cannot stand beside {first.shape} along axis {axis}")
        total = sum(t.shape[axis] for t in tensors)
        return [((*first.shape[:axis], total, *first.shape[axis + 1 :]), first.dtype)]

    def reference(self, node: Node, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        return [np.concatenate([np.asarray(a) for a in inputs], axis=node.attr("axis"))]

    def gradient(
        self, b: Builder, node: Node, douts: Sequence[str | None], wanted: Sequence[bool]
    ) -> list[str | None]:
        grads: list[str | None] = [None] * len(node.inputs)
        axis, start = node.attr("axis"), 0
        for k, name in enumerate(node.inputs):
            size = b.shape(name)[axis]
            if douts[0] is not None and wanted[k]:
                grads[k] = span(b, douts[0], axis, start, 1, size) or None
            start += size
        return grads


def _without(shape: Sequence[int], axis: int) -> tuple[int, ...]:
    return (len(shape), *shape[:axis], *shape[axis + 1 :])


class Expand(Op):
    """x repeated to a larger shape, by numpy's broadcasting."""

    name = "expand"
    primitive = True

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Result]:
        x, shape = given(take(node, inputs, 1))[0], ints(node, "shape", low=0)
        try:
            fits = np.broadcast_shapes(x.shape, shape) == shape
        except ValueError:
            fits = False
        if not fits:
            fail(node, f"{x.shape} does not broadcast to {shape}")
        return [(shape, x.dtype)]

    def reference(self, node: Node, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        return [np.broadcast_to(np.asarray(inputs[0]), node.attr("shape"))]

    def gradient(
        self, b: Builder, node: Node, douts: Sequence[str | None], wanted: Sequence[bool]
    ) -> list[str | None]:
        dy, x = douts[0], b.tensors[node.inputs[0]]
        if dy is None:
            return [None]
        axes = broadcast_axes(x.shape, b.shape(dy))
        if axes:
            dy = emit_reduce(b, "sum", [dy], ["a"], axes, [x.dtype])[0]
        return [reshaped(b, dy, x.shape)]


MOVEMENT: tuple[Op, ...] = (Reshape(), Transpose(), Slice(), Concat(), Expand())
