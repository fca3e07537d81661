"""What a kernel writer knows of its surroundings: which samples it works on, and what is on chip.

A node alone works on the whole mini-batch, and all its tensors are in DRAM.  A node of a group
works on some samples at a time; `graph` then holds the shapes of one iteration, a batched tensor in
DRAM starts `first` samples in, and resident tensors lie in regions of the global buffer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from ccnn.compiler.codegen.emit import KernelWriter, Region
from ccnn.compiler.codegen.place import Held
from ccnn.passes.graph import Graph, Node
from ccnn.passes.row_work import AXIS
from ccnn.targets.machine import Machine
from ccnn.targets.program import DTYPE_BYTES, ZERO, Affine, Extent, Store, View

TARGET_TILE_BYTES = 256 * 1024
"""Tiles are cut until the buffers of a sweep take no more than four times this (or half of the
global buffer): larger ones only lengthen the start and the end of a sweep."""


def dense(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Row-major strides in elements."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


Margin = tuple[tuple[int, int], tuple[int, int]]
"""Zeros before and behind along the last two dims of a tensor."""


def with_margin(shape: Sequence[int], margin: Margin | None) -> tuple[int, ...]:
    """The shape of a tensor together with the zeros around its planes."""
    if margin is None:
        return tuple(shape)
    return (*shape[:-2], *(d + sum(m) for d, m in zip(shape[-2:], margin, strict=True)))


@dataclass(frozen=True)
class Scope:
    """Everything a writer needs beside the node."""

    graph: Graph
    """Shapes as they are in one iteration."""
    machine: Machine
    dtypes: Mapping[str, str]
    accum: str
    budget: int
    """Bytes of global buffer that the tiles of a node may take."""
    rows: Mapping[str, Fraction] = field(default_factory=dict)
    """Tensors that carry the mini-batch, to the entries of their first dim that a sample has."""
    first: Affine = ZERO
    """First sample of the iteration."""
    passed: Affine = ZERO
    """Samples that earlier iterations have worked on."""
    slots: Mapping[str, tuple[Affine, Affine]] = field(default_factory=dict)
    """Tensors whose regions hold more samples than the iteration's, to the slot of these, and where
    in it they begin."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Tensors whose DRAM begins with a later sample than the batch's first, to that."""
    found: frozenset[str] = frozenset()
    """Tensors that the kernel before left in their regions."""
    regions: Mapping[str, Region] = field(default_factory=dict)
    """Tensors that stay in the buffer (under every name they have), dense in their local shape."""
    margins: Mapping[str, Margin] = field(default_factory=dict)
    """Resident tensors that lie in their region with zeros around each plane."""
    tops: Mapping[str, Affine] = field(default_factory=dict)
    """Tensors of which only some rows are in sight, to the first of them in the whole image."""
    heights: Mapping[str, int] = field(default_factory=dict)
    """The same tensors to the rows of the whole image."""
    sums: Mapping[str, Region] = field(default_factory=dict)
    """Results summed over the iterations that stay in the buffer meanwhile."""
    partial: Mapping[str, str] = field(default_factory=dict)
    """Results summed over the iterations to the DRAM tensor that holds the sum meanwhile."""
    published: frozenset[str] = frozenset()
    """Resident tensors that must reach DRAM as well."""
    updates: Mapping[str, tuple[Node, int]] = field(default_factory=dict)
    """Gradients to the updates in the epilogues of their layers, numbered as in the program."""
    batch: int = 0
    """Samples of the whole mini-batch."""
    half: int = 0
    """Which half of an iteration's samples this is."""
    fresh: bool = True
    """This is the first iteration."""
    final: bool = True
    """This is the last iteration."""

    def width(self, tensor: str) -> int:
        """Bytes of one element."""
        return DTYPE_BYTES[self.dtypes[tensor]]

    def summed(self, tensor: str) -> bool:
        """True when a result gathers over several iterations."""
        return tensor in self.sums or tensor in self.partial

    def in_dram(self, tensor: str, starts: tuple[Affine, ...]) -> tuple[Affine, ...]:
        """Where a block of the iteration's tensor starts in the whole tensor."""
        if tensor in self.tops:
            starts = (*starts[:AXIS], starts[AXIS] + self.tops[tensor], *starts[AXIS + 1 :])
        if tensor not in self.rows:
            return starts
        rows = self.rows[tensor]
        ahead = (self.first - self.skipped.get(tensor, 0)) * rows.numerator
        if rows.denominator > 1:  # a row holds several samples, and sub-batches whole rows
            shared = tuple((v, c // rows.denominator) for v, c in ahead.terms)
            ahead = Affine(ahead.const // rows.denominator, shared)
        return (starts[0] + ahead, *starts[1:])

    def held(self, tensor: str, starts: tuple[Affine, ...]) -> Held:
        """The block of a resident tensor that starts there."""
        margin = self.margins.get(tensor)
        strides = dense(with_margin(self.graph[tensor].shape, margin))
        offset = ZERO
        for start, stride in zip(starts, strides, strict=True):
            offset = offset + start * stride
        if margin:
            offset = offset + sum(m[0] * s for m, s in zip(margin, strides[-2:], strict=True))
        region = self.regions[tensor]
        if tensor in self.slots:
            slot, begin = self.slots[tensor]
            return Held(region, strides, offset + begin, slot)
        return Held(region, strides, offset, Affine(self.half if region.depth > 1 else 0))

    def publish(self, kw: KernelWriter, tensor: str) -> None:
        """Write a resident tensor to DRAM, when somebody outside needs it."""
        if tensor not in self.published:
            return
        shape = self.graph[tensor].shape
        starts = (ZERO,) * len(shape)
        whole = self.held(tensor, starts)
        dims = tuple(zip(_extents(shape), whole.strides, strict=True))
        where = self.in_dram(tensor, starts)
        kw.emit(Store(kw.node, tensor, where, (1,) * len(shape), whole.view(dims)))


def _extents(shape: tuple[int, ...]) -> list[Extent]:
    return [Extent(n) for n in shape]


def alone(graph: Graph, machine: Machine, dtypes: Mapping[str, str], accum: str) -> Scope:
    """The scope of a node that is its own kernel."""
    budget = min(machine.gbuf_bytes // 2, 4 * TARGET_TILE_BYTES)
    return Scope(graph, machine, dtypes, accum, budget)


def view_of(held: Held, sizes: tuple[int, ...]) -> View:
    """A block of constant sizes."""
    return held.view(tuple(zip(_extents(sizes), held.strides, strict=True)))
