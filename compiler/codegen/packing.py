"""Addresses for regions: two-dimensional packing, time by address, of least height.

First fit where it comes near the bound of live bytes, else CP-SAT.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

ALIGNMENT = 64
"""Bytes; regions start at multiples of this."""

_GOOD_ENOUGH = 1.04
"""First fit is taken as it is when its height is this close to the bound of live bytes."""


@dataclass(frozen=True)
class Rectangle:
    """A region's life in nodes of the group, and its size and address in bytes."""

    name: str
    begin: int
    end: int
    size: int
    address: int = 0


def top(rectangles: Sequence[Rectangle]) -> int:
    """Where the highest of them ends."""
    return max((r.address + r.size for r in rectangles), default=0)


def _live_bytes(rectangles: Sequence[Rectangle]) -> int:
    """The most bytes alive at one time: no packing is lower."""
    times = range(max((r.end for r in rectangles), default=0))
    return max((sum(r.size for r in rectangles if r.begin <= t < r.end) for t in times), default=0)


def _first_fit(rectangles: Sequence[Rectangle]) -> list[Rectangle]:
    placed: list[Rectangle] = []
    for r in sorted(rectangles, key=lambda r: (-r.size * (r.end - r.begin), -r.size, r.name)):
        at = 0
        for other in sorted(placed, key=lambda o: o.address):
            if other.end <= r.begin or other.begin >= r.end:
                continue
            if other.address >= at + r.size:
                break
            at = max(at, other.address + other.size)
        placed.append(replace(r, address=at))
    return placed


_SMALL = 256
"""Regions of less than this part of the live bytes lie apart where that costs next to nothing."""

_NEXT_TO_NOTHING = 1.01


@lru_cache(maxsize=4096)
def pack(rectangles: tuple[Rectangle, ...]) -> tuple[Rectangle, ...]:
    """Addresses of least height, small regions apart where that adds next to nothing.

    A statistic that lies where a large operand was would have to wait until the array has read
    all of that operand.
    """
    bound = _live_bytes(rectangles)
    large = _packed(tuple(r for r in rectangles if r.size * _SMALL > bound))
    small = _packed(tuple(r for r in rectangles if r.size * _SMALL <= bound))
    base = -(-top(small) // ALIGNMENT) * ALIGNMENT
    apart = (*small, *(replace(r, address=r.address + base) for r in large))
    if top(apart) <= bound * _NEXT_TO_NOTHING:
        return apart
    together = _packed(rectangles)
    return apart if top(apart) <= top(together) * _NEXT_TO_NOTHING else together


def _packed(rectangles: tuple[Rectangle, ...]) -> tuple[Rectangle, ...]:
    """First fit where it comes near the bound of live bytes, else CP-SAT."""
    simple = _first_fit(rectangles)
    bound = _live_bytes(rectangles)
    height = max((r.address + r.size for r in simple), default=0)
    if height <= bound * _GOOD_ENOUGH:
        return tuple(simple)
    return tuple(_solve(simple, bound, height))


def _solve(simple: list[Rectangle], bound: int, height: int) -> list[Rectangle]:
    from ortools.sat.python import cp_model

    model = cp_model.CpModel()
    unit = ALIGNMENT
    top = model.new_int_var(bound // unit, height // unit, "height")
    times, places, starts = [], [], []
    for i, r in enumerate(simple):
        size = r.size // unit
        start = model.new_int_var(0, (height - r.size) // unit, f"a{i}")
        model.add(start + size <= top)
        model.add_hint(start, r.address // unit)
        times.append(model.new_fixed_size_interval_var(r.begin, r.end - r.begin, f"t{i}"))
        places.append(model.new_fixed_size_interval_var(start, size, f"p{i}"))
        starts.append(start)
    model.add_no_overlap_2d(times, places)
    model.minimize(top)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = 1
    solver.parameters.max_deterministic_time = 0.1
    status = solver.solve(model)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return simple
    return [
        replace(r, address=int(solver.value(s)) * unit) for r, s in zip(simple, starts, strict=True)
    ]
