"""Writes chosen groups into a graph: moves nodes so that the nodes of a group follow each other.

A node that no group's kernel needs any more runs last, in its old order; one that a group needs
but that does not depend on the group runs before it; reshapes run with what they reshape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ccnn.passes.graph import Graph, Group, Node
from ccnn.passes.group_plan import Plan
from ccnn.passes.steps import Steps


def place_groups(steps: Steps, chosen: Sequence[tuple[tuple[int, int], Plan]]) -> Graph:
    """The graph with the runs of kernels at these positions as groups, where not `alone`."""
    order = _Order(steps.graph)
    groups = []
    for (low, high), plan in chosen:
        nodes = steps.nodes[low:high]
        if plan.alone:
            for node in nodes:
                order.add(node)
            continue
        members = order.add_group([n for k, n in enumerate(nodes, low) if k not in plan.leaving])
        touched = list(dict.fromkeys(t for n in members for t in (*n.inputs, *n.outputs) if t))
        groups.append(
            Group(
                tuple(n.name for n in members),
                plan.sub_batch,
                tuple(t for t in touched if steps.root[t] in plan.resident),
                tuple(t for t in touched if steps.root[t] in plan.kept),
                plan.rows,
                carried=plan.carried,
                backwards=plan.backwards,
                found=tuple(plan.found),
                found_samples=plan.found_samples,
                left=tuple(plan.left),
                left_samples=plan.left_samples,
            )
        )
        for k in plan.leaving:
            order.add(steps.nodes[k])
    for node in steps.graph.nodes:
        order.add(node)
    return replace(steps.graph, nodes=tuple(order.nodes), groups=tuple(groups))


class _Order:
    """Nodes in their new order, each behind what it reads."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes: list[Node] = []
        self.done: set[str] = set()

    def missing(self, node: Node) -> list[Node]:
        """What has to run before the node and has not, in order, the node last."""
        found: dict[str, Node] = {}
        stack: list[tuple[Node, bool]] = [(node, False)]
        while stack:
            at, ready = stack.pop()
            if at.name in self.done or (at.name in found and not ready):
                continue
            if ready:
                found[at.name] = at
                continue
            stack.append((at, True))
            makers = (self.graph.producer.get(i) for i in reversed(at.inputs))
            stack += [(m, False) for m in makers if m is not None]
        return list(found.values())

    def add(self, node: Node) -> list[Node]:
        """Append a node and what it needs."""
        new = self.missing(node)
        self.nodes += new
        self.done.update(n.name for n in new)
        return new

    def add_group(self, nodes: Sequence[Node]) -> list[Node]:
        """Append nodes as one run, what they need from elsewhere before; the members of the run."""
        inside = {n.name for n in nodes}
        for node in nodes:
            for other in self.missing(node):
                makers = (self.graph.producer.get(i) for i in other.inputs)
                if any(m is not None and m.name in inside for m in makers):
                    inside.add(other.name)  # depends on the run, so it runs within
        for node in nodes:
            for other in self.missing(node):
                if other.name not in inside:
                    self.add(other)
        return [new for node in nodes for new in self.add(node)]
