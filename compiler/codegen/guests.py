"""Operands that lie in the buffer for one node only.

What a group does not keep streams through a pipe, tile by tile.  Where the pipe is too small for
the whole, some of it streams several times.  Regions leave room at most nodes, though: an operand
that fits there besides is fetched whole into a region that lives as long as its node.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ccnn.compiler.codegen.packing import Rectangle, top


@dataclass(frozen=True)
class Guest:
    """An operand of one node of a group, and its bytes in an iteration."""

    node: str
    tensor: str
    place: int
    """Of the node in its group."""
    size: int
    end: int = 0
    """One past the last node before which it is still read; 0: it is read by its node at once."""

    @property
    def region(self) -> str:
        """What its region is called."""
        return f"{self.tensor}@{self.place}"

    @property
    def rectangle(self) -> Rectangle:
        """Its region before it has an address."""
        return Rectangle(self.region, self.place, self.end or self.place + 1, self.size)


_SMALL = 12
"""What takes less than this part of the room that the regions leave may stream through a pipe."""


def welcomed(
    operands: Sequence[Guest], placed: tuple[Rectangle, ...], room: int
) -> tuple[tuple[Guest, ...], tuple[Rectangle, ...]]:
    """Those of the operands that fit beside the regions, the largest first, and all regions.

    They take no more of the buffer than the regions alone do.
    """
    height = top(placed)
    large = [g for g in operands if g.size * _SMALL > room - height]
    chosen: list[Guest] = []
    regions = list(placed)
    for guest in sorted(large, key=lambda g: (-g.size, g.place, g.tensor)):
        address = gap(guest.rectangle, regions)
        if address + guest.size <= height:
            regions.append(replace(guest.rectangle, address=address))
            chosen.append(guest)
    return tuple(chosen), tuple(regions)


def gap(wanted: Rectangle, regions: Sequence[Rectangle]) -> int:
    """The lowest address that is free all the time."""
    at = 0
    for r in sorted(regions, key=lambda r: r.address):
        if r.begin < wanted.end and wanted.begin < r.end:
            if r.address >= at + wanted.size:
                break
            at = max(at, r.address + r.size)
    return at
