"""Which rows of each image the nodes of a run work on when they run band by band.

A band is some rows of the run's coarsest tensor; where a tensor is finer by a factor f (what the
strides in between multiply to) a band of `rows` rows is rows f of its rows.  These a band *owns*:
together the bands own each row once.  What it *needs* is more, since windows overlap.  A result
of rows [a, b) is made from rows

    [a s - before, (b - 1) s - before + (r - 1) d + 1)      of the input of a window or convolution
    [(a + before - (r - 1) d) / s, (b - 1 + before) / s]    of dY, for the gradient of its input
    [a, b)                                                  of an operand of a map

(kernel r, stride s, dilation d), and followed back through the run

    needs(input) = union of what its readers need for needs(result)
    needs(result) = that, and what the band owns

is an affine rule, clamped to the image: rows at the edge of a band are made in both bands, while
what lies outside the image stays the zeros (or the lowest value) that the node puts there.  Sums
over rows take what the band owns, so that no row counts twice.

Bands may also *carry* rows: of a tensor made in the run, a band then makes only the rows behind
those that the band before it had,

    makes(result, band) = [end of needs(result, band - 1), end of needs(result, band))

and the rows above, which its readers need, are still there.  No row is made twice then.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property

from ccnn.passes.graph import Graph, Node, Tensor
from ccnn.passes.row_work import AXIS, NoBands, Rows, Work, work_of


def _hull(a: Rows | None, b: Rows) -> Rows:
    return b if a is None else (min(a[0], b[0]), max(a[1], b[1]))


@dataclass(frozen=True)
class Part:
    """What one band does at one node."""

    node: Node
    """With the padding and the result's shape that its part of the rows has."""
    views: Mapping[str, Rows]
    """The rows it reads or makes of each tensor that has rows."""


@dataclass(frozen=True)
class Stripe:
    """Bands one after the other that differ only in where they start."""

    band: int
    """The first of them."""
    count: int


@dataclass(frozen=True)
class Totals:
    """Rows over all bands of an image; those of two bands count twice."""

    needed: Mapping[str, int]
    """Of each tensor, when a band fetches or makes it once."""
    read: Mapping[str, int]
    """Of each tensor, when every node that reads it fetches what it needs."""
    worked: Mapping[str, int]
    """By node: of the tensor that says how much it works."""


def _length(rows: Rows) -> int:
    return rows[1] - rows[0]


@dataclass(frozen=True)
class _Flow:
    """Rows of one band, by tensor."""

    needs: dict[str, Rows]
    makes: dict[str, Rows]
    reads: dict[str, Rows]


@dataclass(frozen=True)
class RowBands:
    """A run of nodes cut into bands of `rows` rows of its coarsest tensor."""

    graph: Graph
    nodes: tuple[Node, ...]
    rows: int
    works: Mapping[str, Work]
    scale: Mapping[str, int]
    """Rows of each tensor beside one row of the coarsest."""
    carry: bool = False
    """Rows of tensors made in the run are carried from band to band."""

    def height(self, tensor: str) -> int:
        """All rows of a tensor."""
        return self.graph[tensor].shape[AXIS]

    @cached_property
    def count(self) -> int:
        """Bands of an image."""
        return max(1, min(self.height(t) // (self.rows * f) for t, f in self.scale.items()))

    def step(self, tensor: str) -> int:
        """Rows of a tensor from one band to the next."""
        return self.rows * self.scale[tensor]

    def owns(self, tensor: str, band: int) -> Rows:
        """The rows that belong to this band alone; the last band takes what is left over."""
        step = self.step(tensor)
        last = band == self.count - 1
        return band * step, self.height(tensor) if last else (band + 1) * step

    def clamp(self, tensor: str, rows: Rows) -> Rows:
        """What of the rows lies inside the image."""
        return max(0, rows[0]), min(self.height(tensor), rows[1])

    def needs(self, band: int) -> dict[str, Rows]:
        """The rows of each tensor that are there while a band makes or reads it."""
        return self._flows[band].needs

    def makes(self, band: int) -> dict[str, Rows]:
        """The rows of each tensor of the run that a band makes."""
        return self._flows[band].makes

    def carries(self, band: int) -> dict[str, Rows]:
        """The rows that a band reads and the band before it made, where they are carried."""
        flow = self._flows[band]
        if not self.carry:
            return {}
        return {
            t: (flow.reads[t][0], low)
            for t, (low, _) in flow.makes.items()
            if t in flow.reads and flow.reads[t][0] < low
        }

    def publishes(self, tensor: str, band: int) -> Rows:
        """The rows that a band stores where somebody else needs the tensor."""
        owned = self.owns(tensor, band)
        return self.makes(band).get(tensor, owned) if self.carry else owned

    @cached_property
    def _flows(self) -> tuple[_Flow, ...]:
        flows: list[_Flow] = []
        for band in range(self.count):
            flows.append(self._flow(band, flows[-1].needs if flows and self.carry else {}))
        return tuple(flows)

    def _flow(self, band: int, before: Mapping[str, Rows]) -> _Flow:
        """What a band needs and makes behind the rows of the band `before`, where it carries."""
        flow = _Flow({}, {}, {})
        needs, makes, reads = flow.needs, flow.makes, flow.reads
        for node in reversed(self.nodes):
            work = self.works[node.name]
            rows = self.owns(work.driver, band)
            if not work.sums:
                for out in node.outputs:
                    rows = _hull(needs.get(out), rows)
                made = rows
                if before:
                    made = rows = before[work.driver][1], rows[1]
                    for out in node.outputs:
                        rows = _hull(needs.get(out), rows)
                needs |= dict.fromkeys(node.outputs, rows)
                makes |= dict.fromkeys(node.outputs, made)
                for alike in self._alike(node) if before else ():
                    needs[alike] = rows
                rows = made
            for link in work.links:
                read = self.clamp(link.tensor, link.reads(rows))
                needs[link.tensor] = _hull(needs.get(link.tensor), read)
                reads[link.tensor] = _hull(reads.get(link.tensor), read)
        return flow

    def _alike(self, node: Node) -> list[str]:
        """Operands of a map that nobody else here reads: lying as its result does, they can give
        their place to it."""
        made = {o for n in self.nodes for o in n.outputs}
        readers = Counter(i for n in self.nodes for i in dict.fromkeys(n.inputs))
        links = self.works[node.name].links if node.op == "map" else ()
        return [k.tensor for k in links if k.tensor in made and readers[k.tensor] == 1]

    def parts(self, band: int) -> dict[str, Part]:
        """What a band does at each node, by the node's name."""
        makes = self.makes(band)
        made = {}
        for node in self.nodes:
            work = self.works[node.name]
            rows = self.owns(work.driver, band) if work.sums else makes[work.driver]
            views = {t: rows for t in node.outputs if not work.sums}
            for link in work.links:
                views[link.tensor] = self.clamp(link.tensor, link.reads(rows))
            made[node.name] = Part(_on_rows(node, work, rows, views), views)
        return made

    @cached_property
    def totals(self) -> Totals:
        """How many rows all bands together need, read and make."""
        needed: Counter[str] = Counter()
        read: Counter[str] = Counter()
        worked: Counter[str] = Counter()
        for stripe in self.stripes:
            for tensor, (low, high) in self.needs(stripe.band).items():
                needed[tensor] += (high - low) * stripe.count
            for name, part in self.parts(stripe.band).items():
                work = self.works[name]
                worked[name] += _length(part.views[work.driver]) * stripe.count
                for link in work.links:
                    read[link.tensor] += _length(part.views[link.tensor]) * stripe.count
        return Totals(needed, read, worked)

    @cached_property
    def carried(self) -> dict[str, int]:
        """The most rows of each tensor that are carried from a band to the next."""
        found: dict[str, int] = {}
        for stripe in self.stripes:
            for tensor, rows in self.carries(stripe.band).items():
                found[tensor] = max(found.get(tensor, 0), _length(rows))
        return found

    @cached_property
    def tallest(self) -> dict[str, int]:
        """The most rows of each tensor that a band needs."""
        found: dict[str, int] = {}
        for stripe in self.stripes:
            for tensor, rows in self.needs(stripe.band).items():
                found[tensor] = max(found.get(tensor, 0), _length(rows))
        return found

    @cached_property
    def stripes(self) -> tuple[Stripe, ...]:
        """All bands in order; the first and the last stand alone."""
        found: list[Stripe] = []
        before: object = None
        for band in range(self.count):
            views = [self.needs(band), self.makes(band), self.carries(band)]
            views.append(self.carries(band + 1) if band + 1 < self.count else {})
            shape = [
                {t: (r[0] - band * self.step(t), r[1] - band * self.step(t)) for t, r in v.items()}
                for v in views
            ]
            if found[1:] and shape == before and band < self.count - 1:
                found[-1] = Stripe(found[-1].band, found[-1].count + 1)
            else:
                found.append(Stripe(band, 1))
            before = shape
        return tuple(found)


def _on_rows(node: Node, work: Work, rows: Rows, views: Mapping[str, Rows]) -> Node:
    """The node as it works on these rows: padding only where the image ends."""
    link = next((k for k in work.links if k.slide), None)
    if link is None or link.slide is None:
        return node
    low, high = views[link.tensor]
    if link.back:
        before = link.slide.before + rows[0] - low * link.slide.stride
        covered = link.slide.reads((0, high - low))[1] + link.slide.before
        after = max(0, covered - before - _length(rows))
    else:
        first, last = link.reads(rows)
        before, after = low - first, last - high
    changed: dict[str, tuple[int, ...]] = {}
    if node.op.startswith("conv"):
        _, left, _, right = node.attr("pads")
        changed["pads"] = (before, left, after, right)
    else:
        for name, value in (("before", before), ("after", after)):
            old = node.attr(name)
            changed[name] = (*old[:AXIS], value, *old[AXIS + 1 :])
    if link.back:
        shape = node.attr("shape")
        changed["shape"] = (*shape[:AXIS], _length(rows), *shape[AXIS + 1 :])
    return node.with_attrs(**changed)


def row_bands(graph: Graph, nodes: Sequence[Node], rows: int, carry: bool = False) -> RowBands:
    """A run of nodes in bands of so many rows, that `carry` rows from one to the next or make them
    again; raises NoBands when it cannot be cut so."""
    works = {n.name: work_of(graph, n) for n in nodes}
    scale = _scales(works, nodes)
    made: set[str] = set()
    for node in nodes:
        made |= set(node.outputs) if works[node.name].sums else set()
        read = made & set(node.inputs)
        if read:
            raise NoBands(f"'{node.name}' reads '{min(read)}', a sum over all rows")
    bands = RowBands(graph, tuple(nodes), rows, works, scale, carry)
    for band in range(bands.count):
        for tensor, (low, high) in (*bands.needs(band).items(), *bands.makes(band).items()):
            if low >= high or bands.owns(tensor, band)[0] >= bands.height(tensor):
                raise NoBands(f"'{tensor}' has no rows in band {band}")
    return bands


def _scales(works: Mapping[str, Work], nodes: Sequence[Node]) -> dict[str, int]:
    """Rows of each tensor beside one row of the coarsest."""
    ties: dict[str, list[tuple[str, int, int]]] = {}
    for node in nodes:
        work = works[node.name]
        same = [(o, 1, 1) for o in node.outputs] if not work.sums else []
        for k in work.links:
            stride = k.slide.stride if k.slide else 1
            same.append((k.tensor, 1, stride) if k.back else (k.tensor, stride, 1))
        for tensor, up, down in same:
            ties.setdefault(work.driver, []).append((tensor, up, down))
            ties.setdefault(tensor, []).append((work.driver, down, up))
    start = works[nodes[0].name].driver
    found = {start: Fraction(1)}
    queue = [start]
    while queue:
        at = queue.pop()
        for tensor, up, down in ties[at]:
            value = found[at] * up / down
            if tensor not in found:
                found[tensor] = value
                queue.append(tensor)
            elif found[tensor] != value:
                raise NoBands(f"rows of '{tensor}' are reached by different strides")
    if len(found) < len(ties):
        raise NoBands("the nodes do not hang together")
    least = min(found.values())
    if any((f / least).denominator > 1 for f in found.values()):
        raise NoBands("strides that do not divide each other")
    return {t: int(f / least) for t, f in found.items()}


def banded(tensor: Tensor, rows: Rows) -> Tensor:
    """A tensor of only so many rows."""
    return replace(tensor, shape=(*tensor.shape[:AXIS], _length(rows), *tensor.shape[AXIS + 1 :]))
