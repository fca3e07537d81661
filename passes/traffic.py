"""What a group costs in DRAM bytes, and the room it takes in the buffer.

A group runs I = ceil(N / sub_batch) iterations.  With c nodes of the group that read a store of
`size` bytes (of the whole batch where it is batched):

    batched, resident          written inside: no reads, and one write when needed later;
                               else one read
    batched, not resident      c reads; one write when written inside
    weight (not written)       I c reads; kept: one read
    sum over the batch         one write; not kept, also I - 1 reads and writes of partial sums;
                               no write when an update in the layer's epilogue takes it all

What a group leaves in the buffer the next one does not read, and is not written where only the two
need it; what the group itself only reads, it then reads once.

A group that runs by rows has an iteration a band, and reads the rows that two bands need twice.

Summed over all groups, with every node outside a group as a group of its own of one iteration,
and a read of each input and a write of each result of the nodes that only touch weights, this is
the traffic of the step.  Tiles that are read more than once because a kernel cannot hold
what it works on are not counted.

The room of a group is the most that its resident stores take at one node, sub_batch times the
bytes of a sample, and what is kept; a store is there from its first use in the group to its last.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import ceil

from ccnn.passes.batch_axis import batch_axis
from ccnn.passes.graph import Graph, Group, Node
from ccnn.passes.row_bands import RowBands, row_bands
from ccnn.passes.steps import ElementBytes, Steps, Store, make_steps


@dataclass(frozen=True)
class Use:
    """How a group uses a store."""

    store: Store
    first: int
    last: int
    """Positions of the first and last node of the group that touch it."""
    reads: int
    """Nodes of the group that read it."""
    written: bool
    later: bool
    """Written inside and needed behind the group."""

    @property
    def can_reside(self) -> bool:
        """True when living in the buffer saves traffic."""
        return self.store.batched and self.reads >= (1 if self.written else 2)

    def saved(self) -> int:
        """Bytes that living in the buffer saves."""
        if not self.written:
            return (self.reads - 1) * self.store.size
        return (self.reads + (not self.later)) * self.store.size

    def moved(self, iterations: int) -> tuple[int, int]:
        """Bytes (read, written) when the store lives in DRAM."""
        size, partial = self.store.size, self.store.partial * (iterations - 1)
        if self.store.batched:
            return self.reads * size, self.written * size
        if self.written:
            return self.reads * size + partial, (0 if self.store.taken else size) + partial
        return self.reads * size * iterations, 0

    def moved_on_chip(self) -> tuple[int, int]:
        """Bytes (read, written) when the store is resident or kept."""
        size, written = self.store.size, self.written
        write = written and (self.later or not self.store.batched) and not self.store.taken
        return 0 if written else size, size if write else 0


def uses(steps: Steps, i: int, j: int) -> dict[str, Use]:
    """What the nodes at positions i … j - 1 use, as one group."""
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    reads: dict[str, int] = {}
    for k in range(i, j):
        for s in steps.reads[k]:
            first.setdefault(s, k)
            last[s] = k
            reads[s] = reads.get(s, 0) + 1
        for s in steps.writes[k]:
            first.setdefault(s, k)
            last[s] = k
    found = {}
    for s, at in first.items():
        store = steps.stores[s]
        written = i <= store.writer < j
        found[s] = Use(store, at, last[s], reads.get(s, 0), written, written and store.later(j))
    return found


def looped(steps: Steps, i: int, j: int) -> bool:
    """True when the nodes at i … j - 1 may run in sub-batches: none waits for another's whole."""
    return all(steps.barrier[k] < i for k in range(i, j))


def moved(found: dict[str, Use], iterations: int, on_chip: Collection[str]) -> tuple[int, int]:
    """Bytes (read, written) of a group whose resident and kept stores are `on_chip`."""
    read = written = 0
    for name, use in found.items():
        r, w = use.moved_on_chip() if name in on_chip else use.moved(iterations)
        read, written = read + r, written + w
    return read, written


def moved_by_rows(
    found: dict[str, Use], bands: RowBands, batch: int, on_chip: Collection[str]
) -> tuple[int, int]:
    """Bytes (read, written) of a group that runs sample by sample in bands of rows."""
    read = written = 0
    for name, use in found.items():
        store, totals = use.store, bands.totals
        if use.written or not (store.batched or name in bands.scale):
            count = batch * bands.count
            r, w = use.moved_on_chip() if name in on_chip else use.moved(count)
        else:
            times = use.reads * bands.count if name not in on_chip else bands.count
            r, w = times * store.size, 0
            if name in bands.scale:
                rows = (totals.needed if name in on_chip else totals.read)[name]
                r = store.size * rows // bands.height(name) * (1 if store.batched else batch)
        read, written = read + r, written + w
    return read, written


Side = tuple[tuple[int, int], Mapping[str, Use], Collection[str]]
"""A group: its positions (first, one past the last), what it uses, and what is resident."""


def handed(steps: Steps, name: str, samples: int, one: Side, other: Side) -> tuple[int, int]:
    """Bytes (read, written) that are saved when so many samples of a store stay in the buffer
    from one group to the next."""
    store = steps.stores[name]
    size = store.size * samples // steps.axis.batch

    def reads(side: Side) -> int:
        _, found, resident = side
        return min(1, found[name].reads) if name in resident else found[name].reads

    if not one[1][name].written:
        return (reads(one) - 1 + reads(other)) * size, 0
    inside = {k for (low, high), *_ in (one, other) for k in range(low, high)}
    only = not store.outside and inside.issuperset(store.readers)
    return reads(other) * size, size if only else 0


def iterations_of(sub_batch: int, batch: int) -> int:
    """How often a group runs."""
    return ceil(batch / sub_batch) if sub_batch else 1


@dataclass(frozen=True)
class Traffic:
    """Estimated DRAM bytes."""

    read: int = 0
    written: int = 0

    @property
    def total(self) -> int:
        """Both ways."""
        return self.read + self.written

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.read + other.read, self.written + other.written)


def estimate(graph: Graph, sizes: ElementBytes | None = None, batch: int = 0) -> Traffic:
    """The traffic of a step of primitives, by its groups and the formula above."""
    sizes = sizes or ElementBytes()
    steps = make_steps(graph, batch_axis(graph, batch), sizes)
    place = {n.name: k for k, n in enumerate(steps.nodes)}
    result = Traffic()
    for group in graph.groups:
        result += _group_traffic(steps, group, place)
    for one, other in pairwise(graph.groups):
        sides = [_side(steps, group, place) for group in (one, other) if one.left]
        for name in one.left:
            read, written = handed(steps, steps.root[name], one.left_samples, *sides)
            result += Traffic(-read, -written)
    grouped = {n for g in graph.groups for n in g.nodes}
    for name, k in place.items():
        if name not in grouped:
            result += Traffic(*moved(uses(steps, k, k + 1), 1, ()))
    for node in graph.nodes:
        if node.name not in place and node.op != "reshape":
            result += _apart(steps, node, sizes)
    return result


def _apart(steps: Steps, node: Node, sizes: ElementBytes) -> Traffic:
    """A node that touches only weights and statistics: all of its inputs and results."""
    group = steps.graph.group_of.get(node.name)
    kept = {steps.root[t] for t in group.kept} if group else set()
    if node.attr("fused"):  # the gradient comes as tiles of its layer
        kept |= {steps.root[i] for i in node.inputs if i in steps.graph.producer}

    def size(names: Iterable[str]) -> int:
        tensors = [steps.graph[t] for t in {steps.root[t] for t in names if t} - kept]
        return sum(t.size * sizes.of(t.dtype) for t in tensors)

    return Traffic(size(node.inputs), size(node.outputs))


def _side(steps: Steps, group: Group, place: Mapping[str, int]) -> Side:
    inside = [place[n] for n in group.nodes if n in place]
    span = inside[0], inside[-1] + 1
    return span, uses(steps, *span), {steps.root[t] for t in group.resident}


def _group_traffic(steps: Steps, group: Group, place: dict[str, int]) -> Traffic:
    inside = [place[n] for n in group.nodes if n in place]
    found = uses(steps, inside[0], inside[-1] + 1) if inside else {}
    on_chip = {steps.root[t] for t in (*group.resident, *group.kept)}
    if group.rows:
        nodes = steps.nodes[inside[0] : inside[-1] + 1]
        bands = row_bands(steps.graph, nodes, group.rows, group.carried)
        return Traffic(*moved_by_rows(found, bands, steps.axis.batch, on_chip))
    return Traffic(*moved(found, iterations_of(group.sub_batch, steps.axis.batch), on_chip))
