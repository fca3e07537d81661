"""Which schedule: candidates are estimated, the promising ones executed, the best one is kept.

A candidate is a value for each option that was left to be chosen.  Those that share serialization
and recomputation are a pair, led by its first one: with the least room for tiles and, for `time`,
in halves.  The leaders are estimated, from the traffic that their groups will cause and the work
that recomputation adds:

    time      DRAM bytes / bytes per cycle + multiply-accumulates / PEs, as if nothing overlapped
    traffic   DRAM bytes
    energy    that of the DRAM bytes, the multiply-accumulates and the cycles of `time`

Then programs are compiled and executed: the first candidate (the conventional schedule, unless it
was ruled out); the `PAIRS` leaders with the lowest estimates, as far as they are within `MARGIN` of
the lowest; then what differs from the best so far only in the room for tiles or only in whether
groups go in halves.  What the executed programs took decides; of equal ones the first wins.

The order is fixed.  Without a budget the same candidates are tried on any computer, so the result
is the same; with one, those that come after it ran out are not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar, get_args

from ccnn.compiler.codegen.emit import CodegenError
from ccnn.compiler.mapping import MappingError
from ccnn.passes.graph import Graph
from ccnn.passes.ops import op_named
from ccnn.targets.machine import Machine
from ccnn.targets.simulator import Trace

Objective = Literal["time", "traffic", "energy"]
Serialization = Literal["none", "fused", "full", "mbs1", "mbs2", "best"]
Recomputation = Literal["none", "cheap", "layers"]

PAIRS = 5
MARGIN = 0.25
"""How far above the lowest an estimate may be, as a share of it; estimates of traffic were within
two hundredths of what was executed, those of time only rank."""
SERIALIZE: tuple[Serialization, ...] = get_args(Serialization)
RECOMPUTE: tuple[Recomputation, ...] = get_args(Recomputation)
TILES = (0.1, 0.25, 0.4)
"""Shares of the buffer that groups leave to the tiles that stream through it."""

KEYS = {"time": "cycles", "traffic": "dram_bytes", "energy": "energy_pj"}
"""What an objective keeps low, as it is called in a trace."""

Compiled = TypeVar("Compiled")


@dataclass(frozen=True)
class Candidate:
    """The options that a search chooses."""

    serialize: Serialization
    recompute: Recomputation
    tiles: float | None = None
    """None: there are no groups that leave room."""
    halves: bool = False
    """Whether array and vector unit work on two halves of an iteration's samples at once."""

    @property
    def pair(self) -> tuple[str, str]:
        """What the candidate shares with those that differ in tiles and halves only."""
        return self.serialize, self.recompute

    def beside(self, other: Candidate) -> bool:
        """True when the two differ in the room for tiles alone, or in halves alone."""
        alike = self.pair == other.pair
        return alike and (self.tiles != other.tiles) != (self.halves != other.halves)


@dataclass(frozen=True)
class Tried:
    """A candidate and what became of it; figures of the executed program where there is one."""

    candidate: Candidate
    estimate: float | None = None
    """In units of the objective (cycles, bytes, pJ); None when time was up before."""
    cycles: int | None = None
    dram_bytes: int | None = None
    energy_pj: float | None = None
    why_not: str = ""
    """Why it was not executed; '' when it was."""

    def figure(self, objective: Objective) -> float:
        """What the executed program took of what is kept low."""
        return getattr(self, KEYS[objective])


@dataclass(frozen=True)
class Choice:
    """The end of a search."""

    objective: Objective
    budget_seconds: float | None
    tried: tuple[Tried, ...]
    """All candidates, in the order of the list."""
    best: Candidate


def candidates(
    serialize: Serialization | Literal["auto"],
    recompute: Recomputation | Literal["auto"],
    in_halves: bool = False,
) -> tuple[Candidate, ...]:
    """The list of a search; `auto` stands for every value, anything else for itself.

    The conventional schedule comes first where it is among them, and before the others of its pair
    the one that leads.  With `in_halves`, groups may also go in halves, which can save time but
    neither bytes nor energy.
    """
    return tuple(
        Candidate(s, r, share, halves)
        for s in (SERIALIZE if serialize == "auto" else (serialize,))
        for r in (RECOMPUTE if recompute == "auto" else (recompute,))
        for share in ((None,) if s == "none" else TILES)
        for halves in ((True, False) if in_halves and s != "none" else (False,))
    )


@dataclass(frozen=True)
class Work:
    """What a candidate is known to do before it is compiled."""

    dram_bytes: int
    macs: int
    mac_bits: int


def predict(objective: Objective, machine: Machine, work: Work) -> float:
    """The estimate of a candidate, in units of the objective."""
    moved, macs = work.dram_bytes, work.macs
    cycles = moved / machine.bytes_per_cycle + macs / machine.peak_macs_per_cycle
    counts = {"dram_byte": moved, f"mac_{work.mac_bits}bit": macs, "static_cycle": cycles}
    energy = sum(machine.energy_pj.get(action, 0.0) * n for action, n in counts.items())
    return {"time": cycles, "traffic": float(moved), "energy": energy}[objective]


def count_macs(graph: Graph) -> int:
    """Multiply-accumulates of a graph of primitives, those with padding included."""
    return sum(
        op_named(n.op).macs(
            n, [graph[i] if i else None for i in n.inputs], [graph[o] for o in n.outputs if o]
        )
        for n in graph.nodes
    )


def search(
    listed: Sequence[Candidate],
    objective: Objective,
    estimate: Callable[[Candidate], float],
    execute: Callable[[Candidate], tuple[Compiled, Trace]],
    budget_seconds: float | None = None,
    tell: Callable[[str, int, int], None] = lambda stage, done, total: None,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[Compiled, Choice]:
    """The best executed candidate, and how it was found.

    The first of the list is always executed, whatever the budget.
    """
    end = None if budget_seconds is None else clock() + budget_seconds
    run = _Run(listed, objective, execute, tell)
    run.add(listed[0])
    for done, candidate in enumerate(run.leaders):
        if end is not None and clock() >= end:
            break
        tell("estimate", done, len(run.leaders))
        run.estimates[candidate] = estimate(candidate)
    while (candidate := run.next()) is not None:
        if end is not None and clock() >= end:
            break
        run.add(candidate)
    choice = Choice(objective, budget_seconds, run.tried(), run.best)
    return run.compiled, choice


class _Run(Generic[Compiled]):
    """What a search knows so far."""

    def __init__(
        self,
        listed: Sequence[Candidate],
        objective: Objective,
        execute: Callable[[Candidate], tuple[Compiled, Trace]],
        tell: Callable[[str, int, int], None],
    ) -> None:
        self.listed, self.execute, self.tell = listed, execute, tell
        self.key = KEYS[objective]
        self.leaders = tuple({c.pair: c for c in reversed(listed)}.values())[::-1]
        self.estimates: dict[Candidate, float] = {}
        self.traces: dict[Candidate, Trace] = {}
        self.failed: dict[Candidate, str] = {}
        self.best = listed[0]
        self.compiled: Compiled

    def cost(self, candidate: Candidate) -> tuple[float, int, int]:
        """What an executed candidate is judged by: the objective, then time, then traffic."""
        trace = self.traces[candidate]
        return getattr(trace, self.key), trace.cycles, trace.dram_bytes

    def add(self, candidate: Candidate) -> None:
        """Execute a candidate; only the best compilation is held."""
        self.tell(f"try {' '.join(candidate.pair)}", 0, 0)
        try:
            compiled, self.traces[candidate] = self.execute(candidate)
        except (CodegenError, MappingError) as error:
            if candidate is self.listed[0]:
                raise
            self.failed[candidate] = f"cannot be compiled: {error}"
            return
        if candidate is self.listed[0] or self.cost(candidate) < self.cost(self.best):
            self.best, self.compiled = candidate, compiled

    def next(self) -> Candidate | None:
        """The candidate to execute next; None when the search is over."""
        left = (*self.promising(), *(c for c in self.listed if c.beside(self.best)))
        return next((c for c in left if not self.seen(c)), None)

    def seen(self, candidate: Candidate) -> bool:
        """True when it was compiled, or could not be."""
        return candidate in self.traces or candidate in self.failed

    def promising(self) -> list[Candidate]:
        """Leaders with the lowest estimates, the lowest first."""
        order = sorted(self.estimates, key=lambda c: self.estimates[c])
        most = (1 + MARGIN) * self.estimates[order[0]] if order else 0.0
        return [c for c in order if self.estimates[c] <= most][:PAIRS]

    def tried(self) -> tuple[Tried, ...]:
        """What became of all candidates."""
        found = []
        for c in self.listed:
            trace, estimate = self.traces.get(c), self.estimates.get(c)
            if trace is not None:
                took = trace.cycles, trace.dram_bytes, trace.energy_pj
                found.append(Tried(c, estimate, *took))
            else:
                found.append(Tried(c, estimate, why_not=self.why_not(c)))
        return tuple(found)

    def why_not(self, candidate: Candidate) -> str:
        """Why a candidate was not executed."""
        if candidate in self.failed:
            return self.failed[candidate]
        everything = len(self.estimates) == len(self.leaders)
        if not everything or candidate in self.promising() or candidate.beside(self.best):
            return "the budget ran out"
        if candidate in self.leaders:
            return "others are estimated lower"
        return "the first of its kind was not the best"
