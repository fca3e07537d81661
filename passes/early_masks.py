"""Pass `early-masks`: the gradient of an activation is taken where the layer behind it is.

before:  %d: float[2, 4, 8, 8] = conv_dx(%dy, %w) {…}  # conv/grad backward
         %s, %t = reduce(%d, %y, %x, %m) {exprs=("where((b > 0), a, 0)", …)}  # norm/sums backward
         %dx = map(%d, %y, %x, …) {exprs=("c * where((b > 0), a, 0) + …",)}  # norm/grad backward
after:   %d: float[2, 4, 8, 8] = conv_dx(%dy, %w) {…}  # conv/grad backward
         %e: float[2, 4, 8, 8] = map(%d, %y) {exprs=("where((b > 0), a, 0)",)}  # mask backward
         %s, %t = reduce(%e, %x, %m) {exprs=("a", …)}  # norm/sums backward
         %dx = map(%e, %x, …) {exprs=("c * a + …",)}  # norm/grad backward

Through DRAM it is best done in the sweeps of the norm's gradient (passes/fuse_activations.py), for
then %e is neither written nor read.  On chip %e takes the place of %d, and %y, which is as large,
need not stay until the norm's sums are known; nor is it asked for three times over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from ccnn.passes.expr import Expr, number, operand, operands_of, parse_expr, substitute
from ccnn.passes.graph import Graph, Node
from ccnn.passes.scope import ScopedBuilder

_MASK = "where((b > 0), a, 0)"
_NOTHING = number(0)


@dataclass(frozen=True)
class EarlyMasks:
    """Takes gradients of activations right behind data gradients, not in all that reads them."""

    name: ClassVar[str] = "early-masks"

    def __call__(self, graph: Graph) -> Graph:
        """The graph of primitives; one without activations between layer and norm is unchanged."""
        masks = {
            node.name: found
            for node in graph.nodes
            if node.op == "conv_dx" and (found := _mask(graph, node)) is not None
        }
        if not masks:
            return graph
        b = ScopedBuilder(base=graph)
        b.nodes, masked = [], {}
        for node in graph.nodes:
            for d in {*node.inputs} & masked.keys():
                node = _without(node, d, *masked[d])
            b.nodes.append(node)
            if node.name in masks:
                (d,), y = node.outputs, masks[node.name]
                b.phase, b.scope = node.phase, node.name
                b.origin = graph.consumers[d][0].origin
                kinds = (graph[d].dtype,)
                masked[d] = y, b.emit("map", [d, y], name="mask", exprs=(_MASK,), dtypes=kinds)
        return graph.with_nodes(b.nodes, b.tensors.values())


def _mask(graph: Graph, node: Node) -> str | None:
    """The activation with which all that reads a data gradient masks it, where several do."""
    (d,) = node.outputs
    readers = graph.consumers[d]
    if d in graph.needed or len(readers) < 2:
        return None
    found = {_mask_of(graph, reader, d) for reader in readers}
    return found.pop() if len(found) == 1 else None


def _mask_of(graph: Graph, reader: Node, d: str) -> str | None:
    """The activation with which a node masks all that it reads of `d`."""
    if reader.op not in ("map", "reduce"):
        return None
    a = reader.inputs.index(d)
    exprs = [parse_expr(e) for e in reader.attr("exprs")]
    for b, y in enumerate(reader.inputs):
        if y == d or graph[y].shape != graph[d].shape:
            continue
        left = [_replaced(e, _masked(a, b), _NOTHING) for e in exprs]
        if left != exprs and not any(a in operands_of(e) for e in left):
            return y
    return None


def _masked(d: int, y: int) -> Expr:
    return substitute(parse_expr(_MASK), {0: operand(d), 1: operand(y)})


def _replaced(e: Expr, old: Expr, new: Expr) -> Expr:
    if e == old:
        return new
    return replace(e, args=tuple(_replaced(a, old, new) for a in e.args))


def _without(node: Node, d: str, y: str, e: str) -> Node:
    """The reader, of the masked gradient `e` where it read `d` and `y`."""
    a, b = node.inputs.index(d), node.inputs.index(y)
    exprs = [_replaced(parse_expr(x), _masked(a, b), operand(a)) for x in node.attr("exprs")]
    used = sorted(frozenset().union(*(operands_of(x) for x in exprs)))
    place: Mapping[int, Expr] = {k: operand(i) for i, k in enumerate(used)}
    inputs = tuple(e if k == a else node.inputs[k] for k in used)
    texts = tuple(str(substitute(x, place)) for x in exprs)
    return replace(node, inputs=inputs).with_attrs(exprs=texts)
