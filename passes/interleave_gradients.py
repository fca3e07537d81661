"""Pass `interleave-gradients`: both gradients of a layer share one sweep over dY.

before:  %dw: float[4, 4] = matmul(%x, %dy) {trans_a=True, …}   # dw backward
         %dx: float[8, 4] = matmul(%dy, %w) {trans_b=True, …}   # dx backward
after:   the same nodes, and
         group [dw, dx] sub_batch 4 resident [%dy] kept [%dw, %w]

dX = dY W and dW = dY^T X are independent and read the same dY.  Apart they fetch it twice; as a
group, a sub-batch of dY is brought into the buffer once and both use it there (the tile-level form
of what InterGrad, Unnikrishnan & Parhi, TCAS-I 2023, interleaves element by element).  The
sub-batch is the largest that leaves room for dW's sums and W, which then stay; where they do not
fit W, then dW, goes through DRAM.  The node that stands later moves up to the other.

Pairs inside groups are left alone: there dY is on chip already.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import prod
from typing import ClassVar

from ccnn.passes.batch_axis import BatchAxis, batch_axis
from ccnn.passes.graph import Graph, GraphError, Group, Node
from ccnn.passes.steps import ElementBytes


@dataclass(frozen=True)
class Pair:
    """Both gradients of a layer: nodes in execution order, what they share, what may stay."""

    nodes: tuple[Node, Node]
    dy: str
    dw: str
    weight: str


@dataclass(frozen=True)
class InterleaveGradients:
    """Groups dX and dW of each layer around the dY they share."""

    name: ClassVar[str] = "interleave-gradients"
    buffer_bytes: int = 10 * 2**20
    reserved_bytes: int = 0
    """Part of the buffer for what streams through: X, dX, and tiles of what does not stay."""
    batch: int = 0
    """0: the first dimension of the first input."""
    bytes_per: ElementBytes = field(default_factory=ElementBytes)

    def __post_init__(self) -> None:
        if not 0 <= self.reserved_bytes < self.buffer_bytes:
            raise GraphError(
                f"{self.reserved_bytes} of {self.buffer_bytes} bytes of buffer are reserved"
            )

    def __call__(self, graph: Graph) -> Graph:
        """The graph with a group for each pair that fits, behind the groups it had."""
        axis = batch_axis(graph, self.batch)
        found = [(pair, self._group(graph, axis, pair)) for pair in gradient_pairs(graph, axis)]
        groups = [group for _, group in found if group]
        nodes = list(graph.nodes)
        for pair, group in found:
            if group:
                first, second = pair.nodes
                nodes.remove(second)
                nodes.insert(nodes.index(first) + 1, second)
        return replace(graph, nodes=tuple(nodes), groups=(*graph.groups, *groups))

    def _group(self, graph: Graph, axis: BatchAxis, pair: Pair) -> Group | None:
        """The group of a pair; None when not even the smallest sub-batch fits."""
        names = tuple(n.name for n in pair.nodes)
        free = self.buffer_bytes - self.reserved_bytes
        sample = prod(graph[pair.dy].shape) * self.bytes_per.element // axis.batch
        if sample * axis.batch <= free:
            return Group(names, 0, (pair.dy,))
        weight = prod(graph[pair.weight].shape) * self.bytes_per.element
        sums = prod(graph[pair.dw].shape) * self.bytes_per.partial
        for kept, taken in (
            ((pair.dw, pair.weight), sums + weight), ((pair.dw,), sums), ((), 0),
        ):  # fmt: skip
            most = (free - taken) // sample
            most -= most % axis.grain
            if most >= axis.grain:
                even = -(-axis.batch // -(-axis.batch // most))
                size = min(most, -(-even // axis.grain) * axis.grain)
                return Group(names, size, (pair.dy,), kept)
        return None


def gradient_pairs(graph: Graph, axis: BatchAxis) -> list[Pair]:
    """dX and dW of each layer that are in no group and read one dY, which no third node like
    them reads."""
    grouped = {name for group in graph.groups for name in group.nodes}
    readers: dict[str, dict[str, list[Node]]] = {}
    for node in graph.nodes:
        if node.phase != "backward" or node.name in grouped:
            continue
        kind = axis.kinds[node.name]
        if node.op == "conv_dx" or (node.op == "matmul" and kind == "keeps"):
            readers.setdefault(node.inputs[0], {}).setdefault("dx", []).append(node)
        elif node.op == "conv_dw":
            readers.setdefault(node.inputs[1], {}).setdefault("dw", []).append(node)
        elif node.op == "matmul" and kind == "sums":
            for tensor in node.inputs[:2]:
                readers.setdefault(tensor, {}).setdefault("dw", []).append(node)
    place = {node.name: i for i, node in enumerate(graph.nodes)}
    pairs = []
    for dy, found in readers.items():
        dx, dw = found.get("dx", []), found.get("dw", [])
        if dy in axis.rows and len(dx) == len(dw) == 1:
            first, second = sorted((dx[0], dw[0]), key=lambda n: place[n.name])
            pairs.append(Pair((first, second), dy, dw[0].outputs[0], dx[0].inputs[1]))
    return sorted(pairs, key=lambda pair: place[pair.nodes[0].name])
