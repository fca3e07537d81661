"""What an op is: one class that holds every fact about it.

An op answers four questions: what comes out (`infer`), what it computes (`reference`), what its
gradient is (`gradient`) and, unless it is a primitive that code is generated for, what
primitives it stands for (`expand`).  Nothing else in ccnn knows anything about a single op.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from ccnn.passes.graph import Builder, GraphError, Node, Tensor

Result = tuple[tuple[int, ...], str]
"""Shape and dtype of one result."""


class Op:
    """Base of all ops; the class name says what it is for, `name` how the graph spells it."""

    name: ClassVar[str]
    primitive: ClassVar[bool] = False
    """True when the code generator has a kernel for it; `expand` is then never called."""

    updates: ClassVar[Mapping[int, int]] = {}
    """Result number to the input (a state tensor) that it replaces after the step."""

    def is_primitive(self, node: Node) -> bool:
        """True when this very node needs no expansion."""
        return self.primitive

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Result]:
        """Shapes and dtypes of the results; raises GraphError when the inputs do not fit."""
        raise GraphError(f"op '{self.name}' does not say what it returns")

    def reference(self, node: Node, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        """The results computed plainly with numpy, in the precision of the inputs."""
        raise GraphError(f"op '{self.name}' has no reference")

    def gradient(
        self, b: Builder, node: Node, douts: Sequence[str | None], wanted: Sequence[bool]
    ) -> list[str | None]:
        """Append the backward nodes; give, for each input, the tensor that is its gradient.

        `douts` holds the gradient of each result (None: no path to the loss).  Inputs that are
        not `wanted` may be answered with None and should cost nothing.
        """
        raise GraphError(f"op '{self.name}' has no gradient")

    def expand(self, b: Builder, node: Node) -> Sequence[str]:
        """Append primitives that compute the same and give the tensors for node.outputs."""
        raise GraphError(f"op '{self.name}' cannot be expanded")

    def macs(self, node: Node, inputs: Sequence[Tensor | None], outputs: Sequence[Tensor]) -> int:
        """Multiply-accumulates on the array; 0 for vector work."""
        return 0
