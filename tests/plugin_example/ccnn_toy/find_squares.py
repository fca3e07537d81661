"""Pass `find-squares`: a tensor multiplied by itself is squared.

before:  %y = mul(%x, %x)
after:   %y = toy_square(%x)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ccnn.passes.graph import Graph, Node


@dataclass(frozen=True)
class FindSquares:
    """Writes a tensor times itself as toy_square."""

    name: ClassVar[str] = "find-squares"

    def __call__(self, graph: Graph) -> Graph:
        """The graph with its squares found."""
        return graph.with_nodes([_squared(n) for n in graph.nodes])


def _squared(node: Node) -> Node:
    if node.op != "mul" or node.inputs[0] != node.inputs[1]:
        return node
    return replace(node, op="toy_square", inputs=node.inputs[:1])
