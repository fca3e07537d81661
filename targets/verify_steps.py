"""A kernel as the walk of its order sees it: operands as numbered places, loops as phases."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd, lcm

from ccnn.targets.program import (
    DTYPE_BYTES,
    ENGINES,
    Affine,
    Instruction,
    Item,
    Kernel,
    Loop,
    Store,
    Sync,
)
from ccnn.targets.verify_common import accesses
from ccnn.targets.verify_dram import Crossings


@dataclass(frozen=True)
class Place:
    """An operand: number of the first slot of its buffer, depth, which slot, and a condition.

    `leaves`: later accesses of other engines may have to wait for this one; `asks`: this one has
    to wait for earlier ones.  Both hold on chip; in DRAM it depends on the boxes.
    """

    base: int
    depth: int
    slot: Affine
    when: Affine | None
    leaves: bool = True
    asks: bool = True


@dataclass(frozen=True)
class Step:
    """An instruction as the walk sees it."""

    item: Instruction
    engine: int
    reads: tuple[Place, ...]
    writes: tuple[Place, ...]


@dataclass(frozen=True)
class Turn:
    """A sync as the walk sees it."""

    item: Sync
    engine: int
    token: int


@dataclass(frozen=True, eq=False)
class Nest:
    """A loop: its body, and for each variable that matters inside how it repeats.

    A phase is (variable, period, whether 0 differs from the rest); period 0 means every value
    differs.
    """

    loop: Loop
    body: tuple[Step | Turn | Nest, ...]
    phases: tuple[tuple[str, int, bool], ...]
    steps: int
    """Steps of a walk to its end."""

    def phase(self, env: dict[str, int]) -> tuple[tuple[int, bool], ...]:
        """What the body sees of the variables' values."""
        return tuple(
            [(env[v] % p if p else env[v], z and env[v] > 0) for v, p, z in self.phases if v in env]
        )


def _slots(kernel: Kernel) -> tuple[dict[str, int], int]:
    """Number of the first slot of each buffer, and the number of slots."""
    base, count = {}, 0
    for b in kernel.buffers:
        base[b.name] = count
        count += b.depth
    return base, count


def steps_of(kernel: Kernel, dram: Crossings) -> tuple[list, int]:
    """The body of a kernel, and how many slots its buffers have; tensors are numbered after."""
    base, count = _slots(kernel)
    depth = {b.name: b.depth for b in kernel.buffers}
    tokens = {t.name: n for n, t in enumerate(kernel.tokens)}

    def step(i: Instruction) -> Step:
        parts: dict[bool, list[Place]] = {False: [], True: []}
        for a in accesses(i):
            name = a.operand.buffer
            place = Place(base[name], depth[name], a.operand.slot, a.when)
            parts[a.writes].append(place)
        for number, leaves, asks in dram.touched.get(id(i), ()):
            place = Place(count + number, 1, Affine(), None, leaves, asks)
            parts[isinstance(i, Store)].append(place)
        return Step(i, ENGINES.index(i.engine), tuple(parts[False]), tuple(parts[True]))

    def items(body: tuple[Item, ...]) -> tuple[Step | Turn | Nest, ...]:
        out: list[Step | Turn | Nest] = []
        for item in body:
            if isinstance(item, Sync):
                out.append(Turn(item, ENGINES.index(item.engine), tokens[item.token]))
            elif isinstance(item, Loop):
                inner = items(item.body)
                size = item.trip * sum(i.steps if isinstance(i, Nest) else 1 for i in inner)
                out.append(Nest(item, inner, _phases(inner), size))
            else:
                out.append(step(item))
        return tuple(out)

    return list(items(kernel.body)), count


def _phases(body: tuple[Step | Turn | Nest, ...]) -> tuple[tuple[str, int, bool], ...]:
    """How the body repeats in each variable that it looks at."""
    periods: dict[str, int] = {}
    zeros: dict[str, bool] = {}

    def note(var: str, period: int, zero: bool) -> None:
        old = periods.get(var, 1)
        periods[var] = lcm(old, period) if old and period else 0
        zeros[var] = zeros.get(var, False) or zero

    for item in body:
        if isinstance(item, Nest):
            for var, period, zero in item.phases:
                note(var, period, zero)
        elif isinstance(item, Step):
            for place in (*item.reads, *item.writes):
                for var, c in place.slot.terms:
                    note(var, place.depth // gcd(place.depth, c), False)
                when = place.when
                # with no negative part, `accumulate > 0` asks only which variables are 0
                simple = when is not None and when.const == 0 and all(c > 0 for _, c in when.terms)
                for var, _ in when.terms if when is not None else ():
                    note(var, 1 if simple else 0, True)
    return tuple(sorted((v, p, zeros[v]) for v, p in periods.items() if p != 1 or zeros[v]))


def slot_of(place: Place, env: dict[str, int]) -> int:
    """The slot that an operand names at these values of the loops."""
    return place.base + place.slot.at(env) % place.depth


def peers_of(kernel: Kernel, count: int) -> list[tuple[int, ...]]:
    """Which slots share bytes; `count` places in all, those after the slots are tensors."""
    spans: list[tuple[int, int] | None] = []
    for b in kernel.buffers:
        size = b.size * DTYPE_BYTES.get(b.dtype, 1)
        for n in range(b.depth):
            start = b.address + n * size
            spans.append((start, start + size) if b.space == "gbuf" else None)
    spans += [None] * (count - len(spans))
    return [
        tuple(
            j
            for j, other in enumerate(spans)
            if i == j or (span and other and span[0] < other[1] and other[0] < span[1])
        )
        for i, span in enumerate(spans)
    ]
