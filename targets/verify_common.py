"""What all rules of the static verifier share: findings, walks, ranges of affine values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

from ccnn.targets.program import (
    Affine,
    Drain,
    Exec,
    Extent,
    Instruction,
    Item,
    Kernel,
    Load,
    LoadH,
    LoadV,
    Loop,
    Map,
    Matrix,
    Random,
    Reduce,
    Shift,
    Slot,
    Store,
    View,
)
from ccnn.targets.text import instruction_text

Trips = Mapping[str, int]
"""The loop variables in scope and how often each loop runs."""

Operand = View | Matrix | Slot


@dataclass(frozen=True)
class Finding:
    """One broken rule: which, in which kernel, what is wrong, and the line it is about."""

    rule: str
    kernel: str
    message: str
    line: str = ""

    def __str__(self) -> str:
        place = f" in kernel '{self.kernel}'" if self.kernel else ""
        line = f"\n    {self.line}" if self.line else ""
        return f"{self.rule}{place}: {self.message}{line}"


def about(rule: str, kernel: Kernel, item: Item, message: str) -> Finding:
    """A finding about one line of a kernel."""
    return Finding(rule, kernel.name, message, instruction_text(item))


def walk(body: tuple[Item, ...], trips: Trips) -> Iterator[tuple[Item, Trips]]:
    """Every item in the order written, each once, with the loops around it."""
    for item in body:
        yield item, trips
        if isinstance(item, Loop):
            yield from walk(item.body, {**trips, item.var: item.trip})


def instructions(kernel: Kernel) -> Iterator[tuple[Instruction, Trips]]:
    """Every instruction of a kernel in the order written, with the loops around it."""
    for item, trips in walk(kernel.body, {}):
        if isinstance(item, Instruction):
            yield item, trips


@dataclass(frozen=True)
class Access:
    """An operand as the instruction uses it; `when` > 0 is the condition of a conditional read."""

    operand: Operand
    writes: bool
    when: Affine | None = None


def accesses(i: Instruction) -> tuple[Access, ...]:
    """What an instruction reads, then what it writes."""
    match i:
        case Load():
            return (Access(i.dst, True),)
        case Store():
            return (Access(i.src, False),)
        case LoadV() | LoadH() | Shift():
            return Access(i.src, False), Access(i.dst, True)
        case Exec():
            reads = Access(i.moving, False), Access(i.stationary, False)
            return *reads, *_updated(i.acc, i.accumulate)
        case Drain():
            bias = () if i.bias is None else (Access(i.bias, False),)
            return Access(i.acc, False), *bias, *_updated(i.dst, i.accumulate)
        case Map():
            return *(Access(s, False) for s in i.srcs), Access(i.dst, True)
        case Reduce():
            return *(Access(s, False) for s in i.srcs), *_updated(i.dst, i.accumulate)
        case Random():
            return (Access(i.dst, True),)
    return ()


def _updated(operand: Operand, accumulate: Affine) -> tuple[Access, ...]:
    if not accumulate.terms and accumulate.const <= 0:
        return (Access(operand, True),)
    return Access(operand, False, accumulate), Access(operand, True)


def highest(a: Affine, trips: Trips) -> int:
    """The largest value over all iterations."""
    value = a.const
    for var, coefficient in a.terms:
        if coefficient > 0:
            value += coefficient * (trips[var] - 1)
    return value


def lowest(a: Affine, trips: Trips) -> int:
    """The smallest value over all iterations."""
    value = a.const
    for var, coefficient in a.terms:
        if coefficient < 0:
            value += coefficient * (trips[var] - 1)
    return value


def most(e: Extent, trips: Trips) -> int:
    """The largest value of an extent."""
    return e.size if e.limit is None else min(e.size, highest(e.limit, trips))


def least(e: Extent, trips: Trips) -> int:
    """The smallest value of an extent."""
    return e.size if e.limit is None else min(e.size, lowest(e.limit, trips))


def choices(e: Extent) -> tuple[Affine, ...]:
    """The affine values of which an extent is the minimum."""
    return (Affine(e.size),) if e.limit is None else (Affine(e.size), e.limit)


def reach(start: Affine, dims: tuple[tuple[Extent, int], ...], trips: Trips) -> tuple[int, int]:
    """Bounds of start + sum of index * stride over a box of dims and all iterations.

    An extent min(size, limit) lies below each of the two, so the upper bound may use whichever is
    better for a dim, and using `limit` keeps what it has in common with `start`: 8*i0 +
    min(8, 30 - 8*i0) - 1 is found to end at 29.
    """
    up = [(e, s) for e, s in dims if s > 0]
    down = [(e, s) for e, s in dims if s < 0]
    top = min(highest(end, trips) for end in _ends(start, up))
    bottom = max(lowest(end, trips) for end in _ends(start, down))
    return bottom, top


def _ends(start: Affine, dims: list[tuple[Extent, int]]) -> list[Affine]:
    """The last address of a box, for each choice of the limited extents."""
    fixed = sum((e.size - 1) * s for e, s in dims if e.limit is None)
    limited = [[(c + -1) * s for c in choices(e)] for e, s in dims if e.limit is not None]
    ends = []
    for chosen in product(*limited[:6]):
        end = start + fixed
        for part in chosen:
            end = end + part
        ends.append(end)
    if len(limited) > 6:
        rest = sum((e.size - 1) * s for e, s in [d for d in dims if d[0].limit is not None][6:])
        ends = [end + rest for end in ends]
    return ends
