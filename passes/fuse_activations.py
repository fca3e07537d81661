"""Pass `fuse-activations`: a relu, clip or leaky relu runs in the sweep that produces its input.

This is the schedule that training frameworks run on conventional accelerators, so it is the
fair baseline.  Forward, after the apply step of a norm or after an addition:

before:  %t: float[2, 4] = map(%p, %q) {dtypes=("float",), exprs=("a + b",)}  # add forward
         %y: float[2, 4] = map(%t) {dtypes=("float",), exprs=("max(a, 0)",)}  # relu forward
after:   %y: float[2, 4] = map(%p, %q) {dtypes=("float",), exprs=("max(a + b, 0)",)}  # add forward

Backward, the gradient of the activation is computed inside the sums and the map of the norm's
gradient, which then read dy and y.  An activation after a convolution and the sum of gradients
that meet at a branch stay sweeps of their own.  Works on an expanded graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from ccnn.passes.compose import inline
from ccnn.passes.expr import LETTERS, operands_of, operations, parse_expr
from ccnn.passes.graph import Graph, Node

_CHEAP = {"max", "min", "where", "gt", "mul"}
_CHEAP_GRADIENT = {"where", "gt", "lt", "mul"}
_APPLY = {"(a - b) * c", "(a - b) * c * d", "(a - b) * c * d + e", "(a - b) * c + d"}


@dataclass(frozen=True)
class FuseActivations:
    """Runs an activation in the sweep of the norm or addition that feeds it, as frameworks do."""

    name: ClassVar[str] = "fuse-activations"

    def __call__(self, graph: Graph) -> Graph:
        """The graph with fewer sweeps; graphs without such activations are unchanged."""
        return _fuse_backward(_fuse_forward(graph))


def _fuse_forward(graph: Graph) -> Graph:
    gone: set[str] = set()
    fused: dict[str, Node] = {}
    for node in graph.nodes:
        producer = graph.producer.get(node.inputs[0]) if node.inputs else None
        if producer is None or not _is_activation(node):
            continue
        producer = fused.get(producer.name, producer)
        result = node.inputs[0]
        if (
            _feeds_activation(producer)
            and result not in graph.needed
            and len(graph.consumers[result]) == 1
        ):
            gone.add(producer.name)
            whole = inline(node, producer)
            fused[node.name] = replace(whole, name=producer.name, origin=producer.origin)
    nodes = [fused.get(n.name, n) for n in graph.nodes if n.name not in gone]
    return graph.with_nodes(nodes)


def _is_activation(node: Node) -> bool:
    """A forward map of one tensor that only compares, selects and scales."""
    if node.op != "map" or node.phase == "backward" or len(node.inputs) != 1:
        return False
    used = set(operations(parse_expr(node.attr("exprs")[0])))
    return len(node.outputs) == 1 and used <= _CHEAP and bool(used - {"mul"})


def _feeds_activation(node: Node) -> bool:
    """The apply step of a norm, or an addition."""
    if node.op != "map" or len(node.outputs) != 1 or node.phase != "forward":
        return False
    return node.attr("exprs")[0] in _APPLY | {"a + b"}


def _fuse_backward(graph: Graph) -> Graph:
    changed: dict[str, Node] = {}
    gone: set[str] = set()
    for node in graph.nodes:
        if not _is_activation_gradient(node) or node.outputs[0] in graph.needed:
            continue
        readers = graph.consumers[node.outputs[0]]
        if not _is_norm_gradient(readers):
            continue
        current = [changed.get(r.name, r) for r in readers]
        if any(len({*r.inputs, *node.inputs}) > len(LETTERS) for r in current):
            continue
        changed |= {r.name: inline(r, node) for r in current}
        gone.add(node.name)
    nodes = [changed.get(n.name, n) for n in graph.nodes if n.name not in gone]
    return graph.with_nodes(nodes)


def _is_activation_gradient(node: Node) -> bool:
    if node.op != "map" or node.phase != "backward" or len(node.outputs) != 1:
        return False
    tree = parse_expr(node.attr("exprs")[0])
    used = set(operations(tree))
    return used <= _CHEAP_GRADIENT and {"where"} <= used and len(operands_of(tree)) == 2


def _is_norm_gradient(readers: Sequence[Node]) -> bool:
    """Reduces of one norm's gradient and the map that reads their sums, and nothing else."""
    if not readers or any(r.op not in ("map", "reduce") for r in readers):
        return False
    if len({r.origin for r in readers}) != 1 or len({_family(r) for r in readers}) != 1:
        return False
    return any(r.op == "reduce" for r in readers)


def _family(node: Node) -> str:
    """The node whose expansion this one is part of."""
    return node.name.rpartition("/")[0]
