"""Pass `split-concats`: what is read of a concatenation is read of its parts.

before:  %ab: float[8, 4, 6, 6] = concat(%a, %b) {axis=1}
         %m, %v = moments(%ab) {axes=(0, 2, 3)}
         %abc: float[8, 6, 6, 6] = concat(%ab, %c) {axis=1}
after:   %ma, %va = moments(%a) {axes=(0, 2, 3)}               right behind what makes %a
         %mb, %vb = moments(%b) {axes=(0, 2, 3)}
         %m: accum[1, 4, 1, 1] = concat(%ma, %mb) {axis=1}
         %v: accum[1, 4, 1, 1] = concat(%va, %vb) {axis=1}
         %abc: float[8, 6, 6, 6] = concat(%a, %b, %c) {axis=1}

A norm's statistics belong to a channel, or to a group of channels in a sample.  So those of a
concatenation along the channels are those of its parts, the same numbers, as long as no group
reaches over two parts: each part is summed up once, where it is made, however many layers read it
(Jung et al. 2019 fuse the statistics across a DenseNet's concatenations).  A concatenation of
concatenations is one of all parts, so that none is copied from one to the next, and each can be put
together where it is read.  Statistics stay nested: they are short, and a copy costs a kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from ccnn.passes.graph import Graph, Node
from ccnn.passes.prune import live_nodes
from ccnn.passes.scope import ScopedBuilder


@dataclass(frozen=True)
class SplitConcats:
    """Takes statistics of the parts of a concatenation, and concatenates all parts at once."""

    name: ClassVar[str] = "split-concats"

    def __call__(self, graph: Graph) -> Graph:
        """The graph of primitives; one without concatenations is unchanged."""
        if not any(n.op == "concat" for n in graph.nodes):
            return graph
        graph = _flat(_Statistics(graph).split())
        return graph.with_nodes(live_nodes(graph))


Shape = tuple[int, ...]
View = tuple[str, Shape, Shape]
"""A tensor, the shape in which it is seen, and the axes of its statistics."""


class _Statistics:
    """Rewrites the moments of a graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.b = graph, ScopedBuilder(base=graph)
        self.known: dict[View, tuple[str, ...]] = {}
        self.behind: dict[str, list[Node]] = {}
        """Node to the statistics that are taken behind it."""

    def split(self) -> Graph:
        """The graph in which no moments of a concatenation are left that parts can give."""
        names: dict[str, str] = {}
        nodes: list[Node] = []
        for node in self.graph.nodes:
            node = replace(node, inputs=tuple(names.get(i, i) for i in node.inputs))
            view = self._view(node) if node.op == "moments" else None
            if view is None:
                nodes.append(node)
            elif view not in self.known and self._parts(view):
                nodes += self._joined(view, node)
            elif view in self.known and self.graph.needed.isdisjoint(node.outputs):
                names |= zip(node.outputs, self.known[view], strict=True)
            else:
                nodes.append(node)
                self.known.setdefault(view, node.outputs)
        nodes = [new for node in nodes for new in (node, *self.behind.get(node.name, ()))]
        return self.graph.with_nodes(nodes, self.b.tensors.values())

    def _view(self, node: Node) -> View:
        """What a node takes the moments of."""
        (name,) = node.inputs
        maker = self.graph.producer.get(name)
        shape = self.graph[name].shape
        if maker is not None and maker.op == "reshape":
            name = maker.inputs[0]
        return name, shape, tuple(node.attr("axes"))

    def _parts(self, view: View) -> list[View]:
        """The views of which the statistics are those of `view`, in order; none if there are no
        such."""
        name, shape, axes = view
        maker, own = self.graph.producer.get(name), self.graph[name].shape
        if maker is None or maker.op != "concat" or maker.attr("axis") != 1 or 1 in axes:
            return []
        if shape == own:
            return [(i, self.graph[i].shape, axes) for i in maker.inputs]
        # channels in groups: [N, C, …] seen as [N, groups, C / groups, …]
        if len(shape) < 3 or (shape[0], shape[1] * shape[2], *shape[3:]) != own or 2 not in axes:
            return []
        wide = [self.graph[i].shape[1] for i in maker.inputs]
        if any(c % shape[2] for c in wide):
            return []
        seen = [(shape[0], c // shape[2], *shape[2:]) for c in wide]
        return [(i, s, axes) for i, s in zip(maker.inputs, seen, strict=True)]

    def _joined(self, view: View, node: Node) -> list[Node]:
        """Nodes that concatenate the statistics of the view's parts, named as the node's."""
        b = self.b
        b.nodes, b.phase, b.origin, b.scope = [], node.phase, node.origin, node.name
        before = [b.tensors.pop(o) for o in node.outputs]
        found = self._of(view, node.outputs)
        assert [b.tensors[o] for o in found] == before
        return b.nodes

    def _of(self, view: View, outputs: Sequence[str] = ()) -> tuple[str, ...]:
        """Mean and variance of a view, concatenated here or taken where it is made."""
        if view in self.known:
            return self.known[view]
        parts = self._parts(view)
        if not parts:
            self.known[view] = self._taken(view)
            return self.known[view]
        found = [self._of(part) for part in parts]
        self.known[view] = tuple(
            self.b.emit("concat", stats, outputs=outputs[k : k + 1], axis=1)
            for k, stats in enumerate(zip(*found, strict=True))
        )
        return self.known[view]

    def _taken(self, view: View) -> tuple[str, ...]:
        """Moments of a part, right behind what makes it."""
        name, shape, axes = view
        b, maker = self.b, self.graph.producer.get(name)
        here, b.nodes = b.nodes, []
        scope, b.scope = b.scope, maker.name if maker else b.scope
        seen = b.emit("reshape", [name], shape=shape) if shape != b.shape(name) else name
        found = b.emit_all("moments", [seen], axes=axes)
        if maker is None:
            here += b.nodes
        else:
            self.behind.setdefault(maker.name, []).extend(b.nodes)
        b.nodes, b.scope = here, scope
        return found


def _flat(graph: Graph) -> Graph:
    """The graph in which no concatenation of floats reads another along the same axis."""
    parts: dict[tuple[str, int], tuple[str, ...]] = {}
    nodes = []
    for node in graph.nodes:
        if node.op == "concat" and graph[node.outputs[0]].dtype == "float":
            axis = node.attr("axis")
            inputs = tuple(p for i in node.inputs for p in parts.get((i, axis), (i,)))
            parts[node.outputs[0], axis] = inputs
            node = replace(node, inputs=inputs)
        nodes.append(node)
    return graph.with_nodes(nodes)
