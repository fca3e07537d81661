"""Rules about tensors in DRAM: where they lie, what is written before it is read.

Tensors with exactly the same address and byte size are names of one *place* (reshaped, updated in
place, or one after the other).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod

from ccnn.targets.machine import Machine
from ccnn.targets.program import (
    DTYPE_BYTES,
    Affine,
    Extent,
    Item,
    Kernel,
    Load,
    Loop,
    Placed,
    Program,
    Store,
)
from ccnn.targets.verify_common import Finding, Trips, about, highest, lowest
from ccnn.targets.verify_cover import Cover

Place = tuple[int, int]
"""Address and bytes."""


def tensor_bytes(t: Placed) -> int:
    """Bytes of a tensor."""
    return prod(t.shape) * DTYPE_BYTES[t.dtype]


def place_of(t: Placed) -> Place:
    """What tensors must have in common to be names of the same bytes."""
    return t.address, tensor_bytes(t)


@dataclass(frozen=True)
class Move:
    """A load or store, the loops around it (variable, trip, identity), and its number in order."""

    item: Load | Store
    loops: tuple[tuple[str, int, int], ...]
    number: int

    @property
    def trips(self) -> Trips:
        """Loop variables in scope and how often each loop runs."""
        return {var: trip for var, trip, _ in self.loops}

    @property
    def extents(self) -> tuple[Extent, ...]:
        """How many elements in each dim."""
        view = self.item.dst if isinstance(self.item, Load) else self.item.src
        return tuple([e for e, _ in view.dims])


def moves(kernel: Kernel) -> list[Move]:
    """Every load and store of a kernel in the order written."""
    out: list[Move] = []
    loops = 0

    def collect(body: tuple[Item, ...], around: tuple[tuple[str, int, int], ...]) -> None:
        nonlocal loops
        for item in body:
            if isinstance(item, Loop):
                loops += 1
                collect(item.body, (*around, (item.var, item.trip, loops)))
            elif isinstance(item, Load | Store):
                out.append(Move(item, around, len(out)))

    collect(kernel.body, ())
    return out


def layout(program: Program, machine: Machine) -> Iterator[Finding]:
    """Tensors lie inside the DRAM of the program, that inside the machine's, and are aligned."""
    if program.dram_bytes > machine.dram_bytes:
        message = f"{program.dram_bytes} bytes of DRAM; {machine.name} has {machine.dram_bytes}"
        yield Finding("layout", "", message)
    for t in program.tensors:
        if t.address + tensor_bytes(t) > program.dram_bytes:
            end = t.address + tensor_bytes(t)
            message = f"tensor '{t.name}' ends at {end}; the program has {program.dram_bytes} bytes"
            yield Finding("layout", "", message)
        if t.address % DTYPE_BYTES[t.dtype]:
            yield Finding("layout", "", f"tensor '{t.name}' is not aligned to its elements")


def _overlaps(program: Program) -> dict[Place, set[Place]]:
    """For each place the other places that share bytes with it."""
    places = sorted({place_of(t) for t in program.tensors if tensor_bytes(t)})
    shared: dict[Place, set[Place]] = {p: set() for p in places}
    active: list[Place] = []
    for place in places:
        active = [a for a in active if a[0] + a[1] > place[0]]
        for other in active:
            shared[place].add(other)
            shared[other].add(place)
        active.append(place)
    return shared


_KEPT = ("parameter", "state", "constant")


def contents(program: Program, machine: Machine) -> Iterator[Finding]:
    """Every tensor that is read was filled before by stores that cover it, and no store to an
    overlapping place came in between; at the end what was stored last is whole, and so are
    parameters, states and constants.

    Inputs, parameters, states and constants are there from the start.  Kernels are taken in
    order, and inside a kernel stores count for the loads below them.  A load that needs no more
    than the stores above it in the same iteration have written may read a tensor that is not
    whole yet.  A store into a place makes what overlaps it worthless as a whole, and in one kernel
    overlapping places may not meet at all, since its engines run side by side.
    """
    tensors = {t.name: t for t in program.tensors}
    shared = _overlaps(program)
    covers = {p: Cover() for p in shared}
    for t in program.tensors:
        if t.role != "value" and tensor_bytes(t):
            covers[place_of(t)].fill()
    last: dict[Place, tuple[Kernel, Move]] = {}
    for kernel in program.kernels:
        yield from _meeting(kernel, tensors, shared)
        above: dict[Place, list[tuple[Move, Placed]]] = {}
        for move in moves(kernel):
            t = tensors[move.item.tensor]
            if not tensor_bytes(t):
                continue
            cover = covers[place_of(t)]
            if isinstance(move.item, Store):
                cover.add(t, move.item, move.extents, move.trips)
                above.setdefault(place_of(t), []).append((move, t))
                last[place_of(t)] = kernel, move
                for other in shared[place_of(t)]:
                    covers[other].clear()
            elif not cover.full() and not _there_already(move, above.get(place_of(t), []), t):
                yield about("contents", kernel, move.item, f"'{t.name}' is read {cover.lack(t)}")
                cover.fill()
    for t in program.tensors:
        if t.role in _KEPT and tensor_bytes(t) and not covers[place_of(t)].full():
            message = f"{t.role} '{t.name}' must outlast the step and is overwritten"
            yield Finding("contents", "", message)
    for place, (kernel, move) in last.items():
        if covers[place].partial():
            t = tensors[move.item.tensor]
            message = f"'{t.name}' is left {covers[place].lack(t)}"
            yield about("contents", kernel, move.item, message)


def _there_already(load: Move, stores: list[tuple[Move, Placed]], t: Placed) -> bool:
    """True when stores of the same iteration of the loops around both cover what is loaded.

    Pieces of several stores are added up by volume; those of strided stores do not count.
    """
    missing: dict[tuple[object, ...], int] = {}
    for store, name in stores:
        if any(step != 1 for step in store.item.step):
            continue
        common = tuple(x for x, y in zip(load.loops, store.loops, strict=False) if x == y)
        shared = {var: trip for var, trip, _ in common}
        flat = name.shape != t.shape
        wanted, given = _inside(load, t, shared, flat), _inside(store, name, shared, flat)
        if [w[0] for w in wanted] != [g[0] for g in given]:
            continue
        key = (flat, *common)
        missing.setdefault(key, prod(high - low for _, low, high in wanted))
        meet = prod(
            max(0, min(w[2], g[2]) - max(w[1], g[1])) for w, g in zip(wanted, given, strict=True)
        )
        written = prod(last - first for _, first, last in _inside(store, name, shared, False))
        missing[key] -= min(meet, written)
    return any(left <= 0 for left in missing.values())


_Part = tuple[dict[str, int], int, int]
"""How the shared loops move what is touched of a dim, and its first and last index beside."""


def _inside(move: Move, t: Placed, shared: Trips, flat: bool) -> list[_Part]:
    """What is touched of the tensor, by dim, or in one dim of all elements."""
    dims: list[_Part] = []
    for k, ((low, width), size) in enumerate(zip(_box(move, t, False), t.shape, strict=True)):
        part, least, span = _split(low, move.trips, shared)
        first, last = least, least + span + width
        limit = move.extents[k].limit
        if limit is not None and move.item.step[k] == 1:  # the last tile may be a smaller one
            with_end, end, more = _split(low + limit, move.trips, shared)
            last = min(last, end + more) if with_end == part else last
        if not part:
            first, last = max(first, 0), min(last, size)
        dims.append((part, first, last))
    return [_flattened(dims, t.shape)] if flat else dims


def _flattened(dims: list[_Part], shape: tuple[int, ...]) -> _Part:
    """A box by dims as the stretch from its first element to its last."""
    part: dict[str, int] = {}
    first, last, stride = 0, 0, 1
    for (moved, low, high), size in zip(reversed(dims), reversed(shape), strict=True):
        for var, coefficient in moved.items():
            part[var] = part.get(var, 0) + coefficient * stride
        first, last, stride = first + low * stride, last + (high - 1) * stride, stride * size
    return part, first, last + 1


def _meeting(
    kernel: Kernel, tensors: dict[str, Placed], shared: dict[Place, set[Place]]
) -> Iterator[Finding]:
    used: dict[Place, str] = {}
    stored: dict[Place, Move] = {}
    for move in moves(kernel):
        t = tensors[move.item.tensor]
        used.setdefault(place_of(t), t.name)
        if isinstance(move.item, Store):
            stored.setdefault(place_of(t), move)
    for place, move in stored.items():
        for other in sorted(shared.get(place, set()) & used.keys()):
            message = f"'{move.item.tensor}' shares bytes with '{used[other]}', also used here"
            yield about("contents", kernel, move.item, message)


@dataclass
class Crossings:
    """Tensors that one kernel both loads and stores in an order that matters.

    `touched` tells for an instruction: number of the name, and whether it leaves an access
    there, asks for those of the other engine to be finished, or both.
    """

    names: list[str] = field(default_factory=list)
    touched: dict[int, list[tuple[int, bool, bool]]] = field(default_factory=dict)


def crossings(program: Program, kernel: Kernel) -> Crossings:
    """Loads and stores of one place in one kernel that need tokens between them.

    For a load and a store three cases: their boxes never meet (different tiles; of all iterations,
    or within each where those of different ones are apart); they meet only within the same
    iteration of the loops around both (each tile is read and written once); or they may meet
    anywhere, and each must wait for all of the other before it.
    """
    out = Crossings()
    all_moves = moves(kernel)
    stored = {m.item.tensor for m in all_moves if isinstance(m.item, Store)}
    if not stored:
        return out
    tensors = {t.name: t for t in program.tensors}
    places: dict[Place, tuple[list[Move], list[Move]]] = {}
    for m in all_moves:
        loads, stores = places.setdefault(place_of(tensors[m.item.tensor]), ([], []))
        (loads if isinstance(m.item, Load) else stores).append(m)
    for loads, stores in places.values():
        before: set[tuple[int, int]] = set()  # (load, store): the store waits for the load
        after: set[tuple[int, int]] = set()  # (load, store): the load waits for the store
        for a in loads:
            for b in stores:
                meet = _meet(a, b, tensors)
                if meet == "anywhere" or (meet == "together" and a.number < b.number):
                    before.add((id(a.item), id(b.item)))
                if meet == "anywhere" or (meet == "together" and b.number < a.number):
                    after.add((id(a.item), id(b.item)))
        _enter(out, before, stores, first=0)
        _enter(out, after, stores, first=1)
    return out


def _enter(out: Crossings, pairs: set[tuple[int, int]], stores: list[Move], first: int) -> None:
    """One name for one direction; item `first` of a pair leaves the access the other asks for."""
    if not pairs:
        return
    number = len(out.names)
    out.names.append(stores[0].item.tensor)
    for leaves in {pair[first] for pair in pairs}:
        out.touched.setdefault(leaves, []).append((number, True, False))
    for asks in {pair[1 - first] for pair in pairs}:
        out.touched.setdefault(asks, []).append((number, False, True))


def _meet(a: Move, b: Move, tensors: dict[str, Placed]) -> str:
    """'never', 'together' (in the same iteration only) or 'anywhere'."""
    flat = tensors[a.item.tensor].shape != tensors[b.item.tensor].shape
    boxes = [_box(m, tensors[m.item.tensor], flat) for m in (a, b)]
    for (low_a, width_a), (low_b, width_b) in zip(*boxes, strict=True):
        end_a = highest(low_a, a.trips) + width_a
        end_b = highest(low_b, b.trips) + width_b
        if end_a <= lowest(low_b, b.trips) or end_b <= lowest(low_a, a.trips):
            return "never"
    common = [x for x, y in zip(a.loops, b.loops, strict=False) if x == y]
    shared = {var: trip for var, trip, _ in common if trip > 1}
    separated: set[str] = set()
    beside = False
    for (low_a, width_a), (low_b, width_b) in zip(*boxes, strict=True):
        part_a, rest_a, span_a = _split(low_a, a.trips, shared)
        part_b, rest_b, span_b = _split(low_b, b.trips, shared)
        if part_a != part_b:
            return "anywhere"
        ends = rest_a + span_a + width_a, rest_b + span_b + width_b
        beside |= ends[0] <= rest_b or ends[1] <= rest_a
        if _apart(part_a, max(ends) - min(rest_a, rest_b), shared):
            separated |= part_a.keys()
    if not separated >= shared.keys():
        return "anywhere"
    return "never" if beside else "together"


def _box(m: Move, t: Placed, flat: bool) -> list[tuple[Affine, int]]:
    """Lowest index and width of what is moved, by dim, or in one dim of all elements."""
    dims = []
    for start, step, extent in zip(m.item.start, m.item.step, m.extents, strict=True):
        reach = (extent.size - 1) * step
        dims.append((start + min(reach, 0), abs(reach) + 1))
    if not flat:
        return dims
    low, width, stride = Affine(), 1, 1
    for (start, wide), size in zip(reversed(dims), reversed(t.shape), strict=True):
        low, width, stride = low + start * stride, width + (wide - 1) * stride, stride * size
    return [(low, width)]


def _split(low: Affine, trips: Trips, shared: Trips) -> tuple[dict[str, int], int, int]:
    """Coefficients of the shared variables; least value and span of the rest."""
    rest = Affine(low.const, tuple([(v, c) for v, c in low.terms if v not in shared]))
    least = lowest(rest, trips)
    return {v: c for v, c in low.terms if v in shared}, least, highest(rest, trips) - least


def _apart(part: dict[str, int], width: int, trips: Trips) -> bool:
    """True when boxes of that width do not touch for any two different values of the variables."""
    for var, coefficient in sorted(part.items(), key=lambda p: abs(p[1])):
        if abs(coefficient) < width:
            return False
        width += abs(coefficient) * (trips[var] - 1)
    return True
