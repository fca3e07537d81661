"""What groups leave in the buffer for the next group: which samples, and at which address.

A group that goes through the batch the other way than the one before finds the samples first that
the other had last.  They lie at the upper end of the buffer, above all that a kernel has for
itself, in buffers that both kernels declare.  What a group finds it has used up before it makes
what it leaves, unless both together are more than the batch; so both may lie at one address.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from ccnn.compiler.codegen.emit import CodegenError, Region
from ccnn.compiler.codegen.packing import ALIGNMENT
from ccnn.passes.batch_axis import BatchAxis
from ccnn.passes.graph import Graph, Group
from ccnn.targets.program import DTYPE_BYTES


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
    out: list[Passage] = []
    found: tuple[Handed, ...] = ()
    for number, group in enumerate(groups):
        sizes = [_bytes(graph, axis, dtypes, t, group.left_samples) for t in group.left]
        low, high = _span(found, gbuf_bytes)
        at = gbuf_bytes - sum(sizes)
        if group.found_samples + group.left_samples > axis.batch and at < high:
            at = low - sum(sizes)
        end = axis.batch - group.left_samples
        left = []
        for t, size in zip(group.left, sizes, strict=True):
            dtype = dtypes[t]
            region = Region(f"h{number}.{t}", dtype, size // DTYPE_BYTES[dtype], at, fixed=True)
            only = _only_between(graph, root, root[t], group, groups[number + 1])
            first = 0 if group.backwards else end
            left.append(Handed(root[t], first, group.left_samples, region, only))
            at += size
        room = min(low, _span(left, gbuf_bytes)[0])
        if room < 0:
            raise CodegenError(f"what stays for the group behind '{group.nodes[0]}' does not fit")
        out.append(Passage(found, tuple(left), room))
        found = tuple(replace(h, region=replace(h.region, found=True)) for h in left)
    return out


def _bytes(
    graph: Graph, axis: BatchAxis, dtypes: Mapping[str, str], name: str, samples: int
) -> int:
    size = int(axis.rows[name] * samples) * prod(graph[name].shape[1:]) * DTYPE_BYTES[dtypes[name]]
    return -(-size // ALIGNMENT) * ALIGNMENT


def _span(handed: Sequence[Handed], top: int) -> tuple[int, int]:
    """Where the first of them begins and the last ends."""
    return (
        min((h.region.address for h in handed), default=top),
        max((h.region.address + h.region.bytes for h in handed), default=0),
    )


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
