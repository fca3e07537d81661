"""Matrix multiplication: a [..., M, K] times b [..., K, N], plus bias [N]."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ccnn.passes.graph import Builder, Node, Tensor
from ccnn.passes.ops.base import Op, Result
from ccnn.passes.ops.common import fail, reshaped, two
from ccnn.passes.ops.convolution import bias_gradient


def _dims(node: Node, a: Sequence[int], b: Sequence[int]) -> tuple[int, int, int]:
    """M, N and K; raises GraphError when the shapes do not fit."""
    if len(a) < 2 or len(b) < 2:
        fail(node, f"needs matrices, got shapes {tuple(a)} and {tuple(b)}")
    m, k = (a[-1], a[-2]) if node.attr("trans_a", False) else (a[-2], a[-1])
    k2, n = (b[-1], b[-2]) if node.attr("trans_b", False) else (b[-2], b[-1])
    if k != k2:
        fail(node, f"a {tuple(a)} has K = {k}, b {tuple(b)} has K = {k2}")
    if len(b) > 2 and tuple(a[:-2]) != tuple(b[:-2]):
        fail(
            node,
            f"the batch dims of {tuple(a)} and {tuple(b)} differ: expand one of them, "
            "or give b as a plain matrix",
        )
    return m, n, k


class MatMul(Op):
    """The batch dims of a and b are equal, or b is a plain matrix used for every batch."""

    name = "matmul"
    primitive = True

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Result]:
        (a, b), bias = two(node, inputs)
        m, n, _ = _dims(node, a.shape, b.shape)
        if bias is not None and bias.shape != (n,):
            fail(node, f"the bias has shape {bias.shape}, it should be ({n},)")
        return [((*a.shape[:-2], m, n), "float")]

    def reference(self, node: Node, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        a, b = np.asarray(inputs[0]), np.asarray(inputs[1])
        a = a.swapaxes(-1, -2) if node.attr("trans_a", False) else a
        b = b.swapaxes(-1, -2) if node.attr("trans_b", False) else b
        y = np.matmul(a, b)
        return [y + inputs[2] if len(inputs) > 2 and inputs[2] is not None else y]

    def gradient(
        self, b: Builder, node: Node, douts: Sequence[str | None], wanted: Sequence[bool]
    ) -> list[str | None]:
        dy = douts[0]
        grads: list[str | None] = [None] * len(node.inputs)
        if dy is None:
            return grads
        if len(wanted) > 2 and wanted[2]:
            rank = len(b.shape(dy))
            grads[2] = bias_gradient(b, dy, rank - 1, b.shape(node.inputs[2]))
        if wanted[1]:
            grads[1] = self._right(b, node, dy)
        if wanted[0]:
            grads[0] = self._left(b, node, dy)
        return grads

    def _left(self, b: Builder, node: Node, dy: str) -> str:
        """da = dy op(b)ᵀ, turned over when a was stored transposed."""
        a, right = node.inputs[:2]
        trans_a, trans_b = node.attr("trans_a", False), node.attr("trans_b", False)
        if not trans_a:
            return b.emit("matmul", [dy, right], trans_a=False, trans_b=not trans_b)
        if len(b.shape(right)) == len(b.shape(dy)):
            return b.emit("matmul", [right, dy], trans_a=trans_b, trans_b=True)
        plain = b.emit("matmul", [dy, right], trans_a=False, trans_b=not trans_b)
        return b.emit("transpose", [plain], perm=_swap_last(len(b.shape(a))))

    def _right(self, b: Builder, node: Node, dy: str) -> str:
        """db = op(a)ᵀ dy; a plain matrix b collects all batches, which then count as rows."""
        a, right = node.inputs[:2]
        trans_a, trans_b = node.attr("trans_a", False), node.attr("trans_b", False)
        rank = len(b.shape(a))
        if rank > len(b.shape(right)):
            if trans_a:
                a, trans_a = b.emit("transpose", [a], perm=_swap_last(rank)), False
            a = reshaped(b, a, (_rows(b, a), b.shape(a)[-1]))
            dy = reshaped(b, dy, (_rows(b, dy), b.shape(dy)[-1]))
        if trans_b:
            return b.emit("matmul", [dy, a], trans_a=True, trans_b=trans_a)
        return b.emit("matmul", [a, dy], trans_a=not trans_a, trans_b=False)

    def macs(self, node: Node, inputs: Sequence[Tensor | None], outputs: Sequence[Tensor]) -> int:
        a = inputs[0]
        return outputs[0].size * (a.shape[-2 if node.attr("trans_a", False) else -1] if a else 0)


def _rows(b: Builder, name: str) -> int:
    return int(np.prod(b.shape(name)[:-1], dtype=np.int64))


def _swap_last(rank: int) -> tuple[int, ...]:
    return (*range(rank - 2), rank - 1, rank - 2)


MATMUL: tuple[Op, ...] = (MatMul(),)
