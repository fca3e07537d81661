"""Gathering of elements at constant positions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ccnn.passes.graph import Builder, Node, Tensor
from ccnn.passes.ops.base import Op, Result
from ccnn.passes.ops.common import add_up, axis_of, fail, given, ints, reshaped, take
from ccnn.passes.ops.movement import slice_gradient, span


class Gather(Op):
    """The elements at constant `indices` along an axis."""

    name = "gather"
    most_runs = 16
    """Beyond so many runs of even steps, a product with a 0-1 matrix takes the place of slices."""

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Result]:
        x = given(take(node, inputs, 1))[0]
        axis, indices = axis_of(node, len(x.shape)), ints(node, "indices", low=0)
        if not indices or max(indices) >= x.shape[axis]:
            fail(node, f"indices {indices} must lie in axis {axis} of size {x.shape[axis]}")
        return [((*x.shape[:axis], len(indices), *x.shape[axis + 1 :]), x.dtype)]

    def reference(self, node: Node, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        return [np.take(np.asarray(inputs[0]), node.attr("indices"), axis=node.attr("axis"))]

    def expand(self, b: Builder, node: Node) -> Sequence[str]:
        x, axis = node.inputs[0], node.attr("axis")
        runs = _runs(node.attr("indices"))
        if len(runs) > self.most_runs:
            return [self._select(b, node, x, transposed=False)]
        parts = [span(b, x, axis, *run) for run in runs]
        return [b.emit("concat", parts, axis=axis) if len(parts) > 1 else parts[0]]

    def gradient(
        self, b: Builder, node: Node, douts: Sequence[str | None], wanted: Sequence[bool]
    ) -> list[str | None]:
        dy, shape, axis = douts[0], b.shape(node.inputs[0]), node.attr("axis")
        if dy is None:
            return [None]
        runs = _runs(node.attr("indices"))
        if len(runs) > self.most_runs:
            return [self._select(b, node, dy, transposed=True)]
        terms, at = [], 0
        for start, step, size in runs:
            part = span(b, dy, axis, at, 1, size)
            starts = tuple(start if k == axis else 0 for k in range(len(shape)))
            steps = tuple(step if k == axis else 1 for k in range(len(shape)))
            terms.append(slice_gradient(b, part, shape, starts, steps))
            at += size
        return [add_up(b, terms, b.tensors[dy].dtype)]

    def _select(self, b: Builder, node: Node, x: str, transposed: bool) -> str:
        """x times the 0-1 matrix of the indices, along the axis."""
        axis, shape = node.attr("axis"), b.shape(x)
        indices, size = node.attr("indices"), b.shape(node.inputs[0])[axis]
        chosen = np.zeros((size, len(indices)), np.float32)
        chosen[list(indices), np.arange(len(indices))] = 1
        last = (*(k for k in range(len(shape)) if k != axis), axis)
        flat = b.emit("transpose", [x], perm=last)
        lead = b.shape(flat)[:-1]
        flat = reshaped(b, flat, (int(np.prod(lead, dtype=np.int64)), shape[axis]))
        matrix = b.constant(chosen, "chosen")
        product = b.emit("matmul", [flat, matrix], trans_a=False, trans_b=transposed)
        back = reshaped(b, product, (*lead, b.shape(product)[-1]))
        return b.emit("transpose", [back], perm=tuple(int(k) for k in np.argsort(last)))


def _runs(indices: Sequence[int]) -> list[tuple[int, int, int]]:
    """The indices as runs (start, step, size); a step of 0 is never one."""
    runs: list[tuple[int, int, int]] = []
    at = 0
    while at < len(indices):
        end, step = at + 1, 1
        if end < len(indices) and indices[end] != indices[at]:
            step = indices[end] - indices[at]
            while end < len(indices) and indices[end] - indices[end - 1] == step:
                end += 1
        runs.append((indices[at], step, end - at))
        at = end
    return runs


GATHER: tuple[Op, ...] = (Gather(),)
