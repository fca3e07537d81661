"""Simulate a whole program: kernels one after the other, then the tallies summed into a trace."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

from ccnn.targets.machine import Machine
from ccnn.targets.program import ENGINES, Instruction, Item, Loop, Program
from ccnn.targets.simulator.errors import SimulationError
from ccnn.targets.simulator.timing import Charge, KernelTiming, Recorder
from ccnn.targets.simulator.trace import (
    NOT_MODELLED,
    OF_ARRAYS,
    Counts,
    EngineTrace,
    KernelTrace,
    LayerTrace,
    TensorTrace,
    Trace,
)

STATIC = "static_cycle"
"""The row of the energy table that is charged for every cycle."""


def simulate(
    program: Program, machine: Machine, fast: bool = True, events: bool = False,
    max_events: int = 100_000,
) -> Trace:  # fmt: skip
    """What the program costs on the machine, to the cycle; values play no part.

    `fast=False` executes every iteration and gives the same trace.  `events` keeps the first
    `max_events` instructions for a timeline.  Raises SimulationError.
    """
    recorder = Recorder(event_limit=max_events if events else 0)
    kernels: list[KernelTrace] = []
    tensors = {t.name: t for t in program.tensors}
    now = 0
    for kernel in program.kernels:
        first = _first(kernel.body)
        if first is None:
            kernels.append(KernelTrace(kernel.name, now, now))
            continue
        if kernels and kernels[-1].end:
            barrier = recorder.number(Charge(first.node, "", "barrier", None)) + 1
            tally = recorder.tally
            tally[barrier] = tally.get(barrier, 0) + machine.barrier_cycles
            now += machine.barrier_cycles
        timing = KernelTiming(tensors, kernel, machine, recorder, now, fast)
        timing.run(timing.code)
        kernels.append(KernelTrace(kernel.name, now, timing.horizon))
        now = timing.horizon
    return _trace(program, machine, recorder, tuple(kernels), now)


def _first(items: Iterable[Item]) -> Instruction | None:
    """The first instruction of a body."""
    for item in items:
        if isinstance(item, Instruction):
            return item
        if isinstance(item, Loop):
            inner = _first(item.body)
            if inner is not None:
                return inner
    return None


class _Sum:
    """Adds up what one layer, one engine or the whole step did."""

    def __init__(self) -> None:
        self.cycles = 0
        self.busy: dict[str, int] = defaultdict(int)
        self.stalls: dict[str, int] = defaultdict(int)
        self.actions: dict[str, int] = defaultdict(int)
        self.totals: dict[str, int] = defaultdict(int)

    def add(self, charge: Charge, count: int) -> None:
        """`count` instructions of one kind."""
        cost = charge.cost
        if cost is None or not count:
            return
        self.busy[charge.engine] += cost.occupancy * count
        for action, n in cost.actions().items():
            self.actions[action] += n * count
        self.totals["instructions"] += count
        self.totals["macs"] += cost.macs * count
        self.totals["vector_ops"] += cost.vector_ops * count
        self.totals["dram_read_bytes"] += cost.dram_read * count
        self.totals["dram_write_bytes"] += cost.dram_write * count
        self.totals["gbuf_read_bytes"] += cost.gbuf_read * count
        self.totals["gbuf_write_bytes"] += cost.gbuf_write * count
        self.totals["lbuf_bytes"] += cost.lbuf * count
        self.totals["acc_bytes"] += cost.acc * count

    def energy(self, machine: Machine) -> tuple[tuple[str, int, float], ...]:
        """(action, how often, pJ) of each action; cycles are charged as static energy."""
        actions = {**self.actions, STATIC: self.cycles} if self.cycles else self.actions
        rows = []
        for action, n in sorted(actions.items()):
            if action not in machine.energy_pj:
                raise SimulationError(
                    f"machine {machine.name} has no energy for '{action}'; add that row to its "
                    f"table (it has {', '.join(sorted(machine.energy_pj))})"
                )
            rows.append((action, n, n * machine.energy_pj[action]))
        return tuple(rows)

    def counts(self, machine: Machine) -> Counts:
        """The sums as a frozen value."""
        energy = sum(pj for _, _, pj in self.energy(machine))
        return replace(Counts(energy_pj=energy), **self.totals)


def _pairs(table: dict[str, int]) -> tuple[tuple[str, int], ...]:
    """The entries of a table that are not 0, engines in their usual order."""
    order = {name: n for n, name in enumerate(ENGINES)}
    items = [(k, v) for k, v in table.items() if v]
    return tuple(sorted(items, key=lambda kv: (order.get(kv[0], len(order)), kv[0])))


def _trace(
    program: Program, machine: Machine, recorder: Recorder, kernels: tuple[KernelTrace, ...],
    cycles: int,
) -> Trace:  # fmt: skip
    """The tallies of a run, summed by layer, engine and tensor."""
    total, layers, engines = _Sum(), defaultdict(_Sum), {name: _Sum() for name in ENGINES}
    opcodes: dict[str, int] = defaultdict(int)
    modes: dict[str, int] = defaultdict(int)
    traffic: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for n, charge in enumerate(recorder.charges):
        count, moved = recorder.tally.get(2 * n, 0), recorder.tally.get(2 * n + 1, 0)
        cost = charge.cost
        if charge.cause:
            engines[charge.engine].stalls[charge.cause] += count
            continue
        layers[charge.node].cycles += moved
        if cost is None:
            continue
        for where in (total, layers[charge.node], engines[charge.engine]):
            where.add(charge, count)
        opcodes[charge.opcode] += count
        if charge.engine == "array":
            modes[charge.mode] += cost.occupancy * count
        if cost.tensor:
            traffic[cost.tensor][0] += cost.dram_read * count
            traffic[cost.tensor][1] += cost.dram_write * count
    total.cycles = cycles
    return Trace(
        program=program.name,
        machine=machine.name,
        cycles=cycles,
        seconds=cycles / (machine.clock_ghz * 1e9),
        rows=machine.rows,
        cols=machine.cols,
        arrays=machine.arrays,
        not_modelled=NOT_MODELLED + (OF_ARRAYS if machine.arrays > 1 else ()),
        counts=total.counts(machine),
        energy=total.energy(machine),
        opcodes=tuple(sorted((k, v) for k, v in opcodes.items() if v)),
        modes=tuple(sorted((k, v) for k, v in modes.items() if v)),
        layers=tuple(_layer(program, machine, node, s) for node, s in sorted(layers.items())),
        engines=tuple(
            EngineTrace(name, sum(s.busy.values()), _pairs(s.stalls), s.counts(machine))
            for name, s in engines.items()
        ),
        tensors=tuple(TensorTrace(name, r, w) for name, (r, w) in sorted(traffic.items())),
        kernels=kernels,
        events=tuple(recorder.events),
    )


def _layer(program: Program, machine: Machine, node: int, s: _Sum) -> LayerTrace:
    if not 0 <= node < len(program.nodes):
        raise SimulationError(f"an instruction serves node {node} of {len(program.nodes)}")
    ref = program.nodes[node]
    return LayerTrace(
        node, ref.name, ref.op, ref.origin, ref.phase, s.cycles, _pairs(s.busy), s.counts(machine)
    )
