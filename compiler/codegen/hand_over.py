"""What groups leave in the buffer for the next group: which samples, and at which address.

A group that goes through the batch the other way than the one before finds the samples first that
the other had last.  They lie at the upper end of the buffer, above all that a kernel has for
itself, in a buffer of slots that both kernels declare; a slot holds a few samples of each tensor.
What a group leaves grows into the slots that it has used up (passes/stacks.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import lcm, prod

from ccnn.compiler.codegen.emit import CodegenError, Region
from ccnn.compiler.codegen.packing import ALIGNMENT
from ccnn.passes.batch_axis import BatchAxis
from ccnn.passes.graph import Graph, Group
from ccnn.passes.stacks import Stack, together
from ccnn.targets.program import DTYPE_BYTES, Affine


@dataclass(frozen=True)
class Handed:
    """Some samples of a tensor that lie in the buffer from one group to the next."""

    tensor: str
    """The name of its bytes in DRAM."""
    first: int
    samples: int
    region: Region
    only: bool
    """Nobody but these two groups needs them: they never go to DRAM."""
    slot: int = 1
    """Samples in a slot of the region."""
    start: int = 0
    """Where the tensor's part of a slot begins, in elements."""
    elements: int = 0
    """Elements of a sample."""

    def at(self, first: Affine, trips: Mapping[str, int]) -> tuple[Affine, Affine]:
        """The slot in which the samples of an iteration lie, and where in it, in elements; `first`
        is the first of them, `trips` are those of the loops over iterations."""
        ahead = first - self.first
        whole = {v: c for v, c in ahead.terms if c % self.slot == 0}
        rest = Affine(ahead.const, tuple((v, c) for v, c in ahead.terms if v not in whole))
        number = (rest.const + sum(min(0, c * (trips[v] - 1)) for v, c in rest.terms)) // self.slot
        slots = Affine(number, tuple((v, c // self.slot) for v, c in whole.items()))
        return slots, (rest - number * self.slot) * self.elements + self.start

    @property
    def skipped(self) -> int:
        """Samples at the beginning of the batch that its DRAM does not have."""
        return self.samples if self.only and not self.first else 0


@dataclass(frozen=True)
class Passage:
    """What a group finds and what it leaves."""

    found: tuple[Handed, ...] = ()
    left: tuple[Handed, ...] = ()
    room: int = 0
    """Bytes below all of it."""

    @property
    def made(self) -> tuple[Handed, ...]:
        """What never goes to DRAM, as far as this group knows."""
        return tuple(h for h in (*self.found, *self.left) if h.only)

    def lies(self, finds: bool, leaves: bool) -> dict[str, Handed]:
        """Where the tensors lie of samples that the group finds, or leaves."""
        found = {h.tensor: h for h in self.found if finds}
        return found | {h.tensor: h for h in self.left if leaves}

    def whole(self, batch: int) -> frozenset[str]:
        """Tensors of which nothing at all goes to DRAM."""
        return frozenset(h.tensor for h in self.made if h.samples == batch)


NO_PASSAGE = Passage()


def passages(
    graph: Graph,
    groups: Sequence[Group],
    axis: BatchAxis,
    root: Mapping[str, str],
    dtypes: Mapping[str, str],
    gbuf_bytes: int,
) -> list[Passage]:
    """The passage of each group; raises CodegenError where there is no room."""
    stacks = [_stack(graph, axis, dtypes, *pair) for pair in pairwise(groups)]
    around = [Stack(), *stacks, Stack()]
    meets = [
        together(found, left, group.sub_batch or axis.batch, axis.batch)
        for group, found, left in zip(groups, around, around[1:], strict=False)
    ]
    out: list[Passage] = []
    found: tuple[Handed, ...] = ()
    low = gbuf_bytes
    for number, (group, stack) in enumerate(zip(groups, around[1:], strict=True)):
        left: tuple[Handed, ...] = ()
        room, low = low, gbuf_bytes
        if group.left:
            deep = stack.room
            if not group.backwards:  # what the next one leaves comes down to it from the top
                deep = max(deep, *(m + ALIGNMENT for m in meets[number : number + 2]))
            low = int(gbuf_bytes - deep) // ALIGNMENT * ALIGNMENT
            region = _region(f"h{number}", stack, dtypes[group.left[0]], low)
            left = _handed(graph, group, groups[number + 1], axis, root, region, stack)
        room = min(room, low)
        if room < 0:
            raise CodegenError(f"what stays for the group behind '{group.nodes[0]}' does not fit")
        out.append(Passage(found, left, room))
        found = tuple(replace(h, region=replace(h.region, found=True)) for h in left)
    return out


def _stack(
    graph: Graph, axis: BatchAxis, dtypes: Mapping[str, str], one: Group, other: Group
) -> Stack:
    """What two groups hand over, in slots that hold whole iterations of both."""
    if not one.left:
        return Stack()
    sizes = [group.sub_batch or axis.batch for group in (one, other)]
    slot = lcm(*sizes)
    if one.left_samples % slot or any(axis.batch % size for size in sizes):
        raise CodegenError(
            f"'{one.nodes[0]}' leaves {one.left_samples} of {axis.batch} samples, in sub-batches "
            f"of {sizes[0]} and then {sizes[1]}: these must be whole iterations of both"
        )
    if len({dtypes[t] for t in one.left}) > 1:
        raise CodegenError(f"'{one.nodes[0]}' leaves tensors of two dtypes, which share no slot")
    elements = sum(_elements(graph, axis, t) for t in one.left)
    return Stack(one.left_samples, slot, elements * slot * DTYPE_BYTES[dtypes[one.left[0]]])


def _elements(graph: Graph, axis: BatchAxis, name: str) -> int:
    """Elements of one sample."""
    return int(axis.rows[name]) * prod(graph[name].shape[1:])


def _region(name: str, stack: Stack, dtype: str, address: int) -> Region:
    size, depth = int(stack.slot_bytes) // DTYPE_BYTES[dtype], stack.samples // stack.slot
    return Region(name, dtype, size, address, depth, fixed=True)


def _handed(
    graph: Graph,
    group: Group,
    other: Group,
    axis: BatchAxis,
    root: Mapping[str, str],
    region: Region,
    stack: Stack,
) -> tuple[Handed, ...]:
    """The tensors that a group leaves, one behind the other in each slot."""
    out, start = [], 0
    first = 0 if group.backwards else axis.batch - stack.samples
    for t in group.left:
        only = _only_between(graph, root, root[t], group, other)
        elements = _elements(graph, axis, t)
        out.append(Handed(root[t], first, stack.samples, region, only, stack.slot, start, elements))
        start += elements * stack.slot
    return tuple(out)


def _only_between(
    graph: Graph, root: Mapping[str, str], name: str, one: Group, other: Group
) -> bool:
    """True when one group makes a tensor and no other than these two reads it."""
    inside = {*one.nodes, *other.nodes}
    names = [t for t, r in root.items() if r == name]
    maker = graph.producer.get(name)
    return (
        maker is not None
        and maker.name in one.nodes
        and not any(t in graph.needed for t in names)
        and all(n.name in inside for t in names for n in graph.consumers.get(t, ()))
    )
