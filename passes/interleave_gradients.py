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

The element-level form is for machines whose PEs take turns: both nodes become one block in which
each block of W that stays in the array stands beside its block of dW, and dY passes both once.

         group [dw, dx] sub_batch 0 interleaved resident [] kept []

It takes any layer whose two GEMMs have one shape, dY as rows and W as columns: matrix products,
and convolutions of any filter, since dX reads each filter place of W against just those pixels of
dY and X that its dW is summed over (a strided one phase by phase).

Pairs inside groups are left alone: there dY is on chip already.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import prod
from typing import ClassVar, Literal

from ccnn.passes.batch_axis import BatchAxis, batch_axis
from ccnn.passes.graph import Graph, GraphError, Group, Node
from ccnn.passes.steps import ElementBytes


@dataclass(frozen=True)
class Pair:
    """Both gradients of a layer: nodes in execution order, what they share, what may stay."""

    nodes: tuple[Node, Node]
    dx: Node
    dw: Node

    @property
    def dy(self) -> str:
        """What both read."""
        return self.dx.inputs[0]

    @property
    def weight(self) -> str:
        """What dX reads besides."""
        return self.dx.inputs[1]

    @property
    def x(self) -> str:
        """What dW reads besides."""
        return next((t for t in self.dw.inputs[:2] if t != self.dy), self.dy)


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
    form: Literal["tile", "element"] = "tile"

    def __post_init__(self) -> None:
        if not 0 <= self.reserved_bytes < self.buffer_bytes:
            raise GraphError(
                f"{self.reserved_bytes} of {self.buffer_bytes} bytes of buffer are reserved"
            )

    def __call__(self, graph: Graph) -> Graph:
        """The graph with a group for each pair that fits, behind the groups it had."""
        axis = batch_axis(graph, self.batch)
        groups, nodes = [], list(graph.nodes)
        for pair in gradient_pairs(graph, axis):
            if self.form == "tile":
                group = self._group(graph, axis, pair)
            else:
                names = tuple(n.name for n in pair.nodes)
                group = Group(names, interleaved=True) if interleaves(graph, pair) else None
            groups += [group] if group else []
            # so in both forms, whichever fits: layers may then take either
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
        dw = pair.dw.outputs[0]
        sums = prod(graph[dw].shape) * self.bytes_per.partial
        for kept, taken in (((dw, pair.weight), sums + weight), ((dw,), sums), ((), 0)):
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
            pairs.append(Pair((first, second), dx[0], dw[0]))
    return sorted(pairs, key=lambda pair: place[pair.nodes[0].name])


def interleaves(graph: Graph, pair: Pair) -> bool:
    """True when dX lies as X and dW as W, so that one walk over dY, W and X serves both."""
    dx, dw, x = pair.dx, pair.dw, pair.x
    if (dx.op == "conv_dx") != (dw.op == "conv_dw") or any(len(n.inputs) > 2 for n in (dx, dw)):
        return False
    if graph[x].shape != graph[dx.outputs[0]].shape:
        return False
    if graph[dw.outputs[0]].shape != graph[pair.weight].shape:
        return False
    if dx.op == "conv_dx":
        names = ("strides", "pads", "dilations", "group")
        alike = all(dx.attributes[name] == dw.attributes[name] for name in names)
        alike &= dw.inputs == (x, pair.dy)
        # in smaller images some filter places meet no pixel
        reached = zip(graph[x].shape[2:], dx.attributes["strides"], strict=True)
        return alike and all(size >= stride for size, stride in reached)
    # dX = dY W^T with dW = X^T dY, or dX = dY W with dW = dY^T X
    turned = bool(dx.attr("trans_b", False))
    order = (x, pair.dy) if turned else (pair.dy, x)
    flags = dx.attr("trans_a", False), dw.attr("trans_a", False), dw.attr("trans_b", False)
    return flags == (False, True, False) and dw.inputs == order and len(graph[x].shape) == 2


def pair_of(graph: Graph, group: Group) -> Pair:
    """The pair that an interleaved group is; raises GraphError when it is none."""
    nodes = tuple(n for n in graph.nodes if n.name in group.nodes)
    for dx, dw in (nodes, nodes[::-1]) if len(nodes) == 2 else ():
        pair = Pair((nodes[0], nodes[1]), dx, dw)
        gemms = dx.op in ("conv_dx", "matmul") and dw.op in ("conv_dw", "matmul")
        if gemms and pair.dy in dw.inputs and interleaves(graph, pair):
            return pair
    raise GraphError(f"group [{', '.join(group.nodes)}] is interleaved and no dX and dW of a layer")
