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

    @property
    def bytes(self) -> int:
        """Bytes of the block."""
        return self.size * DTYPE_BYTES[self.dtype]


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
    overlap = {
        r.name: {
            o.name
            for o in regions
            if o.address < r.address + r.bytes and r.address < o.address + o.bytes
        }
        for r in regions
    }
    names = {name for section in touched.values() for _, name in section}
    overlap |= {name: {name} for name in names if name not in overlap}
    engines = sorted({engine for section in touched.values() for engine, _ in section})
    links = []
    for after in sorted(touched):
        for taker in engines:
            mine = [(r, w) for (e, r), w in touched[after].items() if e == taker]
            for giver in engines:
                if mine and giver != taker:
                    links += _last_link(touched, overlap, once, (after, taker, giver), mine)
    return links


def _last_link(
    touched: Touched,
    overlap: dict[str, set[str]],
    once: set[int],
    who: tuple[int, str, str],
    mine: list[tuple[str, bool]],
) -> list[Link]:
    """The link from the last section in which `giver` touched what `taker` now needs.

    One in the same iteration; only when there is none, one from the iteration before.
    """
    after, taker, giver = who

    def meets(section: int) -> bool:
        return any(
            engine == giver and region in overlap[other] and (writes or mine_writes)
            for (engine, region), writes in touched[section].items()
            for other, mine_writes in mine
        )

    before = [s for s in touched if s < after and meets(s)]
    found = [Link(max(before), giver, after, taker, False)] if before else []
    if before and max(before) not in once:
        return found
    # what only the first iteration has does not speak for the ones that follow
    always = [s for s in before if s not in once]
    later = [s for s in touched if s >= after and s not in once and meets(s)]
    if always:
        found.append(Link(max(always), giver, after, taker, False))
    elif later and after not in once:
        found.append(Link(max(later), giver, after, taker, True))
    return found
