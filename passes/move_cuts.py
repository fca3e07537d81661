"""Better cuts between groups than those where one tensor leads on, by moving them a little.

Where a group ends decides which of its tensors the next one has to fetch again, so a few kernels
earlier or later can save a whole activation: the gradient of a relu in front of a cut or behind it,
say.  To price every run of kernels of a step would take too long; from a good grouping it is
enough to look around its cuts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

Price = Callable[[int, int], float]
"""What the kernels at positions low … high - 1 cost as one group."""


def moved_cuts(cuts: Sequence[int], price: Price, marks: Iterable[int], reach: int) -> list[int]:
    """Cuts of a lower sum of prices, from where no single step leads lower.

    A step moves a cut by at most `reach` kernels, takes it away, or cuts a group in two: at one of
    the `marks`, or at most `reach` kernels from its ends.  `cuts` begin with 0 and end with the
    number of kernels, and so does what is returned.
    """
    cuts, marks = list(cuts), sorted(marks)
    stale = set(cuts)
    """Groups beside these cuts have not been looked at since they became what they are."""
    while stale:
        at = min(stale)
        stale.discard(at)
        place = cuts.index(at)
        for step in (_moved, _split):
            around = step(cuts, place, price, marks, reach)
            if around is not None:
                low, high, between = around
                old = [c for c in cuts if low < c < high]
                stale -= {*old}
                cuts = [*(c for c in cuts if c <= low), *between, *(c for c in cuts if c >= high)]
                stale |= {low, *between, high}
                break
    return cuts


Change = tuple[int, int, list[int]]
"""Two cuts, and the cuts to have between them."""


def _moved(
    cuts: list[int], place: int, price: Price, marks: Sequence[int], reach: int
) -> Change | None:
    """The best place for a cut, or none at all."""
    if not 0 < place < len(cuts) - 1:
        return None
    low, at, high = cuts[place - 1 : place + 2]
    best, between = price(low, at) + price(at, high), [at]
    if price(low, high) < best:
        best, between = price(low, high), []
    for p in range(max(low + 1, at - reach), min(high, at + reach + 1)):
        left = price(low, p)
        if left < best and left + price(p, high) < best:
            best, between = left + price(p, high), [p]
    return None if between == [at] else (low, high, between)


def _split(
    cuts: list[int], place: int, price: Price, marks: Sequence[int], reach: int
) -> Change | None:
    """The best place for another cut behind this one."""
    if place == len(cuts) - 1:
        return None
    low, high = cuts[place : place + 2]
    best, between = price(low, high), []
    tried = {m for m in marks if low < m < high}
    tried |= {p for p in range(low + 1, high) if min(p - low, high - p) <= reach}
    for p in sorted(tried):
        left = price(low, p)
        if left < best and left + price(p, high) < best:
            best, between = left + price(p, high), [p]
    return (low, high, between) if between else None
