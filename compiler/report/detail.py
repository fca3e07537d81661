"""What each kernel of a program did, from executing every kernel on its own.

Between two kernels all engines meet, so a kernel alone takes exactly the cycles that it takes
inside the step (the tests hold one against the other).  That makes the per-kernel figures of a
report as exact as its totals, at the price of a second simulation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from math import prod

from ccnn.targets.machine import Machine
from ccnn.targets.program import (
    DTYPE_BYTES,
    Affine,
    Instruction,
    Item,
    Kernel,
    Load,
    Loop,
    Matrix,
    Placed,
    Program,
    Slot,
    Store,
    View,
)
from ccnn.targets.simulator import Trace, simulate
from ccnn.targets.simulator.trace import (
    Counts,
    EngineTrace,
    Event,
    KernelTrace,
    LayerTrace,
    TensorTrace,
)

TENSOR_CLASSES = (
    "input",
    "parameter",
    "state",
    "activation",
    "gradient",
    "weight gradient",
    "constant",
)
"""What a DRAM tensor is to a training step, in the order in which charts show them."""


ALL_EVENTS, MOST_EVENTS, FEWEST_EVENTS = 40_000, 64, 12
"""Instructions kept as events in all, and at the most and the least of each kernel."""


@dataclass(frozen=True)
class BufferUse:
    """A buffer of one kernel: its place, and the DRAM tensors that pass through it."""

    name: str
    space: str
    address: int
    """Bytes from the start of the GBUF; 0 in the other spaces."""
    bytes: int
    """All slots together."""
    depth: int
    loaded: tuple[str, ...]
    stored: tuple[str, ...]


@dataclass(frozen=True)
class KernelDetail:
    """One kernel: when it ran, what it did, and its first instructions on a timeline.

    Events count cycles from the start of the kernel.
    """

    name: str
    start: int
    end: int
    nodes: tuple[int, ...]
    """Numbers of the graph nodes served, in ascending order."""
    counts: Counts
    engines: tuple[EngineTrace, ...]
    layers: tuple[LayerTrace, ...]
    """The same by graph node; their cycles add up to the kernel's."""
    tensors: tuple[TensorTrace, ...]
    movers: tuple[tuple[str, int, int], ...]
    """(tensor, node that loads it, node that stores it), the first of each; -1 for none."""
    buffers: tuple[BufferUse, ...]
    events: tuple[Event, ...]

    @property
    def cycles(self) -> int:
        """From the barrier before it to its last result."""
        return self.end - self.start


def kernel_details(
    program: Program,
    machine: Machine,
    kernels: Sequence[KernelTrace] = (),
    max_events: int | None = None,
) -> tuple[KernelDetail, ...]:
    """The details of every kernel; `kernels` are those of the step's trace, simulated if absent.

    At most `max_events` instructions of each kernel are kept as events, by default as many as
    keep the whole within ALL_EVENTS. Raises SimulationError.
    """
    if max_events is None:
        share = ALL_EVENTS // max(1, len(program.kernels))
        max_events = min(MOST_EVENTS, max(FEWEST_EVENTS, share))
    placed = kernels or simulate(program, machine).kernels
    return tuple(
        _detail(kernel, at, alone(program, machine, number, max_events))
        for number, (kernel, at) in enumerate(zip(program.kernels, placed, strict=True))
    )


def alone(program: Program, machine: Machine, number: int, max_events: int = 0) -> Trace:
    """The trace of one kernel executed on its own."""
    one = replace(program, kernels=(program.kernels[number],))
    return simulate(one, machine, events=max_events > 0, max_events=max_events)


def _detail(kernel: Kernel, at: KernelTrace, trace: Trace) -> KernelDetail:
    nodes = {i.node for i in instructions(kernel.body)}
    return KernelDetail(
        kernel.name,
        at.start,
        at.end,
        tuple(sorted(nodes)),
        trace.counts,
        trace.engines,
        trace.layers,
        trace.tensors,
        _movers(kernel),
        _buffers(kernel),
        trace.events,
    )


def instructions(items: Sequence[Item]) -> Iterator[Instruction]:
    """Every instruction of a body once, loops not repeated."""
    for item in items:
        if isinstance(item, Loop):
            yield from instructions(item.body)
        elif isinstance(item, Instruction):
            yield item


def _movers(kernel: Kernel) -> tuple[tuple[str, int, int], ...]:
    loads: dict[str, int] = {}
    stores: dict[str, int] = {}
    for i in instructions(kernel.body):
        if isinstance(i, Load):
            loads.setdefault(i.tensor, i.node)
        elif isinstance(i, Store):
            stores.setdefault(i.tensor, i.node)
    names = sorted({*loads, *stores})
    return tuple((name, loads.get(name, -1), stores.get(name, -1)) for name in names)


def _buffers(kernel: Kernel) -> tuple[BufferUse, ...]:
    loaded: dict[str, dict[str, None]] = {b.name: {} for b in kernel.buffers}
    stored: dict[str, dict[str, None]] = {b.name: {} for b in kernel.buffers}
    for i in instructions(kernel.body):
        if isinstance(i, Load):
            loaded[i.dst.buffer][i.tensor] = None
        elif isinstance(i, Store):
            stored[i.src.buffer][i.tensor] = None
    return tuple(
        BufferUse(
            b.name,
            b.space,
            b.address,
            b.size * b.depth * DTYPE_BYTES[b.dtype],
            b.depth,
            tuple(loaded[b.name]),
            tuple(stored[b.name]),
        )
        for b in kernel.buffers
    )


def tensor_bytes(tensor: Placed) -> int:
    """Bytes of a whole tensor in DRAM."""
    return prod(tensor.shape) * DTYPE_BYTES[tensor.dtype]


def tensor_classes(program: Program) -> dict[str, str]:
    """Tensor name to one of TENSOR_CLASSES.

    A computed tensor is an activation when the forward phase stores it and a gradient when a
    later one does; it is a weight gradient when the update reads it, or when nothing does (the
    update had it on chip) and it is shaped like a parameter, and counts as parameter or state when
    it takes the place of one.
    """
    homes = {t.address: t.role for t in program.tensors if t.role in ("parameter", "state")}
    address = {t.name: t.address for t in program.tensors}
    stored_in: dict[str, str] = {}
    updating: set[str] = set()
    holder: dict[int, str] = {}
    stands_for: dict[str, str] = {}
    for kernel in program.kernels:
        for i in instructions(kernel.body):
            phase = program.nodes[i.node].phase
            if isinstance(i, Store):
                stored_in.setdefault(i.tensor, phase)
                holder[address[i.tensor]] = i.tensor
            elif isinstance(i, Load):
                # It may be read under another name than it was stored by.
                name = stands_for.setdefault(i.tensor, holder.get(address[i.tensor], i.tensor))
                if phase == "update":
                    updating.add(name)
    shapes = {t.shape for t in program.tensors if t.role == "parameter"}
    read = set(stands_for.values())
    found = {}
    for t in program.tensors:
        name = t.name if t.name in stored_in else stands_for.get(t.name, t.name)
        if t.role != "value":
            found[t.name] = t.role
        elif t.address in homes:
            found[t.name] = homes[t.address]
        elif stored_in.get(name, "forward") == "forward":
            found[t.name] = "activation"
        else:
            unread = name not in read and t.shape in shapes
            found[t.name] = "weight gradient" if name in updating or unread else "gradient"
    return found


@dataclass(frozen=True)
class Edge:
    """A node reads in DRAM what another wrote, or (`bytes` 0) takes it over on chip."""

    source: int
    target: int
    bytes: int


def edges(program: Program) -> tuple[Edge, ...]:
    """Which node hands on to which, as the program's loads and stores show it, and inside a kernel
    the buffers that one node writes and another reads."""
    placed = {t.name: t for t in program.tensors}
    writer: dict[int, int] = {}
    found: dict[tuple[int, int], int] = {}
    for kernel in program.kernels:
        holder: dict[str, int] = {}
        for i in instructions(kernel.body):
            reads, writes = operands(i)
            for name in reads:
                if holder.get(name, i.node) < i.node:
                    found.setdefault((holder[name], i.node), 0)
            if isinstance(i, Load | Store):
                tensor = placed[i.tensor]
                if isinstance(i, Store):
                    writer[tensor.address] = i.node
                elif writer.get(tensor.address, i.node) != i.node:
                    key = writer[tensor.address], i.node
                    found[key] = max(found.get(key, 0), tensor_bytes(tensor))
            if not isinstance(i, Load):  # what is loaded was made in another kernel
                holder |= dict.fromkeys(writes, i.node)
    return tuple(Edge(a, b, n) for (a, b), n in found.items())


def operands(item: Instruction) -> tuple[set[str], set[str]]:
    """Names of the buffers that an instruction reads and writes."""
    reads: set[str] = set()
    writes: set[str] = set()
    for field in fields(item):
        value = getattr(item, field.name)
        for each in value if isinstance(value, tuple) else (value,):
            if isinstance(each, View | Matrix | Slot):
                written = field.name in ("dst", "acc" if item.engine == "array" else "dst")
                (writes if written else reads).add(each.buffer)
    adds = getattr(item, "accumulate", None)
    if isinstance(adds, Affine) and not adds.terms and adds.const > 0:
        reads |= writes
    return reads, writes
