"""A training step as a sequence of kernels and the memory they touch.

What serialization decides about: the nodes that work on batched tensors, in order, without
reshapes (another name for the same bytes) and without the nodes that only touch weights or
statistics.  Here stands what each of them reads and writes, by *store*: a tensor and all its
reshaped forms together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from ccnn.passes.batch_axis import BatchAxis
from ccnn.passes.graph import Graph, Node

ARRAY_OPS = ("conv", "conv_dx", "conv_dw", "matmul")
MOST_MARGIN = 1.125
"""A tensor gets margins for the sake of what is written over it when it grows by no more."""


@dataclass(frozen=True)
class Store:
    """Memory that one tensor and its reshaped forms share; sizes in bytes."""

    name: str
    size: int
    """Of the whole batch."""
    partial: int
    """While it is the sum of some sub-batches."""
    room: float
    """In the buffer: of one sample when batched, margins included, else of the sum."""
    batched: bool
    writer: int
    """Position of the kernel that writes it; -1 when none in the sequence does."""
    readers: tuple[int, ...]
    apart: bool
    """Made by a node outside the sequence, from weights or statistics."""
    outside: bool
    """Read by a node outside the sequence, or needed when the step ends."""
    taken: bool = False
    """Not needed once an update in the epilogue of its layer has read it."""

    def later(self, end: int) -> bool:
        """True when something reads it at position `end` or behind, or outside the sequence."""
        return self.outside or (bool(self.readers) and self.readers[-1] >= end)


@dataclass(frozen=True)
class Steps:
    """The sequence and what it touches."""

    graph: Graph
    axis: BatchAxis
    root: Mapping[str, str]
    """Tensor to the store it lies in."""
    nodes: tuple[Node, ...]
    reads: tuple[tuple[str, ...], ...]
    writes: tuple[tuple[str, ...], ...]
    stores: Mapping[str, Store]
    barrier: tuple[int, ...]
    """Per node: the last position whose result for the whole batch it waits for, or -1."""
    backward: int
    """Position of the first kernel of the backward pass."""
    padded: frozenset[str] = frozenset()
    """Stores that some kernel reads with zeros around their images."""


@dataclass(frozen=True)
class ElementBytes:
    """How many bytes an element takes."""

    element: int = 2
    accum: int = 4
    partial: int = 4
    """A sum over part of the batch, of a tensor of dtype float."""
    margins: bool = False
    """Room in the buffer includes the padding that the kernels reading it add around it."""

    def of(self, dtype: str) -> int:
        """Bytes of one element in memory."""
        return {"float": self.element, "accum": self.accum, "index": 4, "bytes": 1}[dtype]


def storage_roots(graph: Graph) -> dict[str, str]:
    """Each tensor to the one it is a reshaped form of; to itself when it is none."""
    root = {name: name for name in graph.tensors}
    for node in graph.nodes:
        if node.op == "reshape":
            root[node.outputs[0]] = root[node.inputs[0]]
    return root


def make_steps(graph: Graph, axis: BatchAxis, sizes: ElementBytes) -> Steps:
    """The sequence of a graph of primitives."""
    root = storage_roots(graph)
    nodes = tuple(n for n in graph.nodes if n.op != "reshape" and axis.kinds[n.name] != "free")
    reads = tuple(tuple(dict.fromkeys(root[i] for i in n.inputs if i)) for n in nodes)
    writes = tuple(tuple(root[o] for o in n.outputs if o) for n in nodes)
    touched = dict.fromkeys(s for both in zip(reads, writes, strict=True) for t in both for s in t)
    writer = {s: k for k, names in enumerate(writes) for s in names}
    readers: dict[str, list[int]] = {s: [] for s in touched}
    for k, names in enumerate(reads):
        for s in names:
            readers[s].append(k)
    inside = {n.name for n in nodes}
    outside = {root[t] for t in graph.needed} | {
        root[i] for n in graph.nodes if n.op != "reshape" and n.name not in inside
        for i in n.inputs if i
    }  # fmt: skip
    taken = {root[i] for n in graph.nodes if n.attr("fused") for i in n.inputs}
    taken -= {root[t] for t in graph.needed}
    own = _margins(graph, root)
    around = _inherited(graph, root, own)
    margins = around if sizes.margins else {}
    stores = {}
    for s in touched:
        tensor, batched = graph[s], s in axis.rows
        size = tensor.size * sizes.of(tensor.dtype)
        partial = tensor.size * (sizes.partial if tensor.dtype == "float" else sizes.accum)
        room = size / axis.batch * margins.get(s, 1.0) if batched else float(size)
        if not batched and s in writer:
            room = float(partial)
        apart = tensor.role == "value" and s not in writer
        stores[s] = Store(
            s,
            size,
            partial,
            room,
            batched,
            writer.get(s, -1),
            tuple(readers[s]),
            apart,
            s in outside,
            s in taken,
        )
    backward = next((k for k, n in enumerate(nodes) if n.phase == "backward"), len(nodes))
    return Steps(
        graph, axis, root, nodes, reads, writes, stores, _barriers(graph, axis, nodes), backward,
        frozenset(s for s, more in own.items() if more > 1),
    )  # fmt: skip


def _margins(graph: Graph, root: Mapping[str, str]) -> dict[str, float]:
    """By how much the padding around an image makes it larger, for each store that is padded."""
    found: dict[str, float] = {}
    for node in graph.nodes:
        if node.op not in ("conv", "conv_dw", "conv_dx"):
            continue
        shape, pads = graph[node.inputs[0]].shape[2:], node.attr("pads")
        half = len(shape)
        if node.op == "conv_dx":
            around = _reach_of_results(graph, node)
        else:
            around = list(zip(pads[:half], pads[half:], strict=True))
        padded = prod(d + b + a for d, (b, a) in zip(shape, around, strict=True))
        store = root[node.inputs[0]]
        found[store] = max(found.get(store, 1.0), padded / max(prod(shape), 1))
    return found


def _inherited(
    graph: Graph, root: Mapping[str, str], around: Mapping[str, float]
) -> dict[str, float]:
    """The margins, also around what a map reads last and may therefore write its padded result
    over: a gradient gets them before it is one, so that no second region is needed."""
    found, read_later = dict(around), set[str]()
    for node in reversed(graph.nodes):
        own = {root[i] for i in node.inputs if i}
        margin = found.get(root[node.outputs[0]], 1.0) if node.op == "map" else 1.0
        if 1 < margin <= MOST_MARGIN and len(node.outputs) == 1:
            out = graph[node.outputs[0]]
            for name in node.inputs:
                maker = graph.producer.get(root[name]) if name else None
                if maker is None or maker.phase != node.phase or root[name] in read_later:
                    continue
                if (graph[name].shape, graph[name].dtype) == (out.shape, out.dtype):
                    found.setdefault(root[name], margin)
                    break
        read_later |= own if node.op != "reshape" else set()
    return found


def _reach_of_results(graph: Graph, node: Node) -> list[tuple[int, int]]:
    """How far before and behind dY a data gradient reads, along each axis of the image."""
    dy, weights, dx = (graph[t].shape[2:] for t in (*node.inputs[:2], node.outputs[0]))
    pads, strides, dilations = (node.attr(k) for k in ("pads", "strides", "dilations"))
    found = []
    for p, r, h, pad, stride, dilation in zip(
        dy, weights, dx, pads, strides, dilations, strict=False
    ):
        first = -(((r - 1) * dilation - pad) // stride)  # of the results of row 0 …
        last = (h - 1 + pad) // stride
        found.append((max(0, -first), max(0, last - p + 1)))
    return found


def _barriers(graph: Graph, axis: BatchAxis, nodes: tuple[Node, ...]) -> tuple[int, ...]:
    place = {n.name: k for k, n in enumerate(nodes)}
    after: dict[str, int] = {}  # tensor to the position that the whole of it is there after
    found = [-1] * len(nodes)
    for node in graph.nodes:
        kind, at = axis.kinds[node.name], place.get(node.name)
        waits = max((after.get(i, -1) for i in node.inputs if i), default=-1)
        if at is not None:
            found[at] = at if kind == "mixes" else waits
            if kind != "keeps":
                after |= dict.fromkeys(node.outputs, at)
        elif kind == "mixes":  # a reshape that tears samples apart
            after[node.outputs[0]] = max(waits, _written_at(graph, node, place))
        else:
            after |= dict.fromkeys(node.outputs, waits)
    return tuple(found)


def _written_at(graph: Graph, node: Node, place: Mapping[str, int]) -> int:
    """Where the tensor that a reshape shows is written; -1 when not in the sequence."""
    source: Node | None = node
    while source is not None and source.op == "reshape":
        source = graph.producer.get(source.inputs[0])
    return place.get(source.name, -1) if source is not None else -1
