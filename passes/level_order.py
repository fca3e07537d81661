"""The order of nodes by the barriers between them: what may run in one sweep stands together.

A *level* counts the times that a whole batch has to be complete before a node can run.  Branches
that read one tensor (a module's first layers, the layer in a block's shortcut) are one run when
forward nodes stand at their first level, and their gradients are one run, with the sum of them,
when backward nodes stand at their last.  A forward layer that is read only later waits as well,
where to read its operands there is less than to write what it makes and to read that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import inf

from ccnn.passes.batch_axis import BatchAxis, Kind
from ccnn.passes.graph import Graph, Node
from ccnn.passes.sink import SINKING
from ccnn.passes.steps import ARRAY_OPS

WHOLE = ("sums", "merges", "mixes")
"""Kinds of nodes whose results are there when all samples have passed."""


def by_levels(graph: Graph, axis: BatchAxis) -> Graph:
    """The graph with forward nodes at their first level and backward nodes at their last.

    What sums over the batch stays where its operands are.  Groups are dropped.
    """
    first = _first_levels(graph, axis.kinds)
    last = _last_levels(graph, axis.kinds, first)
    late_layers = _late_layers(graph, axis, first)
    level: dict[str, float] = {}
    for node in graph.nodes:
        here = max(_behind(graph, node, level, axis.kinds), late_layers.get(node.name, 0.0))
        if node.phase == "backward" and axis.kinds[node.name] not in WHOLE:
            here = last[node.name] if last[node.name] < inf else here
        level[node.name] = here
    order = {"forward": 0, "loss": 0, "backward": 1, "update": 2}
    nodes = sorted(graph.nodes, key=lambda n: (order[n.phase], level[n.name]))
    return replace(graph, nodes=tuple(nodes), groups=())


def _behind(
    graph: Graph, node: Node, level: Mapping[str, float], kinds: Mapping[str, Kind]
) -> float:
    """The first level at which all that a node reads is there."""
    makers = (graph.producer.get(i) for i in node.inputs)
    return max((level[m.name] + (kinds[m.name] in WHOLE) for m in makers if m), default=0.0)


def _first_levels(graph: Graph, kinds: Mapping[str, Kind]) -> dict[str, float]:
    found: dict[str, float] = {}
    for node in graph.nodes:
        found[node.name] = _behind(graph, node, found, kinds)
    return found


def _late_layers(graph: Graph, axis: BatchAxis, first: Mapping[str, float]) -> dict[str, float]:
    """Levels of the forward layers that are read only behind a barrier and had better run there,
    as one does that is made anew for a norm."""
    latest: dict[str, float] = {}
    found: dict[str, float] = {}
    for node in reversed(graph.nodes):
        here = latest[node.name] = first[node.name]
        if node.phase != "forward":
            continue
        readers = (c for o in node.outputs for c in graph.consumers.get(o, ()))
        late = min((latest[c.name] for c in readers), default=here)
        read = sum(graph[i].size for i in node.inputs if i in axis.rows)
        if node.op in SINKING:
            latest[node.name] = max(here, late)
        elif node.op in ARRAY_OPS and late > here and read < 2 * graph[node.outputs[0]].size:
            latest[node.name] = found[node.name] = late
    return found


def _last_levels(
    graph: Graph, kinds: Mapping[str, Kind], first: Mapping[str, float]
) -> dict[str, float]:
    """The last level of each backward node that delays none of those that work on samples;
    infinite where none of them waits, as for the gradient of a weight."""
    found: dict[str, float] = {}
    for node in reversed(graph.nodes):
        if node.phase != "backward":
            continue
        readers = (c for o in node.outputs for c in graph.consumers.get(o, ()))
        late = min((found[c.name] for c in readers if c.name in found), default=inf)
        if late == inf and kinds[node.name] == "keeps":
            late = first[node.name]
        found[node.name] = late - (kinds[node.name] in WHOLE)
    return found
