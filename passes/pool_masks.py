"""The gradient of an activation in front of a max pool, taken behind the pool.

before:  %p: float[2, 4, 4, 4], %i: bytes[2, 4, 4, 4] = window_max(%y) {…}  # pool forward
         %d: float[2, 4, 8, 8] = window_max_grad(%dp, %i) {…}  # pool/grad backward
         %dx: float[2, 4, 8, 8] = map(%d, %y) {exprs=("where((b > 0), a, 0)",)}  # grad backward
after:   %p: float[2, 4, 4, 4], %i: bytes[2, 4, 4, 4] = window_max(%y) {…}  # pool forward
         %m: float[2, 4, 4, 4] = map(%dp, %p) {exprs=("where((b > 0), a, 0)",)}  # grad backward
         %dx: float[2, 4, 8, 8] = window_max_grad(%m, %i) {…}  # pool/grad backward

The pool hands a gradient only to the places whose values it took, and there y is p: to ask p
instead of y gives the same numbers, and y need not be kept for the backward pass.
"""

from __future__ import annotations

from dataclasses import replace

from ccnn.passes.expr import parse_expr
from ccnn.passes.graph import Graph, Node

_MASK = parse_expr("where((b > 0), a, 0)")


def mask_behind_pools(graph: Graph) -> Graph:
    """The graph of primitives with the gradients of activations before max pools moved."""
    pools = {n.outputs[1]: n for n in graph.nodes if n.op == "window_max" and n.outputs[1]}
    moved: dict[str, tuple[Node, Node]] = {}
    for mask in graph.nodes:
        spread = graph.producer.get(mask.inputs[0]) if mask.inputs else None
        if mask.op != "map" or spread is None or spread.op != "window_max_grad":
            continue
        pool = pools.get(spread.inputs[1])
        alone = graph.consumers[spread.outputs[0]] == [mask] and not graph.needed & {
            *spread.outputs
        }
        if pool and alone and _masks(mask) and mask.inputs[1:] == pool.inputs:
            moved[spread.name] = _swapped(mask, spread, pool)
    if not moved:
        return graph
    gone = {mask.name for mask, _ in moved.values()}
    nodes = [new for n in graph.nodes if n.name not in gone for new in moved.get(n.name, (n,))]
    small = [
        replace(graph[first.outputs[0]], shape=graph[first.inputs[0]].shape)
        for first, _ in moved.values()
    ]
    return graph.with_nodes(nodes, small)


def _masks(node: Node) -> bool:
    """True for a gradient where the second operand is positive, and zero elsewhere."""
    exprs = node.attr("exprs")
    return len(exprs) == 1 and parse_expr(exprs[0]) == _MASK


def _swapped(mask: Node, spread: Node, pool: Node) -> tuple[Node, Node]:
    """The mask on what the pool made, then the gradient of the pool."""
    dy, places = spread.inputs[:2]
    small = spread.outputs[0]  # a name that nothing else reads
    first = replace(mask, inputs=(dy, pool.outputs[0]), outputs=(small,))
    return first, replace(spread, inputs=(small, places), outputs=mask.outputs)
