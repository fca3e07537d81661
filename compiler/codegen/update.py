"""Optimizer updates in the epilogue of the layer that makes their gradient (pass fuse-updates)."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from ccnn.compiler.codegen.bring import bring
from ccnn.compiler.codegen.emit import KernelWriter
from ccnn.compiler.codegen.place import Held
from ccnn.compiler.codegen.scope import Scope, dense, view_of
from ccnn.compiler.codegen.vector import only_used, postfix, renumber
from ccnn.passes.expr import parse_expr
from ccnn.passes.graph import Graph, Node
from ccnn.targets.program import Affine, Map, Store


def fused_updates(graph: Graph, free: Sequence[str]) -> dict[str, tuple[Node, int]]:
    """Gradients to the updates that their layers run, and each update's number among the nodes
    that are not `free`."""
    nodes = [n for n in graph.nodes if n.op not in free]
    return {
        i: (n, number)
        for number, n in enumerate(nodes)
        if n.attr("fused")
        for i in n.inputs
        if i in graph.producer
    }


def widths(scope: Scope, gradient: str) -> tuple[int, ...]:
    """Bytes of an element of each tensor that an update moves, the gradient aside."""
    node, _ = scope.updates[gradient]
    read = [i for i in _read(node) if i != gradient and i not in scope.regions]
    return tuple(scope.width(t) for t in (*read, *node.outputs))


def is_result(scope: Scope, gradient: str) -> bool:
    """True when a gradient is wanted in DRAM although its update has it."""
    return gradient in scope.graph.needed


def _read(node: Node) -> list[str]:
    places = only_used([parse_expr(text) for text in node.attr("exprs")])
    return [node.inputs[i] for i in places]


def write_update(
    kw: KernelWriter,
    scope: Scope,
    gradient: str,
    held: Held,
    starts: tuple[Affine, ...],
    sizes: tuple[int, ...],
    slots: int,
) -> None:
    """Step the tile of the weights (and of what the optimizer keeps) whose gradient is `held`."""
    layer = kw.node
    node, kw.node = scope.updates[gradient]
    exprs = [parse_expr(text) for text in node.attr("exprs")]
    operands, loaded = [], []
    for i, name in enumerate(_read(node)):
        tile = held
        if name in scope.regions:
            tile = scope.held(name, starts)
        elif name != gradient:
            dtype = scope.dtypes[name]
            pipe = kw.pipe(f"u{i}", "gbuf", dtype, prod(sizes), slots, "load", "vector")
            tile = bring(kw, scope, pipe, "vector", name, starts, sizes)
            loaded.append(pipe)
        operands.append(view_of(tile, sizes))
    for i, (name, expr) in enumerate(zip(node.outputs, exprs, strict=True)):
        dtype = scope.dtypes[name]
        pipe = kw.pipe(f"v{i}", "gbuf", dtype, prod(sizes), slots, "vector", "store")
        made = Held(kw.fill(pipe, "vector"), dense(sizes))
        code = renumber(postfix(expr), only_used(exprs))
        kw.emit(Map(kw.node, view_of(made, sizes), tuple(operands), code))
        kw.filled(pipe, "vector")
        kw.take(pipe, "store")
        where = scope.in_dram(name, starts)
        kw.emit(Store(kw.node, name, where, (1,) * len(starts), view_of(made, sizes)))
        kw.done(pipe, "store")
    for pipe in loaded:
        kw.done(pipe, "vector")
    kw.node = layer
