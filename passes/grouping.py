"""Cutting a sequence of units into groups so that the sum of the groups' prices is least.

`price(i, j)` is what units i … j - 1 cost as one group, infinity when they may not be one.  A
single unit always has a finite price.  Prices are looked up often and should be cached.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import inf

Price = Callable[[int, int], float]
Cuts = tuple[tuple[int, int], ...]
"""Groups as (first unit, one past the last unit), in order, covering all units."""


def total(groups: Cuts, price: Price) -> float:
    """The price of a grouping."""
    return sum(price(i, j) for i, j in groups)


def group_exactly(count: int, price: Price, ends: Sequence[int] = ()) -> Cuts:
    """The cheapest grouping of all, by dynamic programming over the cut points.

    best(j) = min over i < j of best(i) + price(i, j); of equal prices the one with fewer groups.
    A group that begins at i ends at `ends[i]` at the latest, where that is given.
    """
    starts: list[list[int]] = [[] for _ in range(count + 1)]
    for i in range(count):
        for j in range(i + 1, (ends[i] if ends else count) + 1):
            starts[j].append(i)
    best: list[tuple[float, int]] = [(0.0, 0)]
    start = [0]
    for j in range(1, count + 1):
        found = min((best[i][0] + price(i, j), best[i][1] + 1, i) for i in starts[j])
        best.append(found[:2])
        start.append(found[2])
    groups: list[tuple[int, int]] = []
    end = count
    while end:
        groups.append((start[end], end))
        end = start[end]
    return tuple(reversed(groups))


def group_greedily(count: int, price: Price, like: Sequence[object] = ()) -> Cuts:
    """Merge the two neighbours whose merger saves most, until none saves anything.

    The method of mini-batch serialization (Lym et al. 2019).  `like` says what each unit needs
    (its number of iterations): it begins with runs of units that need the same.
    """
    marks = [k for k in range(1, count) if not like or like[k] != like[k - 1]]
    groups = list(pairwise([0, *marks, count])) if count else []
    groups = [part for g in groups for part in _allowed(g, price)]
    while len(groups) > 1:
        saved = [
            price(*left) + price(*right) - price(left[0], right[1])
            for left, right in pairwise(groups)
        ]
        k = max(range(len(saved)), key=lambda n: saved[n])
        if saved[k] <= 0:
            break
        groups[k : k + 2] = [(groups[k][0], groups[k + 1][1])]
    return tuple(groups)


def _allowed(group: tuple[int, int], price: Price) -> list[tuple[int, int]]:
    """The group, or its units one by one when it may not be one."""
    if price(*group) < inf:
        return [group]
    return [(k, k + 1) for k in range(*group)]
