"""Pass `expand`: every op is replaced by the primitives it stands for.

before:  %y = relu(%x)
after:   %y = map(%x) {exprs=("max(a, 0)",), dtypes=("float",)}

Results keep their names, so outputs, gradients and updates stay valid; origin and phase are
those of the op that was expanded.  Primitives whose results nobody needs are not kept.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from ccnn.passes.graph import Graph, GraphError, Node
from ccnn.passes.ops import op_named
from ccnn.passes.prune import live_nodes
from ccnn.passes.scope import ScopedBuilder


@dataclass(frozen=True)
class Expand:
    """Turns all nodes into primitives."""

    name: ClassVar[str] = "expand"

    def __call__(self, graph: Graph) -> Graph:
        """The expanded graph; raises GraphError when an op has no expansion."""
        return expand(graph)


def expand(graph: Graph, ops: Collection[str] = ()) -> Graph:
    """The same program in primitives only; with `ops` given, nodes of other ops stay."""
    b = ScopedBuilder(base=graph)
    b.nodes = []
    for node in graph.nodes:
        if ops and node.op not in ops:
            b.nodes.append(node)
        else:
            _expand_node(b, node)
    whole = b.build()
    return whole.with_nodes(live_nodes(whole))


def _expand_node(b: ScopedBuilder, node: Node) -> None:
    op = op_named(node.op)
    if op.is_primitive(node):
        b.nodes.append(node)
        return
    before = b.nodes
    b.nodes, b.scope, b.origin, b.phase = [], node.name, node.origin, node.phase
    results = list(op.expand(b, node))
    _name_results(b, node, results)
    b.scope, parts, b.nodes = "", b.nodes, before
    if len(parts) == 1:
        parts = [replace(parts[0], name=node.name)]
    for part in parts:
        _expand_node(b, part)


def _name_results(b: ScopedBuilder, node: Node, results: Sequence[str]) -> None:
    """Give the tensors of an expansion the names of the node's results."""
    if len(results) != len(node.outputs):
        raise GraphError(
            f"op '{node.op}' expands to {len(results)} results, node '{node.name}' has "
            f"{len(node.outputs)}"
        )
    made = {o for part in b.nodes for o in part.outputs}
    names: dict[str, str] = {}
    for result, wanted in zip(results, node.outputs, strict=True):
        if not wanted:
            continue
        if result not in made or result in names:  # a result that exists under another name
            source = result
            result = b.emit("reshape", [source], shape=b.shape(source))
            made.add(result)
        names[result] = wanted
    for result, wanted in names.items():
        old, new = b.tensors.pop(result), b.tensors[wanted]
        if (old.shape, old.dtype) != (new.shape, new.dtype):
            raise GraphError(
                f"op '{node.op}' expands to {old.dtype} {old.shape} for '{wanted}', which is "
                f"{new.dtype} {new.shape}"
            )
    b.nodes = [
        replace(
            part,
            inputs=tuple(names.get(i, i) for i in part.inputs),
            outputs=tuple(names.get(o, o) for o in part.outputs),
        )
        for part in b.nodes
    ]
