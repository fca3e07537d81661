"""Which nodes a graph can do without."""

from __future__ import annotations

from collections.abc import Collection

from ccnn.passes.graph import Graph, Node


def live_nodes(graph: Graph, also: Collection[str] = ()) -> list[Node]:
    """The nodes that an output, gradient or update (or one of `also`) depends on, in order."""
    needed = {*graph.needed, *also}
    kept = []
    for node in reversed(graph.nodes):
        if any(o in needed for o in node.outputs):
            kept.append(node)
            needed.update(node.inputs)
    return kept[::-1]
