"""The cheapest way to cover a length with pieces of several kinds, proven by CP-SAT.

A kind of piece has a price of its own and *levels*: so many units at such a price each, cheapest
first, so that the price of a piece is convex in what it covers.  That makes pieces of one kind
interchangeable: their number and the units they take at each level say all, and the problem is
one of a handful of integers whatever the length.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

DETERMINISTIC_LIMIT = 0.5
"""Effort for one cover, in the solver's deterministic seconds."""


@dataclass(frozen=True)
class Kind:
    """A piece's price, and levels of (units, price of each unit) with rising prices."""

    price: int
    levels: tuple[tuple[int, int], ...]

    @property
    def most(self) -> int:
        """Units one piece can cover."""
        return sum(units for units, _ in self.levels)

    def at(self, units: int) -> int:
        """The price of a piece that covers `units`."""
        total = self.price
        for width, each in self.levels:
            taken = min(units, width)
            total, units = total + taken * each, units - taken
        return total


@dataclass(frozen=True)
class Cover:
    """Of each kind: how many pieces, and the units they cover together."""

    counts: tuple[int, ...]
    units: tuple[int, ...]
    cost: int
    bound: int


@lru_cache(maxsize=65536)
def cover(total: int, kinds: tuple[Kind, ...]) -> Cover:
    """The cheapest pieces that cover `total` units; of equals the fewest pieces."""
    useful = [i for i in range(len(kinds)) if not _beaten(i, kinds)]
    if len(useful) == 1:
        # prices are subadditive: fewer pieces are never dearer
        kind = kinds[useful[0]]
        counts = [-(-total // kind.most) if i == useful[0] else 0 for i in range(len(kinds))]
        units = [total if i == useful[0] else 0 for i in range(len(kinds))]
        cost = cost_of(kind, max(counts), total)
        return Cover(tuple(counts), tuple(units), cost, cost)
    return _solve(total, kinds, useful)


def cost_of(kind: Kind, count: int, units: int) -> int:
    """The price of `count` pieces that share `units` evenly, which is the cheapest sharing."""
    if count == 0:
        return 0
    each, more = divmod(units, count)
    return (count - more) * kind.at(each) + (more * kind.at(each + 1) if more else 0)


def _beaten(i: int, kinds: tuple[Kind, ...]) -> bool:
    """True when another kind covers as much and is nowhere dearer (of equals the first stays)."""
    mine = kinds[i]
    for j, other in enumerate(kinds):
        if j == i or other.most < mine.most:
            continue
        points = {0, mine.most, *_breaks(mine), *_breaks(other)}
        points = {p for p in points if p <= mine.most}
        if all(other.at(p) <= mine.at(p) for p in points) and (
            j < i or other.most > mine.most or any(other.at(p) < mine.at(p) for p in points)
        ):
            return True
    return False


def _breaks(kind: Kind) -> list[int]:
    ends, at = [], 0
    for width, _ in kind.levels:
        at += width
        ends.append(at)
    return ends


def _solve(total: int, kinds: tuple[Kind, ...], useful: list[int]) -> Cover:
    from ortools.sat.python import cp_model

    model = cp_model.CpModel()
    most = {i: -(-total // kinds[i].most) for i in useful}
    # prices first, then the number of pieces, as far as the solver's integers reach
    scale = sum(most.values()) + 1
    if scale * sum(most[i] * kinds[i].at(kinds[i].most) for i in useful) > 2**60:
        scale = 1
    terms, covered, counts, taken = [], [], {}, {}
    for i in useful:
        counts[i] = model.new_int_var(0, most[i], f"count{i}")
        terms.append((kinds[i].price * scale + (scale > 1)) * counts[i])
        taken[i] = []
        for j, (width, each) in enumerate(kinds[i].levels):
            units = model.new_int_var(0, min(total, most[i] * width), f"units{i}_{j}")
            model.add(units <= width * counts[i])
            terms.append(each * scale * units)
            taken[i].append(units)
            covered.append(units)
    model.add(sum(covered) == total)
    model.minimize(sum(terms))
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = 1
    solver.parameters.max_deterministic_time = DETERMINISTIC_LIMIT
    # these models are a handful of integers: presolving them costs more than it saves
    solver.parameters.cp_model_probing_level = 0
    status = solver.solve(model)
    found = [solver.value(counts[i]) if i in counts else 0 for i in range(len(kinds))]
    units = [sum(solver.value(u) for u in taken[i]) if i in taken else 0 for i in range(len(kinds))]
    cost = sum(cost_of(k, c, u) for k, c, u in zip(kinds, found, units, strict=True))
    bound = cost if status == cp_model.OPTIMAL else int(solver.best_objective_bound) // scale
    return Cover(tuple(found), tuple(units), cost, min(cost, bound))
