"""Which numbers make an instruction's cost change from one iteration to another, and where.

A *quantity* is an extent with a limit, a count clipped at a tensor's edge, or an accumulate
flag.  It is settled (the same number) wherever all affine expressions of one of its zones are
>= 0: a tile that is not the last, a block inside the tensor, an accumulation after the first.
From the zones follow the *runs* of a loop: stretches of iterations that cost the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ccnn.targets.program import (
    Affine,
    Dim,
    Drain,
    Env,
    Exec,
    Extent,
    Instruction,
    Load,
    LoadH,
    LoadV,
    Map,
    Matrix,
    Placed,
    Random,
    Reduce,
    Shift,
    Store,
)
from ccnn.targets.simulator.affine import (
    Getter,
    Scope,
    affine_range,
    compile_affine,
    compile_extent,
)
from ccnn.targets.simulator.errors import SimulationError
from ccnn.targets.simulator.moves import inside


@dataclass(frozen=True)
class Quantity:
    """A number that enters a cost: how to compute it and where it is settled."""

    kind: str
    """extent, clip or flag."""
    affine: Affine
    zones: tuple[tuple[Affine, ...], ...]
    step: int = 0
    extent: Extent | None = None
    size: int = 0


def _of_extent(extent: Extent) -> list[Quantity]:
    if extent.limit is None:
        return []
    settled = extent.limit + -extent.size
    return [Quantity("extent", extent.limit, ((settled,),), size=extent.size)]


def _of_dims(dims: Sequence[Dim]) -> list[Quantity]:
    return [q for e, _ in dims for q in _of_extent(e)]


def _of_flag(affine: Affine) -> list[Quantity]:
    return [Quantity("flag", affine, ((affine + -1,), (affine * -1,)))] if affine.terms else []


def _of_window(m: Matrix) -> list[Quantity]:
    return _of_extent(m.row_count) + _of_extent(m.col_count)


def _of_box(i: Load | Store, dims: Sequence[Dim], tensors: Mapping[str, Placed]) -> list[Quantity]:
    if i.tensor not in tensors:
        raise SimulationError(f"the program has no tensor '{i.tensor}'")
    shape = tensors[i.tensor].shape
    if not len(dims) == len(i.start) == len(i.step) == len(shape):
        raise SimulationError(f"{i.opcode} of {i.tensor}: its rank is {len(shape)}")
    found = _of_dims(dims)
    for (e, _), start, step, size in zip(dims, i.start, i.step, shape, strict=True):
        if not start.terms:
            continue
        reach = step * (e.size - 1)
        first, last = start + min(reach, 0), start + max(reach, 0)
        zone = (first, last * -1 + (size - 1))
        found.append(Quantity("clip", start, (zone,), step, e, size))
    return found


def quantities(i: Instruction, tensors: Mapping[str, Placed]) -> list[Quantity]:
    """The quantities of an instruction that are not plain constants."""
    match i:
        case Load():
            return _of_box(i, i.dst.dims, tensors)
        case Store():
            return _of_box(i, i.src.dims, tensors)
        case LoadV() | LoadH():
            return _of_window(i.src)
        case Shift():
            return _of_extent(i.k) + _of_extent(i.n)
        case Exec():
            sizes = _of_extent(i.m) + _of_extent(i.k) + _of_extent(i.n)
            return sizes + _of_flag(i.accumulate)
        case Drain():
            return _of_window(i.dst) + _of_flag(i.accumulate)
        case Map():
            return _of_dims(i.dst.dims) + [q for s in i.srcs for q in _of_dims(s.dims)]
        case Reduce():
            views = [q for v in (i.dst, *i.srcs) for q in _of_dims(v.dims)]
            return views + _of_flag(i.accumulate)
        case Random():
            return _of_dims(i.dst.dims)
    raise SimulationError(f"{type(i).__name__} is no instruction of this machine")


def varying(found: Sequence[Quantity], scope: Scope) -> list[Quantity]:
    """Those that are not in the same zone in all iterations of all loops."""

    def settled(q: Quantity) -> bool:
        return any(all(affine_range(a, scope)[0] >= 0 for a in zone) for zone in q.zones)

    return [q for q in found if q.affine.terms and not settled(q)]


@dataclass(frozen=True)
class Sensitive:
    """A varying quantity seen from one loop around it: its zones as lines in that variable.

    Each line is (slope, constant + what the inner loops take away at most, outer terms).
    """

    zones: tuple[tuple[tuple[int, int, tuple[tuple[str, int], ...]], ...], ...]


def seen_from(q: Quantity, var: str, scope: Scope) -> Sensitive | None:
    """`q` seen from the loop over `var`; None when that variable does not move it."""
    place = scope[var][0]
    if not any(v == var for v, _ in q.affine.terms):
        return None
    zones = []
    for zone in q.zones:
        lines = []
        for affine in zone:
            base, slope, outer = affine.const, 0, []
            for v, c in affine.terms:
                where, trip = scope[v]
                if where == place:
                    slope = c
                elif where > place:
                    base += min(0, c * (trip - 1))
                else:
                    outer.append((v, c))
            lines.append((slope, base, tuple(outer)))
        zones.append(tuple(lines))
    return Sensitive(tuple(zones))


def _interval(
    zone: tuple[tuple[int, int, tuple[tuple[str, int], ...]], ...], env: Env, trip: int
) -> tuple[int, int]:
    """The iterations [first, last] in which all lines of a zone are >= 0."""
    first, last = 0, trip - 1
    for slope, base, outer in zone:
        height = base + sum(c * env[v] for v, c in outer)
        if slope > 0:
            first = max(first, -(height // slope))
        elif slope < 0:
            last = min(last, height // -slope)
        elif height < 0:
            return 0, -1
    return first, last


def runs(sensitive: Sequence[Sensitive], env: Env, trip: int) -> tuple[tuple[int, int, bool], ...]:
    """Stretches (first, end, uniform) that cover a loop; uniform ones cost the same throughout."""
    zones = [[_interval(z, env, trip) for z in s.zones] for s in sensitive]
    cuts = {0, trip}
    for intervals in zones:
        for first, last in intervals:
            if first <= last:
                cuts |= {first, last + 1}
    ends = sorted(cuts)
    found = []
    for first, end in pairwise(ends):
        uniform = all(any(a <= first and end - 1 <= b for a, b in zone) for zone in zones)
        found.append((first, end, uniform))
    return tuple(found)


def compile_quantity(q: Quantity, scope: Scope, env: Sequence[int]) -> Getter:
    """A closure for the present number; `env` holds the variables by place."""
    value = compile_affine(q.affine, scope, env)
    size, step = q.size, q.step
    if q.kind == "flag":
        return lambda: int(value() > 0)
    if q.kind == "extent":
        return lambda: min(size, value())
    count = compile_extent(q.extent or Extent(0), scope, env)

    def clipped() -> int:
        low, high = inside(value(), step, count(), size)
        return high - low

    return clipped
