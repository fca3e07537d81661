"""The order of a group's sections: which of them wait for which others, and through what token.

A section is what one node of a group does with one sub-batch.  Inside a section pipes keep the
engines apart; between sections that touch the same bytes the links found here do.
"""

from __future__ import annotations

from dataclasses import dataclass

from ccnn.targets.program import DTYPE_BYTES


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
    """Two where each half of the samples has a part of its own."""

    @property
    def bytes(self) -> int:
        """Bytes of the block."""
        return self.size * self.depth * DTYPE_BYTES[self.dtype]

    @property
    def parts(self) -> dict[str, tuple[int, int]]:
        """What sections touch of it, by name: where each part begins and ends."""
        step = self.bytes // self.depth
        begins = {part_name(self, k): self.address + k * step for k in range(self.depth)}
        return {name: (at, at + step) for name, at in begins.items()}


def part_name(region: Region, part: int) -> str:
    """What a part of a region is called where sections are put in order."""
    return region.name if region.depth == 1 else f"{region.name}#{part}"


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
    parts = {name: place for r in regions for name, place in r.parts.items()}
    overlap = {
        name: {o for o, (low, high) in parts.items() if low < end and begin < high}
        for name, (begin, end) in parts.items()
    }
    names = {name for section in touched.values() for _, name in section}
    overlap |= {name: {name} for name in names if name not in overlap}
    engines = sorted({engine for section in touched.values() for engine, _ in section})
    uses = {e: {s: _use(found, e) for s, found in touched.items()} for e in engines}
    uses = {e: {s: use for s, use in of.items() if any(use)} for e, of in uses.items()}
    links = []
    for after in sorted(touched):
        for taker in engines:
            if after not in uses[taker]:
                continue
            read, written = uses[taker][after]
            needs = _over(overlap, written), _over(overlap, read | written)
            for giver in engines:
                if giver != taker:
                    meets = [s for s, use in uses[giver].items() if _meet(use, needs)]
                    links += _last_link(meets, once, (after, taker, giver))
    return links


Regions = frozenset[str]


def _use(section: dict[tuple[str, str], bool], engine: str) -> tuple[Regions, Regions]:
    """The regions that an engine reads and those that it writes in a section."""
    mine = [(region, writes) for (e, region), writes in section.items() if e == engine]
    return frozenset(r for r, writes in mine if not writes), frozenset(r for r, w in mine if w)


def _over(overlap: dict[str, set[str]], names: Regions) -> Regions:
    """All regions that share bytes with one of these."""
    return frozenset().union(*(overlap[name] for name in names))


def _meet(use: tuple[Regions, Regions], needs: tuple[Regions, Regions]) -> bool:
    """True when one reads what the other writes, or both write the same."""
    return not (use[0].isdisjoint(needs[0]) and use[1].isdisjoint(needs[1]))


def _last_link(meets: list[int], once: set[int], who: tuple[int, str, str]) -> list[Link]:
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
