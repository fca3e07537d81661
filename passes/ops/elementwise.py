"""Elementwise ops: each is a formula, the formulas of its derivatives, and plain numpy.

How operands are spelled: `a`, `b`, `c` are the inputs, `d` the gradient of the result, `y` the
result; `{name}` is replaced by that attribute.  A derivative of None is zero everywhere.  Where
the derivative can be told from the result (relu, sigmoid …) it uses `y`, so that the input need
not be kept for the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from ccnn.passes.expr import Expr, operand, operands_of, parse_expr, substitute
from ccnn.passes.graph import Builder, Node, Tensor
from ccnn.passes.ops.base import Op, Result
from ccnn.passes.ops.common import (
    broadcast,
    broadcast_axes,
    common_dtype,
    emit_map,
    given,
    sum_to,
    take,
)

D, Y = 3, 24  # where `d` and `y` stand in the alphabet


class Elementwise(Op):
    """Base of the elementwise ops; numpy's broadcasting rules."""

    formula: ClassVar[str]
    derivatives: ClassVar[tuple[str | None, ...]]
    plain: ClassVar[Callable[..., np.ndarray]]
    """The reference: called with the inputs and, by name, the attributes."""
    attributes: ClassVar[dict[str, Any]] = {}
    """Names and defaults of the attributes that the formulas use."""

    def values(self, node: Node) -> dict[str, Any]:
        """The attributes of a node, defaults filled in."""
        return {k: node.attr(k, default) for k, default in self.attributes.items()}

    def expression(self, node: Node) -> Expr:
        """The formula with the node's attributes in place."""
        return self.fill(self.formula, node)

    def slopes(self, node: Node) -> list[Expr | None]:
        """The derivatives with the node's attributes in place."""
        return [self.fill(t, node) if t else None for t in self.derivatives]

    def fill(self, text: str, node: Node) -> Expr:
        """A formula with the node's attributes in place."""
        return parse_expr(text.format(**{k: repr(float(v)) for k, v in self.values(node).items()}))

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Result]:
        tensors = given(take(node, inputs, len(self.derivatives)))
        return [(broadcast(node, [t.shape for t in tensors]), common_dtype(tensors))]

    def reference(self, node: Node, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        with np.errstate(all="ignore"):
            return [type(self).plain(*inputs, **self.values(node))]

    def expand(self, b: Builder, node: Node) -> Sequence[str]:
        dtype = b.tensors[node.outputs[0]].dtype
        return emit_map(b, node.inputs, [self.expression(node)], [dtype])

    def gradient(
        self, b: Builder, node: Node, douts: Sequence[str | None], wanted: Sequence[bool]
    ) -> list[str | None]:
        dy, full = douts[0], b.shape(node.outputs[0])
        grads: list[str | None] = [None] * len(node.inputs)
        if dy is None:
            return grads
        together: list[int] = []  # inputs of the full shape share one sweep
        slopes = self.slopes(node)
        for k, (want, slope) in enumerate(zip(wanted, slopes, strict=True)):
            if not want or slope is None:
                continue
            like = b.tensors[node.inputs[k]]
            if broadcast_axes(like.shape, full) or like.shape != full:
                grads[k] = sum_to(b, *_bind(node, dy, slope), like)
            elif slope == operand(D) and like.dtype == b.tensors[dy].dtype:
                grads[k] = dy
            else:
                together.append(k)
        if together:
            names = [*node.inputs, dy, node.outputs[0]]
            place = {D: operand(len(node.inputs)), Y: operand(len(node.inputs) + 1)}
            exprs = [substitute(e, place) for k in together if (e := slopes[k]) is not None]
            dtypes = [b.tensors[node.inputs[k]].dtype for k in together]
            for k, name in zip(together, emit_map(b, names, exprs, dtypes), strict=True):
                grads[k] = name
        return grads


def _bind(node: Node, dy: str, slope: Expr) -> tuple[list[str], Expr]:
    """The tensors a derivative reads, and the derivative with its operands renumbered."""
    source = {**dict(enumerate(node.inputs)), D: dy, Y: node.outputs[0]}
    used = sorted(operands_of(slope))
    return [source[k] for k in used], substitute(slope, {k: operand(i) for i, k in enumerate(used)})
