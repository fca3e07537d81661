"""The order of nodes that suits groups: cheap vector work late, data gradients early.

What a norm's apply step, an activation or a slice makes is as large as what it reads, so it
costs no room to wait; made late it need not be carried past a barrier or another layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ccnn.passes.graph import Graph, Node
from ccnn.passes.steps import storage_roots

SINKING = ("map", "slice", "expand", "reshape", "concat", "pad")


def sink_nodes(graph: Graph) -> Graph:
    """The graph with nodes that read hardly more than they make right before their first reader.

    Nodes that make what nothing in the graph reads stay; groups are dropped.
    """
    root = storage_roots(graph)
    waiting: dict[str, Node] = {}  # result to the node that will make it
    order: list[Node] = []

    def place(node: Node) -> None:
        for name in node.inputs:
            if name in waiting:
                first = waiting[name]
                for o in first.outputs:
                    waiting.pop(o, None)
                place(first)
        order.append(node)

    for node in graph.nodes:
        if _may_wait(graph, node, root):
            waiting |= {o: node for o in node.outputs if o}
        else:
            place(node)
    for node in dict.fromkeys(waiting.values()):
        if any(waiting.get(o) is node for o in node.outputs):
            place(node)
    return replace(graph, nodes=tuple(order), groups=())


def data_gradients_first(graph: Graph) -> Graph:
    """The graph with each layer's weight gradient right behind its data gradient.

    What comes next waits for the data gradient only: on chip the array then works on the weight
    gradient while the vector unit goes on with the layer in front.
    """
    behind: dict[str, list[Node]] = {}
    waits: set[str] = set()
    place = {n.name: i for i, n in enumerate(graph.nodes)}
    data = {n.inputs[0]: n for n in graph.nodes if _reads_weights(graph, n)}
    for node in graph.nodes:
        first = next((data[i] for i in node.inputs if i in data), None)
        if node.op not in ("conv_dw", "matmul") or first is node:
            continue
        if first and place[first.name] > place[node.name]:
            readers = [place[n.name] for o in node.outputs for n in graph.consumers.get(o, ())]
            if min(readers, default=len(place)) > place[first.name]:
                behind.setdefault(first.name, []).append(node)
                waits.add(node.name)
    order: list[Node] = []
    for node in graph.nodes:
        if node.name not in waits:
            order += [node, *behind.get(node.name, [])]
    return replace(graph, nodes=tuple(order), groups=())


def _reads_weights(graph: Graph, node: Node) -> bool:
    """True for a data gradient."""
    if node.op == "matmul":
        return node.phase == "backward" and graph[node.inputs[1]].role == "parameter"
    return node.op == "conv_dx"


def _may_wait(graph: Graph, node: Node, root: dict[str, str]) -> bool:
    if node.op not in SINKING or node.phase == "update":
        return False
    if any(o in graph.needed for o in node.outputs):
        return False
    made = sum(graph[o].size for o in node.outputs)
    read = sum(graph[s].size for s in dict.fromkeys(root[i] for i in node.inputs if i))
    return _read_later(graph, node.outputs) and 4 * read <= 5 * made


def _read_later(graph: Graph, names: Sequence[str]) -> bool:
    return all(graph.consumers.get(o) for o in names)
