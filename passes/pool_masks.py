"""The gradient of an activation in front of a max pool, taken behind the pool.

before:  %p: float[2, 4, 4, 4], %i: bytes[2, 4, 4, 4] = window_max(%y) {…}  # pool forward
         %d: float[2, 4, 8, 8] = window_max_grad(%dp, %i) {…}  # pool/grad backward
         %dx: float[2, 4, 8, 8] = map(%d, %y) {exprs=("where((b > 0), a, 0)",)}  # grad backward
after:   %p: float[2, 4, 4, 4], %i: bytes[2, 4, 4, 4] = window_max(%y) {…}  # pool forward
         %m: float[2, 4, 4, 4] = map(%dp, %p) {exprs=("where((b > 0), a, 0)",)}  # grad backward
         %dx: float[2, 4, 8, 8] = window_max_grad(%m, %i) {…}  # pool/grad backward

The pool hands a gradient only to the places whose values it took, and there y is p: to ask p
instead of y gives the same numbers, and y need not be kept for the backward pass.  The same where
the mask is part of what reads the gradient, as the sums and the map of a norm's gradient.
"""

from __future__ import annotations

from dataclasses import replace

from ccnn.passes.expr import Expr, operand, operands_of, parse_expr, substitute
from ccnn.passes.graph import Graph, Node, Tensor

_MASK = parse_expr("where((b > 0), a, 0)")


def mask_behind_pools(graph: Graph) -> Graph:
    """The graph of primitives with the gradients of activations before max pools moved."""
    graph = _inner_masks_out(graph)
    pools = _pools(graph)
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
    return node.op == "map" and len(exprs) == 1 and parse_expr(exprs[0]) == _MASK


def _swapped(mask: Node, spread: Node, pool: Node) -> tuple[Node, Node]:
    """The mask on what the pool made, then the gradient of the pool."""
    dy, places = spread.inputs[:2]
    small = spread.outputs[0]  # a name that nothing else reads
    first = replace(mask, inputs=(dy, pool.outputs[0]), outputs=(small,))
    return first, replace(spread, inputs=(small, places), outputs=mask.outputs)


def _pools(graph: Graph) -> dict[str, Node]:
    """The places of values that max pools took, to the pools."""
    return {n.outputs[1]: n for n in graph.nodes if n.op == "window_max" and n.outputs[1]}


def _inner_masks_out(graph: Graph) -> Graph:
    """The graph without masks within what reads a pool's gradient: they are in front of it."""
    pools, taken = _pools(graph), {*graph.tensors, *(n.name for n in graph.nodes)}
    changed: dict[str, tuple[Node, ...]] = {}
    tensors: list[Tensor] = []
    for spread in graph.nodes:
        pool = pools.get(spread.inputs[1]) if spread.op == "window_max_grad" else None
        name = f"{spread.name}/mask"
        readers = graph.consumers[spread.outputs[0]]
        if pool is None or name in taken or graph.needed & {*spread.outputs}:
            continue
        found = [_without_mask(n, spread.outputs[0], pool.inputs[0]) for n in readers]
        bare = [n for n in found if n is not None]
        if not bare or len(bare) < len(found) or any(n.name in changed for n in bare):
            continue
        dy, places = spread.inputs[:2]
        mask = Node(name, "map", (dy, pool.outputs[0]), (name,), (), spread.origin, spread.phase)
        mask = mask.with_attrs(dtypes=(graph[dy].dtype,), exprs=(str(_MASK),))
        changed[spread.name] = mask, replace(spread, inputs=(name, places))
        changed |= {n.name: (n,) for n in bare}
        tensors.append(replace(graph[dy], name=name, role="value"))
    if not changed:
        return graph
    return graph.with_nodes(
        [new for n in graph.nodes for new in changed.get(n.name, (n,))], tensors
    )


def _without_mask(node: Node, dy: str, y: str) -> Node | None:
    """A reader of dy and y that asks y only whether dy counts, without asking; None for others."""
    if node.op not in ("map", "reduce") or y not in node.inputs or _masks(node):
        return None
    d, mask = node.inputs.index(dy), node.inputs.index(y)
    asked = substitute(_MASK, {0: operand(d), 1: operand(mask)})
    gone = operand(-1)

    def bare(e: Expr) -> Expr:
        return gone if e == asked else Expr(e.kind, tuple(map(bare, e.args)), e.value)

    trees = [bare(parse_expr(e)) for e in node.attr("exprs")]
    if any({d, mask} & operands_of(e) for e in trees):
        return None
    inputs = tuple(i for i in node.inputs if i != y)
    place = {k: operand(inputs.index(i)) for k, i in enumerate(node.inputs) if i != y}
    exprs = tuple(str(substitute(e, {**place, -1: place[d]})) for e in trees)
    return replace(node, inputs=inputs).with_attrs(exprs=exprs)
