"""An op of our own; the expansion into primitives is all that compiling it takes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ccnn.passes.graph import Builder, Node, Tensor
from ccnn.passes.ops.base import Op, Result
from ccnn.passes.ops.common import emit_map, given, take


class Square(Op):
    """y = x²."""

    name = "toy_square"

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Result]:
        x = given(take(node, inputs, 1))[0]
        return [(x.shape, x.dtype)]

    def reference(self, node: Node, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        return [np.square(np.asarray(inputs[0]))]

    def expand(self, b: Builder, node: Node) -> Sequence[str]:
        x = node.inputs[0]
        return emit_map(b, [x], ["a * a"], [b.tensors[x].dtype])

    def gradient(
        self, b: Builder, node: Node, douts: Sequence[str | None], wanted: Sequence[bool]
    ) -> list[str | None]:
        x, dy = node.inputs[0], douts[0]
        if dy is None:
            return [None]
        return [emit_map(b, [dy, x], ["2 * a * b"], [b.tensors[x].dtype])[0]]
