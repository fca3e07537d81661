"""The order of a group's sections: which of them wait for which others, and through what token.

A section is what one node of a group does with one sub-batch.  Inside a section pipes keep the
engines apart; between sections that touch the same bytes the links found here do.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ccnn.targets.program import DTYPE_BYTES

_APART = 1 << 60
"""Fixed regions lie above all others."""


@dataclass(eq=False)
class Region:
    """A block that stays in the buffer between nodes of a group; several may share an address.

    It has no tokens of its own: the sections of a group that touch the same bytes are kept
    apart by tokens from section to section.
    """

    name: str
    dtype: str
    size: int
    address: int = 0
    depth: int = 1
    """Two where each half of the samples has a part of its own; the slots of what is handed over.
    Those are one part: iterations take turns with them."""
    fixed: bool = False
    """The address counts from the beginning of the buffer, else from behind the pipes."""
    found: bool = False
    """It holds what the kernel before left there."""

    @property
    def bytes(self) -> int:
        """Bytes of the block."""
        return self.size * self.depth * DTYPE_BYTES[self.dtype]

    @property
    def parts(self) -> dict[str, tuple[int, int]]:
        """What sections touch of it, by name: where each part begins and ends."""
        first = self.address + (_APART if self.fixed else 0)
        if self.fixed:
            return {self.name: (first, first + self.bytes)}
        step = self.bytes // self.depth
        begins = {part_name(self, k): first + k * step for k in range(self.depth)}
        return {name: (at, at + step) for name, at in begins.items()}


def part_name(region: Region, part: int) -> str:
    """What a part of a region is called where sections are put in order."""
    return region.name if region.depth == 1 or region.fixed else f"{region.name}#{part}"


@dataclass(frozen=True)
class Link:
    """An order between two sections: what `taker` does in section `after` waits for what `giver`
    did in section `before`, of the iteration before when `carried`."""

    before: int
    giver: str
    after: int
    taker: str
    carried: bool

    @property
    def token(self) -> str:
        """The token that keeps this order."""
        return f"{self.before}.{self.giver}>{self.after}.{self.taker}"


Touched = dict[int, dict[tuple[str, str], bool]]
"""Section to (engine, region) to whether it writes."""


def order_sections(touched: Touched, regions: list[Region], once: set[int]) -> list[Link]:
    """The links that keep every two sections apart that touch the same bytes, one writing.

    An engine's own work is in order; of one engine's sections only the last before a section
    needs a link, since its tokens speak for everything it issued before.
    """
    overlap = _overlaps({name: place for r in regions for name, place in r.parts.items()})
    names = {name for section in touched.values() for _, name in section}
    overlap |= {name: [name] for name in names if name not in overlap}
    uses = _uses(touched)
    engines = sorted(uses)
    links = []
    for after in sorted(touched):
        for taker in engines:
            written = _over(overlap, uses[taker].of(after, True))
            both = written | _over(overlap, uses[taker].of(after, False))
            for giver in engines if both else ():
                if giver != taker:
                    meets = uses[giver].sections(written, both)
                    links += _last_link(meets, once, (after, taker, giver))
    return links


def _overlaps(parts: dict[str, tuple[int, int]]) -> dict[str, list[str]]:
    """For each part those that share bytes with it."""
    names = list(parts)
    low, high = (np.array([p[k] for p in parts.values()], np.int64) for k in (0, 1))
    return {
        name: [names[k] for k in np.flatnonzero((low < end) & (begin < high))]
        for name, (begin, end) in parts.items()
    }


@dataclass
class _Uses:
    """What one engine touches: the regions by section and the sections by region, each for
    reads (False) and for writes (True)."""

    regions: dict[tuple[int, bool], list[str]] = field(default_factory=dict)
    places: dict[tuple[str, bool], list[int]] = field(default_factory=dict)

    def of(self, section: int, writes: bool) -> list[str]:
        """The regions that a section reads, or those that it writes."""
        return self.regions.get((section, writes), [])

    def sections(self, read: set[str], written: set[str]) -> set[int]:
        """The sections that read one of these regions or write one of those."""
        found = {s for name in read for s in self.places.get((name, False), ())}
        return found.union(*(self.places.get((name, True), ()) for name in written))


def _uses(touched: Touched) -> dict[str, _Uses]:
    found: dict[str, _Uses] = {}
    for section, regions in touched.items():
        for (engine, region), writes in regions.items():
            uses = found.setdefault(engine, _Uses())
            uses.regions.setdefault((section, writes), []).append(region)
            uses.places.setdefault((region, writes), []).append(section)
    return found


def _over(overlap: dict[str, list[str]], names: list[str]) -> set[str]:
    """All regions that share bytes with one of these."""
    return {other for name in names for other in overlap[name]}


def _last_link(meets: set[int], once: set[int], who: tuple[int, str, str]) -> list[Link]:
    """The link from the last section in which `giver` touched what `taker` now needs.

    One in the same iteration; only when there is none, one from the iteration before.
    """
    after, taker, giver = who
    before = [s for s in meets if s < after]
    found = [Link(max(before), giver, after, taker, False)] if before else []
    if before and max(before) not in once:
        return found
    # what only the first iteration has does not speak for the ones that follow
    always = [s for s in before if s not in once]
    later = [s for s in meets if s >= after and s not in once]
    if always:
        found.append(Link(max(always), giver, after, taker, False))
    elif later and after not in once:
        found.append(Link(max(later), giver, after, taker, True))
    return found
