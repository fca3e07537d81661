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
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property

from ccnn.passes.graph import Graph, Node, Tensor

Rows = tuple[int, int]
"""First row, and one past the last."""

AXIS = 2
"""The dim of [N, C, H, W] that holds the rows."""


@dataclass(frozen=True)
class Slide:
    """How a window slides over rows: result p reads rows p*stride - before + r*dilation."""

    kernel: int
    stride: int
    dilation: int
    before: int

    def reads(self, results: Rows) -> Rows:
        """Rows that these results read, inside the image or not."""
        low, high = (p * self.stride - self.before for p in (results[0], results[1] - 1))
        return low, high + (self.kernel - 1) * self.dilation + 1

    def results(self, rows: Rows) -> Rows:
        """The results that read any of these rows, inside the image or not."""
        span = (self.kernel - 1) * self.dilation
        low = -((span - rows[0] - self.before) // self.stride)
        return low, (rows[1] - 1 + self.before) // self.stride + 1


@dataclass(frozen=True)
class Link:
    """An input with rows, and how they follow from the rows the node works on."""

    tensor: str
    slide: Slide | None = None
    """None: the same rows."""
    back: bool = False
    """The input holds the results of the slide, and the node works on what they read."""

    def reads(self, rows: Rows) -> Rows:
        """Rows of the input, inside the image or not."""
        if self.slide is None:
            return rows
        return self.slide.results(rows) if self.back else self.slide.reads(rows)


@dataclass(frozen=True)
class Work:
    """What a node does with rows."""

    driver: str
    """The tensor whose rows say which part of its work the node does: a result, or what it sums."""
    links: tuple[Link, ...]
    sums: bool = False
    """It adds up over the rows."""


class NoBands(Exception):
    """Why a run of nodes cannot run band by band."""


def work_of(graph: Graph, node: Node) -> Work:
    """How the rows of a node's tensors belong together; raises NoBands for a node that reads
    others."""
    shapes = [graph[i].shape for i in node.inputs if i]
    made = graph[node.outputs[0]].shape
    if node.op in ("conv", "conv_dx", "conv_dw") and len(shapes[0]) == 4:
        return _convolution(graph, node)
    if node.op.startswith("window_") and len(made) == 4:
        k, s, d, b = (node.attr(a)[AXIS] for a in ("kernel", "strides", "dilations", "before"))
        back = node.op.endswith("_grad")
        read = node.inputs[: 2 if node.op == "window_max_grad" else 1]
        return Work(node.outputs[0], tuple(Link(t, Slide(k, s, d, b), back) for t in read))
    joins = node.op == "map" or (node.op == "concat" and node.attr("axis") == 1)
    if joins and len(made) == 4 and all(len(s) in (0, 4) for s in shapes) and made[AXIS] > 1:
        read = [i for i in node.inputs if graph[i].shape[AXIS:][:1] == made[AXIS:][:1]]
        return Work(node.outputs[0], tuple(Link(i) for i in dict.fromkeys(read)))
    if node.op == "moments" and len(shapes[0]) == 4 and {0, AXIS} <= {*node.attr("axes")}:
        return Work(node.inputs[0], (Link(node.inputs[0]),), sums=True)
    if node.op == "reduce" and node.attr("kind") == "sum" and AXIS in node.attr("axes"):
        high = max(s[AXIS] if len(s) == 4 else 0 for s in shapes)
        read = [i for i in node.inputs if len(graph[i].shape) == 4 and graph[i].shape[AXIS] == high]
        if high > 1 and all(len(s) == 4 for s in shapes) and 0 in node.attr("axes"):
            return Work(read[0], tuple(Link(i) for i in dict.fromkeys(read)), sums=True)
    raise NoBands(f"'{node.name}' ({node.op}) does not work on rows of images")


def _convolution(graph: Graph, node: Node) -> Work:
    weights = graph[node.outputs[0] if node.op == "conv_dw" else node.inputs[1]]
    stride, dilation, top = (node.attr(a)[0] for a in ("strides", "dilations", "pads"))
    slide = Slide(weights.shape[AXIS], stride, dilation, top)
    if node.op == "conv_dw":
        x, dy = node.inputs
        return Work(dy, (Link(x, slide), Link(dy)), sums=True)
    return Work(node.outputs[0], (Link(node.inputs[0], slide, node.op == "conv_dx"),))


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
class RowBands:
    """A run of nodes cut into bands of `rows` rows of its coarsest tensor."""

    graph: Graph
    nodes: tuple[Node, ...]
    rows: int
    works: Mapping[str, Work]
    scale: Mapping[str, int]
    """Rows of each tensor beside one row of the coarsest."""

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
        """The rows of each tensor that a band makes or reads."""
        needs: dict[str, Rows] = {}
        for node in reversed(self.nodes):
            work = self.works[node.name]
            rows = self.owns(work.driver, band)
            if not work.sums:
                for out in node.outputs:
                    rows = _hull(needs.get(out), rows)
                needs |= dict.fromkeys(node.outputs, rows)
            for link in work.links:
                read = self.clamp(link.tensor, link.reads(rows))
                needs[link.tensor] = _hull(needs.get(link.tensor), read)
        return needs

    def parts(self, band: int) -> dict[str, Part]:
        """What a band does at each node, by the node's name."""
        needs = self.needs(band)
        made = {}
        for node in self.nodes:
            work = self.works[node.name]
            rows = self.owns(work.driver, band) if work.sums else needs[work.driver]
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
            shape = {
                t: (low - band * self.step(t), high - band * self.step(t))
                for t, (low, high) in self.needs(band).items()
            }
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


def row_bands(graph: Graph, nodes: Sequence[Node], rows: int) -> RowBands:
    """A run of nodes in bands of so many rows; raises NoBands when it cannot be cut so."""
    works = {n.name: work_of(graph, n) for n in nodes}
    scale = _scales(works, nodes)
    made: set[str] = set()
    for node in nodes:
        made |= set(node.outputs) if works[node.name].sums else set()
        read = made & set(node.inputs)
        if read:
            raise NoBands(f"'{node.name}' reads '{min(read)}', a sum over all rows")
    bands = RowBands(graph, tuple(nodes), rows, works, scale)
    for band in range(bands.count):
        for tensor, (low, high) in bands.needs(band).items():
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
