"""Pass `fuse-updates`: weights step where their gradient is finished, tile by tile.

before:  %dw: float[8, 4] = matmul(%dy, %x) {…}  # dw backward
         %dx: float[4, 4] = matmul(%dz, %v) {…}  # dx backward
         %w1: float[8, 4] = map(%w, %dw) {exprs=("a - 0.1 * b",)}  # w/update/sgd update
after:   %dw: float[8, 4] = matmul(%dy, %x) {…}  # dw backward
         %w1: float[8, 4] = map(%w, %dw) {…, fused=True}  # w/update/sgd update
         %dx: float[4, 4] = matmul(%dz, %v) {…}  # dx backward

An update marked `fused` stands right behind the layer that makes its gradient, in the same group.
It runs when a tile of the gradient has its last product, in the epilogue of the layer: the gradient
is not read from DRAM, and with `gradients=False`, when it is no result of the step any more,
not written either (the backward form of optimizer fusion, Jiang et al., for when no update
needs more than its own gradient).

An update is left where it is when something else reads the gradient, when it reads a tensor of
another shape or an input (another core's gradient, which is there when the layer is done, not
tile by tile), or when a node behind the layer still needs the old weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from ccnn.passes.graph import Graph, Node
from ccnn.passes.steps import storage_roots

LAYERS = ("conv_dw", "matmul")
"""What may have an update in its epilogue."""


@dataclass(frozen=True)
class FuseUpdates:
    """Moves optimizer updates into the epilogues of the layers that make their gradients."""

    name: ClassVar[str] = "fuse-updates"
    gradients: bool = True
    """Gradients stay results of the step."""
    alone: bool = True
    """Also layers in no group take their update in."""

    def __call__(self, graph: Graph) -> Graph:
        """The graph with updates behind their gradients; groups take them in."""
        behind = {
            layer: update
            for layer, update in _fusable(graph).items()
            if self.alone or layer in graph.group_of
        }
        moved = {update.name for update in behind.values()}
        nodes = tuple(
            each
            for n in graph.nodes
            if n.name not in moved
            for each in (n, behind.get(n.name))
            if each is not None
        )
        groups = tuple(replace(g, nodes=_joined(g.nodes, behind)) for g in graph.groups)
        taken = {n.outputs[0] for n in nodes if n.name in behind}
        results = {of: g for of, g in graph.gradients.items() if self.gradients or g not in taken}
        return replace(graph, nodes=nodes, groups=groups, gradients=results)


def _joined(names: Sequence[str], behind: Mapping[str, Node]) -> tuple[str, ...]:
    """The nodes of a group with the updates behind their layers."""
    return tuple(name for n in names for name in ((n, behind[n].name) if n in behind else (n,)))


def _fusable(graph: Graph) -> dict[str, Node]:
    """Names of layers to the updates that may run in their epilogues, marked."""
    place = {n.name: k for k, n in enumerate(graph.nodes)}
    last: dict[str, int] = {}
    root = storage_roots(graph)
    for k, node in enumerate(graph.nodes):
        if node.phase != "update":
            last |= {root[i]: k for i in node.inputs if i}
    found = {}
    for update in graph.nodes:
        if update.op != "map" or update.phase != "update":
            continue
        for gradient in update.inputs:
            layer = graph.producer.get(gradient)
            if layer is None or layer.op not in LAYERS or _on_chip(graph, layer):
                continue
            others = [i for i in update.inputs if i != gradient]
            shapes = {graph[t].shape for t in (*update.inputs, *update.outputs)}
            steady = all(i not in graph.producer and graph[i].role != "input" for i in others)
            final = all(last.get(root[i], -1) <= place[layer.name] for i in others)
            alone = [n.name for n in graph.consumers[gradient]] == [update.name]
            if len(shapes) == 1 and steady and final and alone:
                found[layer.name] = update.with_attrs(fused=True)
    return found


def _on_chip(graph: Graph, layer: Node) -> bool:
    """True when the gradient stays in the buffer as a whole although it does not gather there."""
    group = graph.group_of.get(layer.name)
    if group is None:
        return False
    loops = group.sub_batch or group.rows
    return layer.outputs[0] in (group.resident if loops else (*group.resident, *group.kept))
