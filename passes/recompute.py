"""Pass `recompute`: what the backward pass needs again is made anew from what is stored anyway.

before:  %z: float[8, 4] = map(%y, %m, %i) {exprs=("max((a - b) * c, 0)",)}  # relu forward
         %dw: float[4, 4] = matmul(%z, %dy) {…}  # dw backward
         %s: accum[8, 1] = reduce(%y, %dz) {…}  # norm/grad backward
after:   %z: float[8, 4] = map(%y, %m, %i) {exprs=("max((a - b) * c, 0)",)}  # relu forward
         %z.again: float[8, 4] = map(%y, %m, %i) {…}  # relu/again backward
         %dw: float[4, 4] = matmul(%z.again, %dy) {…}  # dw backward
         %s: accum[8, 1] = reduce(%y, %dz) {…}  # norm/grad backward

Here y is read by the backward pass anyway, so z need not be kept from forward to backward: where
a group of nodes runs on chip it is then never written to DRAM at all.

Which tensors are kept is a minimum cut.  A tensor made by a node that may run again is either
kept, for twice its bytes (a write and a read), or made anew, for which all that the node reads
has to be there.  With a vertex pair per tensor, joined by an edge of that price, edges without
limit from each pair to the pairs made from it, a source at what cannot be made anew and a sink at
what the backward pass reads, the cut edges are what to keep (the idea of Chen et al. 2016, with
prices).  Among cuts of equal price the one that makes least anew is taken.

Before that, gradients of activations in front of max pools are taken behind them, where the mask
is what the pool made (passes/pool_masks.py); after it, gradients of pools that are read again
behind a barrier are made anew there (passes/gradients_again.py).

    none    nothing is made anew
    cheap   vector work that reads hardly more than it writes: norms' apply steps, activations,
            average pools, concatenations, slices; reading its operand costs what reading its
            result would
    layers  also convolutions, as long as one takes at most `macs_per_byte` for each byte saved

With `room_bytes`, some tensors are stored where too much of what is made anew would have to be in
the buffer at once (passes/room_again.py).

Under `layers`, what a norm normalises is made anew in the forward pass too, where the norm waits
for the whole batch: the results of a convolution are then not even stored for that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate
from typing import ClassVar, Literal

import networkx as nx

from ccnn.passes.batch_axis import batch_axis
from ccnn.passes.gradients_again import gradients_again
from ccnn.passes.graph import Graph, GraphError, Node, Tensor
from ccnn.passes.ops import op_named
from ccnn.passes.pool_masks import mask_behind_pools
from ccnn.passes.prune import live_nodes
from ccnn.passes.room_again import with_room
from ccnn.passes.steps import ElementBytes, make_steps

MACS_PER_BYTE = 50.0
"""What `layers` pays where nothing else was asked for."""

LAYER_OPS = ("conv", "conv_dx", "matmul")
_READ_BY_ARRAY = (*LAYER_OPS, "conv_dw")
VECTOR_OPS = ("map", "concat", "slice", "pad", "reshape", "expand", "transpose", "window_sum")
"""May run again under `cheap`."""


@dataclass(frozen=True)
class Recompute:
    """Makes tensors anew in the backward pass instead of keeping them from the forward pass."""

    name: ClassVar[str] = "recompute"
    recompute: Literal["none", "cheap", "layers"] = "cheap"
    most_read: float = 1.25
    """A node is cheap when it reads at most this many times the bytes that it writes."""
    macs_per_byte: float = MACS_PER_BYTE
    """What `layers` pays: multiply-accumulates for a byte that need not be kept."""
    least_bytes: int = 64 * 2**10
    """What is smaller is kept: a kernel costs more than its bytes."""
    room_bytes: float = 0.0
    """What lives at once of one sample in the backward pass had better fit in here; 0: no limit."""
    bytes_per: ElementBytes = field(default_factory=ElementBytes)

    def __post_init__(self) -> None:
        if self.recompute not in ("none", "cheap", "layers"):
            raise GraphError(f"recompute '{self.recompute}' is none of none, cheap, layers")

    def __call__(self, graph: Graph) -> Graph:
        """The graph of primitives with nodes that run again before their first backward use."""
        if self.recompute == "none":
            return graph
        graph = mask_behind_pools(graph)
        waits = _waits(graph)
        # between barriers the operand of an average is not at hand: it would be one more read
        pools = {o for n in graph.nodes if n.op == "window_sum" for o in n.outputs if waits}
        whole = self._with(graph, frozenset(pools))
        if self.room_bytes and not waits:
            whole = with_room(partial(self._with, graph), whole, self.room_bytes, self.bytes_per)
        return gradients_again(whole, _waits(whole), self.bytes_per)

    def _with(self, graph: Graph, stored: frozenset[str]) -> Graph:
        """The graph with nodes that run again, none of which makes what is to be stored."""
        again = self._chosen(graph, stored)
        return _run_again(graph, again, self._early(graph, again)) if again else graph

    def _chosen(self, graph: Graph, stored: frozenset[str] = frozenset()) -> set[str]:
        """Tensors to make anew."""
        forward = {o for n in graph.nodes if n.phase in ("forward", "loss") for o in n.outputs if o}
        wanted = [i for n in graph.nodes if n.phase == "backward" for i in n.inputs if i in forward]
        net = nx.DiGraph()
        for name in forward:
            net.add_edge(("made", name), ("kept", name), capacity=self._price(graph, name))
            node = graph.producer[name]
            if name in stored or not self.may_run_again(graph, node):
                net.add_edge("source", ("made", name))
                continue
            for i in filter(None, node.inputs):
                if i in forward:
                    net.add_edge(("kept", i), ("made", name))
                elif graph[i].role == "input":
                    net.add_edge("source", ("kept", i), capacity=self._bytes(graph, i))
                    net.add_edge(("kept", i), ("made", name))
        for name in wanted:
            net.add_edge(("kept", name), "sink")
        if "sink" not in net or "source" not in net:
            return set()
        # of equal cuts networkx finds the one nearest to the sink: the least is made anew
        _, (_, near) = nx.minimum_cut(net, "source", "sink")
        return {v[1] for v in near if isinstance(v, tuple) and v[0] == "made"}

    def _early(self, graph: Graph, again: set[str]) -> set[str]:
        """Results of layers to be made anew in the forward pass too, by those who wait for a
        whole batch: what a norm normalises is then not stored for it, if what the layer reads
        is less."""
        waits, place = _waits(graph), {n.name: k for k, n in enumerate(graph.nodes)}
        found: set[str] = set()
        for node in graph.nodes:
            if node.op != "conv" or node.phase != "forward" or node.outputs[0] not in again:
                continue
            made = node.outputs[0]
            readers = [n for n in graph.consumers[made] if n.phase == "forward"]
            read = _read_again(graph, node, again)
            less = 2 * self._bytes(graph, made) - sum(self._bytes(graph, i) for i in read)
            if (
                any(waits.get(n.name, -1) > place[node.name] for n in readers)
                and found.isdisjoint(read)
                and self._macs(graph, node) <= self.macs_per_byte * less
            ):
                found.add(made)
        return found

    def _bytes(self, graph: Graph, name: str) -> int:
        return graph[name].size * self.bytes_per.of(graph[name].dtype)

    def _price(self, graph: Graph, name: str) -> int:
        """A write and a read; the write is due anyway for what must outlast the step."""
        node = graph.producer[name]
        if node.op == "reshape" and graph[node.inputs[0]].role in ("parameter", "constant"):
            return 0  # another name for what is in memory
        return self._bytes(graph, name) * (1 if name in graph.needed else 2)

    def may_run_again(self, graph: Graph, node: Node) -> bool:
        """Whether the options allow to make the node's results a second time."""
        made = sum(self._bytes(graph, o) for o in node.outputs if o)
        if made < self.least_bytes and node.op != "reshape":
            return False
        if node.op in VECTOR_OPS:
            read = sum(graph[i].size for i in dict.fromkeys(node.inputs) if i)
            return read <= self.most_read * sum(graph[o].size for o in node.outputs if o)
        if node.op != "conv" or self.recompute != "layers":
            return False
        return self._macs(graph, node) <= self.macs_per_byte * 2 * made

    def _macs(self, graph: Graph, node: Node) -> int:
        inputs = [graph[i] if i else None for i in node.inputs]
        return op_named(node.op).macs(node, inputs, [graph[o] for o in node.outputs])


def _read_again(graph: Graph, node: Node, again: set[str]) -> set[str]:
    """What a layer that runs again in the forward pass reads from memory: its operands, or what
    vector work makes them from."""
    found: set[str] = set()
    for name in filter(None, node.inputs):
        maker = graph.producer.get(name)
        if name in again and maker is not None and maker.op in VECTOR_OPS:
            found |= _read_again(graph, maker, again)
        else:
            found.add(name)
    return found


def _run_again(graph: Graph, again: set[str], early: set[str]) -> Graph:
    """Each tensor of `again` made anew right before the first backward node that needs it.

    And once more before the first that needs it behind a barrier, where the whole batch has to be
    complete: no sub-batch loop leads across, so it would have to be stored after all.  Once more,
    too, some layers later, where the node that needs it reads what it is made from anyway: kept so
    long it would take room and tie modules together that can run one after the other.

    Those of `early` also for forward nodes that wait for the whole batch.
    """
    waits = _waits(graph)
    place = {n.name: k for k, n in enumerate(graph.nodes)}
    new = _Copies(graph, again)
    forward = new.beside(VECTOR_OPS)
    for k, node in enumerate(graph.nodes):
        if node.phase == "forward" and not early.isdisjoint(node.inputs):
            after = waits.get(node.name, -1)
            inputs = tuple(
                forward.renew(i, k, after)
                if i in early and after > place[graph.producer[i].name]
                else i
                for i in node.inputs
            )
            new.nodes += forward.nodes
            forward.nodes = []
            node = replace(node, inputs=inputs)
        if node.phase == "backward":
            after = waits.get(node.name, -1)
            inputs = tuple(new.renew(i, k, max(after, new.stale(i, k))) for i in node.inputs)
            node = replace(node, inputs=inputs)
        new.nodes.append(node)
    whole = graph.with_nodes(new.nodes, [*new.tensors, *forward.tensors])
    return whole.with_nodes(live_nodes(whole))


def _waits(graph: Graph) -> dict[str, int]:
    """Node name to the position of the last node of which it needs the result of all samples."""
    if not any(t.shape for t in graph.of_role("input")):
        return {}
    steps = make_steps(graph, batch_axis(graph), ElementBytes())
    place = {n.name: k for k, n in enumerate(graph.nodes)}
    return {
        n.name: place[steps.nodes[b].name]
        for n, b in zip(steps.nodes, steps.barrier, strict=True)
        if b >= 0
    }


class _Copies:
    """The graph with copies of nodes, as far as it is written."""

    def __init__(self, graph: Graph, again: set[str], through: Sequence[str] = ()) -> None:
        """`through`: ops whose results are made anew for a copy, where not those of all ops are."""
        self.graph, self.again, self.through = graph, again, through
        self.nodes: list[Node] = []
        self.tensors: list[Tensor] = []
        self._names: dict[str, tuple[str, int]] = {}
        layers = [n.op in LAYER_OPS for n in graph.nodes]
        self._layers = list(accumulate(layers, initial=0))
        self._taken = {*graph.tensors, *(n.name for n in graph.nodes)}

    def beside(self, through: Sequence[str]) -> _Copies:
        """Other copies in the same graph."""
        other = _Copies(self.graph, self.again, through)
        other._taken = self._taken
        return other

    def stale(self, name: str, at: int) -> int:
        """The position of the last copy if it is long ago and a new one costs no reads, else -1."""
        _, born = self._names.get(name, ("", -1))
        passed = self._layers[at] - self._layers[born] if born >= 0 else 0
        if passed and self._is_put_together(name) and self.graph.nodes[at].op not in _READ_BY_ARRAY:
            return born
        if passed < 2:
            return -1
        made, there = self.graph[name], {*self.graph.nodes[at].inputs}
        for i in self.graph.producer[name].inputs:
            large = bool(i) and 8 * self.graph[i].size > made.size
            if large and (i in self.again or i not in there):
                return -1
        return born

    def _is_put_together(self, name: str) -> bool:
        """Whether a tensor is a concatenation of what is there anyway."""
        node = self.graph.producer[name] if name in self.again else None
        return node is not None and node.op == "concat" and self.again.isdisjoint(node.inputs)

    def renew(self, name: str, at: int, after: int) -> str:
        """The tensor to read at position `at` for `name`, copied behind position `after`."""
        if name not in self.again:
            return name
        copy, born = self._names.get(name, ("", -1))
        if copy and born > after:
            return copy
        node = self.graph.producer[name]
        inputs = tuple(self.renew(i, at, after) if self._follows(i) else i for i in node.inputs)
        results = {o: self._fresh(f"{o}.again") for o in node.outputs if o}
        self._names |= {o: (c, at) for o, c in results.items() if o in self.again}
        self.tensors += [replace(self.graph[o], name=c) for o, c in results.items()]
        self.nodes.append(
            replace(
                node,
                name=self._fresh(f"{node.name}/again"),
                inputs=inputs,
                outputs=tuple(results.get(o, "") for o in node.outputs),
                phase=self.graph.nodes[at].phase,
            )
        )
        return self._names[name][0]

    def _follows(self, name: str) -> bool:
        """Whether what a copy reads is made anew for it, where it is among those made again."""
        maker = self.graph.producer.get(name)
        return maker is not None and (not self.through or maker.op in self.through)

    def _fresh(self, stem: str) -> str:
        name, k = stem, 1
        while name in self._taken:
            name, k = f"{stem}.{k}", k + 1
        self._taken.add(name)
        return name
