"""Writing one kernel: loops, pipes and the tokens that keep engines apart.

A `Pipe` is a buffer with its pair of tokens: `NAME.free` counts empty slots (so the producer may
run that far ahead), `NAME.full` counts filled ones.  The writer never numbers slots by hand:
each production gets a ticket, and when the kernel is finished the tickets become affine slot
numbers by counting productions through the loops.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from ccnn.compiler.codegen.ordering import Link, Region, order_sections, part_name
from ccnn.targets.program import (
    DTYPE_BYTES,
    ZERO,
    Affine,
    Buffer,
    Dim,
    Extent,
    Instruction,
    Item,
    Kernel,
    Load,
    Loop,
    Matrix,
    Slot,
    Store,
    Sync,
    Token,
    View,
    var,
)


class CodegenError(Exception):
    """A node that cannot be turned into instructions on this machine, and what to do about it."""


@dataclass(eq=False)
class Ticket:
    """One place in the code where a slot of a pipe is filled; its number comes later."""

    pipe: Pipe
    loops: tuple[_Body, ...]
    before: int
    """Productions of the same pipe that stand earlier in the same body."""


@dataclass(eq=False)
class Pipe:
    """A buffer that one engine fills and one empties."""

    name: str
    space: str
    dtype: str
    size: int
    depth: int
    giver: str = ""
    taker: str = ""

    @property
    def bytes(self) -> int:
        """Bytes of all slots."""
        return self.size * self.depth * DTYPE_BYTES[self.dtype]


@dataclass(eq=False)
class _Body:
    """The inside of a loop while it is written; the kernel itself is the outermost."""

    var: str = ""
    trip: int = 1
    items: list[Any] = field(default_factory=list)
    produced: dict[str, int] = field(default_factory=dict)

    @cached_property
    def _filled(self) -> tuple[dict[int, int], dict[str, tuple[list[int], list[int]]]]:
        """Where each inner loop stands, and by pipe where its slots are filled and how many have
        been by then; asked for when everything is written."""
        places: dict[int, int] = {}
        filled: dict[str, tuple[list[int], list[int]]] = {}
        for place, item in enumerate(self.items):
            if isinstance(item, _Body):
                places[id(item)] = place
                made = {name: count * item.trip for name, count in item.produced.items()}
            elif isinstance(item, Sync) and item.kind == "wait" and item.token.endswith(".free"):
                made = {item.token.removesuffix(".free"): 1}
            else:
                continue
            for name, count in made.items():
                at, totals = filled.setdefault(name, ([], [0]))
                at.append(place)
                totals.append(totals[-1] + count)
        return places, filled

    def before(self, inner: _Body, name: str) -> int:
        """How many slots of a pipe this body fills in front of an inner one."""
        places, filled = self._filled
        at, totals = filled.get(name, ([], [0]))
        return totals[bisect_left(at, places[id(inner)])]


@dataclass(frozen=True)
class Edge:
    """Where a section begins or ends: the place for the tokens that order it."""

    section: int
    begins: bool
    fresh: bool
    """This stands in the first iteration."""


class KernelWriter:
    """Collects the instructions of one kernel in program order."""

    def __init__(self, name: str, node: int, gbuf_bytes: int) -> None:
        self.name = name
        self.node = node
        self.gbuf_bytes = gbuf_bytes
        self.pipes: dict[str, Pipe] = {}
        self.regions: dict[str, Region] = {}
        self.stack: list[_Body] = [_Body()]
        self.loops = 0
        self.own_tokens: set[str] = set()
        self.section = -1
        self.touched: dict[int, dict[tuple[str, str], bool]] = {}
        """Section to (engine, region) to whether it writes."""
        self.roots: Mapping[str, str] = {}
        """Tensors of the group to the names of their bytes in DRAM."""
        self.once: set[int] = set()
        """Sections that only the first iteration has."""
        self.fresh = True

    def pipe(
        self,
        name: str,
        space: str,
        dtype: str,
        size: int,
        depth: int = 1,
        giver: str = "",
        taker: str = "",
    ) -> Pipe:
        """A buffer of at least `size` elements a slot that `giver` fills and `taker` empties.

        Nodes of a group share the pipes that agree in name, dtype, depth and engines.
        """
        wanted = (dtype, depth, giver, taker)
        key, number = name, 1
        while key in self.pipes:
            p = self.pipes[key]
            if (p.dtype, p.depth, p.giver, p.taker) == wanted:
                break
            key, number = f"{name}.{number}", number + 1
        else:
            self.pipes[key] = Pipe(key, space, dtype, 0, depth, giver, taker)
        self.pipes[key].size = max(self.pipes[key].size, size)
        return self.pipes[key]

    @contextmanager
    def loop(self, trip: int) -> Iterator[Affine]:
        """A hardware loop; gives its variable (zero when the loop runs only once)."""
        if trip == 1:
            yield ZERO
            return
        body = _Body(f"i{self.loops}", trip)
        self.loops += 1
        self.stack.append(body)
        yield var(body.var)
        self.stack.pop()
        self.stack[-1].items.append(body)
        for name, count in body.produced.items():
            here = self.stack[-1].produced
            here[name] = here.get(name, 0) + count * trip

    @contextmanager
    def part(self, section: int, once: bool = False) -> Iterator[None]:
        """The code of one section of a group; the same number again in another iteration.

        `once`: only the first iteration has it.
        """
        if once:
            self.once.add(section)
        self.section = section
        self.touched.setdefault(section, {})
        self.stack[-1].items.append(Edge(section, True, self.fresh))
        yield
        self.stack[-1].items.append(Edge(section, False, self.fresh))
        self.section = -1

    def emit(self, instruction: Instruction) -> None:
        """Append an instruction."""
        self.stack[-1].items.append(instruction)
        if self.section < 0:
            return
        seen = self.touched[self.section]
        for operand, written in operands_of(instruction):
            if operand.buffer in self.regions:
                region, part = self.regions[operand.buffer], operand.slot.const
                key = (instruction.engine, part_name(region, part))
                seen[key] = seen.get(key, False) or written
        if isinstance(instruction, Load | Store):
            # what one node puts into DRAM and another fetches needs an order just the same
            key = (instruction.engine, self.in_dram(instruction.tensor))
            seen[key] = seen.get(key, False) or isinstance(instruction, Store)

    def in_dram(self, tensor: str) -> str:
        """What a tensor's bytes in DRAM are called among the regions."""
        return f"%{self.roots.get(tensor, tensor)}"

    def sync(self, engine: str, kind: str, token: str) -> None:
        """Append a wait, signal or release."""
        self.stack[-1].items.append(Sync(engine, kind, token))

    def pair(self, giver: str, taker: str, token: str) -> None:
        """`taker` goes on when `giver` has written what it issued so far."""
        self.own_tokens.add(token)
        self.sync(giver, "signal", token)
        self.sync(taker, "wait", token)

    def fill(self, pipe: Pipe, engine: str) -> Ticket:
        """Open the next slot of a pipe for writing by `engine`."""
        self.sync(engine, "wait", f"{pipe.name}.free")
        here = self.stack[-1].produced
        ticket = Ticket(pipe, tuple(self.stack), here.get(pipe.name, 0))
        here[pipe.name] = here.get(pipe.name, 0) + 1
        return ticket

    def filled(self, pipe: Pipe, engine: str) -> None:
        """The slot holds its data."""
        self.sync(engine, "signal", f"{pipe.name}.full")

    def take(self, pipe: Pipe, engine: str) -> None:
        """`engine` begins to read the oldest filled slot."""
        self.sync(engine, "wait", f"{pipe.name}.full")

    def done(self, pipe: Pipe, engine: str) -> None:
        """`engine` has issued its last read of that slot."""
        self.sync(engine, "release", f"{pipe.name}.free")

    def pipe_bytes(self) -> int:
        """Bytes of global buffer that the pipes take."""
        return sum(-(-p.bytes // 64) * 64 for p in self.pipes.values() if p.space == "gbuf")

    def finish(self) -> Kernel:
        """The kernel; raises CodegenError when its buffers do not fit the global buffer.

        Regions must have their addresses by now, counted from the end of the pipes.
        """
        buffers, address = [], 0
        for p in self.pipes.values():
            place = 0
            if p.space == "gbuf":
                place = -(-address // 64) * 64
                address = place + p.bytes
            buffers.append(Buffer(p.name, p.space, p.dtype, p.size, p.depth, place))
        base = -(-address // 64) * 64
        for r in self.regions.values():
            place = r.address + (0 if r.fixed else base)
            buffers.append(Buffer(r.name, "gbuf", r.dtype, r.size, r.depth, place, r.found))
            address = address if r.fixed else max(address, place + r.bytes)
        if address > self.gbuf_bytes:
            sizes = ", ".join(
                f"{b.name} {b.size * b.depth * DTYPE_BYTES[b.dtype]}"
                for b in buffers
                if b.space == "gbuf"
            )
            raise CodegenError(
                f"'{self.name}' needs {address} bytes of global buffer and the machine has "
                f"{self.gbuf_bytes} ({sizes}); use a machine with a larger buffer"
            )
        tokens = []
        for p in self.pipes.values():
            tokens += [Token(f"{p.name}.free", p.depth), Token(f"{p.name}.full", 0)]
        tokens += [Token(t) for t in sorted(self.own_tokens)]
        links = order_sections(self.touched, list(self.regions.values()), self.once)
        tokens += [Token(link.token, int(link.carried)) for link in links]
        by_section: dict[tuple[int, bool], list[Link]] = defaultdict(list)
        for link in links:
            by_section[link.after, True].append(link)
            by_section[link.before, False].append(link)
        return Kernel(
            self.name, tuple(buffers), tuple(tokens), self._close(self.stack[0], by_section)
        )

    def _close(self, body: _Body, links: Mapping[tuple[int, bool], list[Link]]) -> tuple[Item, ...]:
        """What a body becomes; `links` by the section they are for, and whether at its begin."""
        items: list[Item] = []
        for item in body.items:
            if isinstance(item, _Body):
                items.append(Loop(item.var, item.trip, self._close(item, links)))
            elif isinstance(item, Edge):
                items += [
                    Sync(link.taker, "wait", link.token)
                    if item.begins
                    else Sync(link.giver, "signal", link.token)
                    for link in links.get((item.section, item.begins), ())
                    if item.fresh or link.before not in self.once
                ]
            else:
                items.append(_resolve(item))
        return tuple(items)


def operands_of(instruction: Instruction) -> Iterator[tuple[View | Matrix | Slot, bool]]:
    """The buffer operands of an instruction, and whether each is written."""
    for key, value in vars(instruction).items():
        if isinstance(value, View | Matrix | Slot):
            yield value, key == "dst"
        elif isinstance(value, tuple):
            yield from ((v, False) for v in value if isinstance(v, View))


def _number(ticket: Ticket) -> Affine:
    """How many slots were filled before this one, modulo the depth."""
    pipe = ticket.pipe
    if pipe.depth == 1:
        return ZERO
    number = Affine(ticket.before)
    for outer, inner in zip(ticket.loops, ticket.loops[1:], strict=False):
        number = number + var(inner.var, inner.produced.get(pipe.name, 0) % pipe.depth)
        # what stands before the inner loop in the outer body was counted when it was closed
        number = number + outer.before(inner, pipe.name)
    return Affine(number.const % pipe.depth, number.terms)


def _resolve(item: Item) -> Item:
    """An instruction with its tickets turned into slot numbers."""
    if isinstance(item, Sync):
        return item
    changes = {}
    for key, value in vars(item).items():
        if isinstance(value, View | Matrix | Slot) and isinstance(value.slot, Ticket):
            changes[key] = replace(value, slot=_number(value.slot))
        elif isinstance(value, tuple) and value and isinstance(value[0], View):
            changes[key] = tuple(
                replace(v, slot=_number(v.slot)) if isinstance(v.slot, Ticket) else v for v in value
            )
    return replace(item, **changes) if changes else item


def dims_of(shape: tuple[int | Extent, ...], tile: tuple[int, ...]) -> tuple[Dim, ...]:
    """Row-major dims of a block of `shape` inside a buffer tile of extents `tile`."""
    strides, step = [], 1
    for size in reversed(tile):
        strides.append(step)
        step *= size
    return tuple(
        (s if isinstance(s, Extent) else Extent(s), d)
        for s, d in zip(shape, reversed(strides), strict=True)
    )


def view(ticket: Ticket, dims: tuple[Dim, ...], offset: Affine = ZERO) -> View:
    """A block of the slot that `ticket` stands for."""
    return View(ticket.pipe.name, dims, offset, ticket)  # type: ignore[arg-type]


def slot(ticket: Ticket) -> Slot:
    """The whole slot that `ticket` stands for."""
    return Slot(ticket.pipe.name, ticket)  # type: ignore[arg-type]


def merge(dims: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """The same sequence of addresses with as few dims as possible."""
    out: list[tuple[int, int]] = []
    for extent, stride in dims:
        if extent.size == 1:
            continue
        if out and out[-1][1] == stride * extent.size:
            out[-1] = (out[-1][0] * extent.size, stride)
        else:
            out.append((extent.size, stride))
    return tuple((Extent(e), s) for e, s in out) or ((Extent(1), 1),)


@dataclass(frozen=True)
class Segment:
    """A run of equal tiles: `count` tiles of `size` from `start`, one after the other."""

    start: int
    size: int
    count: int


def segments(total: int, tile: int) -> list[Segment]:
    """Whole tiles, then the remainder."""
    whole, rest = divmod(total, tile)
    made = [Segment(0, tile, whole)] if whole else []
    return made + ([Segment(whole * tile, rest, 1)] if rest else [])
