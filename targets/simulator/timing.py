"""Cycles: a max-plus simulation of the engines in program order, without values.

Each engine has a time `free` (it may issue again) and a time `done` (all it issued has written
its results); a token is a queue of the times at which it was given.  An instruction starts when
its engine is free, occupies it for some cycles and finishes a latency later.  Reading program
order with these times gives the same result as letting the engines run, because each engine
takes its own instructions in that order and tokens are the only way one waits for another.

Loops are not unrolled further than needed: see repeat.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ccnn.targets.machine import Machine
from ccnn.targets.program import (
    ENGINES,
    Instruction,
    Item,
    Kernel,
    Load,
    Loop,
    Placed,
    Store,
    Sync,
)
from ccnn.targets.simulator.affine import Scope, compile_many
from ccnn.targets.simulator.channel import Channel
from ccnn.targets.simulator.cost import Cost, Facts, instruction_cost
from ccnn.targets.simulator.errors import SimulationError
from ccnn.targets.simulator.quantities import (
    Quantity,
    Sensitive,
    compile_quantity,
    quantities,
    runs,
    seen_from,
    varying,
)
from ccnn.targets.simulator.repeat import Touched, repeat
from ccnn.targets.simulator.trace import Event

LOAD, STORE = ENGINES.index("load"), ENGINES.index("store")
WORTHWHILE = 6
"""Equal iterations from which on looking for a repetition pays."""
FIXED, VARYING, WAIT, SIGNAL, RELEASE, LOOP = range(6)


@dataclass(frozen=True)
class Charge:
    """A kind of event that is counted: an instruction of one node at one cost, or a stall."""

    node: int
    engine: str
    opcode: str
    cost: Cost | None
    cause: str = ""
    mode: str = ""


@dataclass
class Recorder:
    """Charges by number, and a tally of each: at 2 * number how often (for stalls: how many
    cycles), at 2 * number + 1 by how many cycles it moved the horizon."""

    charges: list[Charge] = field(default_factory=list)
    numbers: dict[Charge, int] = field(default_factory=dict)
    tally: dict[int, int] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    event_limit: int = 0

    def number(self, charge: Charge) -> int:
        """The tally key of a charge."""
        found = self.numbers.get(charge)
        if found is None:
            found = self.numbers[charge] = 2 * len(self.charges)
            self.charges.append(charge)
        return found


@dataclass(eq=False)
class LoopCode:
    """A loop ready to run: its body, and what decides which iterations are alike."""

    place: int
    trip: int
    body: list[tuple]
    touched: Touched
    sensitive: list[Sensitive]
    outer: dict[str, int]
    known: dict[tuple[int, ...], tuple] = field(default_factory=dict)

    def runs(self, env: Sequence[int]) -> tuple[tuple[int, int, bool], ...]:
        """The stretches of iterations that cost the same, in the present outer iteration."""
        key = tuple(env[place] for place in self.outer.values())
        found = self.known.get(key)
        if found is None:
            values = dict(zip(self.outer, key, strict=True))
            found = self.known[key] = runs(self.sensitive, values, self.trip)
        return found


class KernelTiming:
    """The engines while one kernel runs, from cycle `start`."""

    def __init__(
        self, tensors: Mapping[str, Placed], kernel: Kernel, machine: Machine, recorder: Recorder,
        start: int, fast: bool,
    ) -> None:  # fmt: skip
        self.kernel, self.recorder, self.fast = kernel, recorder, fast
        self.facts = Facts(machine, tensors, {b.name: b for b in kernel.buffers})
        self.free, self.done = [start] * len(ENGINES), [start] * len(ENGINES)
        self.horizon = start
        self.channel = Channel(start)
        self.env: list[int] = []
        self.tokens = {t.name: n for n, t in enumerate(kernel.tokens)}
        self.queues = [deque([start] * t.initial) for t in kernel.tokens]
        self.waiters: list[set[int]] = [set() for _ in kernel.tokens]
        self.givers: list[set[str]] = [set() for _ in kernel.tokens]
        self.tally = recorder.tally
        self.syncs: dict[Sync, tuple] = {}
        self._survey(kernel.body)
        self.dram_stall = {
            e: recorder.number(Charge(-1, ENGINES[e], "", None, "dram")) for e in (LOAD, STORE)
        }
        self.code, _ = self._compile(kernel.body, {})

    def _survey(self, items: Sequence[Item]) -> None:
        """Find who waits for and who gives each token."""
        for item in items:
            if isinstance(item, Loop):
                self._survey(item.body)
            elif isinstance(item, Sync):
                if item.token not in self.tokens:
                    raise SimulationError(f"kernel {self.kernel.name} has no token '{item.token}'")
                token = self.tokens[item.token]
                if item.kind == "wait":
                    self.waiters[token].add(ENGINES.index(item.engine))
                else:
                    self.givers[token].add(item.engine)

    def _compile(self, items: Sequence[Item], scope: Scope) -> tuple[list[tuple], list]:
        """Operations of a block, and the varying quantities in it with their scopes."""
        code: list[tuple] = []
        found: list[tuple[Quantity, Scope]] = []
        for item in items:
            if isinstance(item, Sync):
                if item not in self.syncs:
                    self.syncs[item] = self._sync(item)
                code.append(self.syncs[item])
            elif isinstance(item, Loop):
                operation, inner = self._loop(item, scope)
                code.append(operation)
                found += inner
            else:
                try:
                    operation, mine = self._instruction(item, scope)
                except SimulationError as error:
                    where = f"kernel {self.kernel.name}, node #{item.node}, {item.opcode}"
                    raise SimulationError(f"{where}: {error}") from error
                code.append(operation)
                found += [(q, scope) for q in mine]
        return code, found

    def _sync(self, item: Sync) -> tuple:
        token, engine = self.tokens[item.token], ENGINES.index(item.engine)
        if item.kind == "wait":
            cause = "+".join(sorted(self.givers[token])) or item.token
            stall = self.recorder.number(Charge(-1, item.engine, "", None, cause))
            return WAIT, engine, token, stall
        return (SIGNAL if item.kind == "signal" else RELEASE), engine, token

    def _loop(self, item: Loop, scope: Scope) -> tuple[tuple, list]:
        place = len(scope)
        if item.var in scope:
            raise SimulationError(
                f"kernel {self.kernel.name}: loop variable {item.var} is used by an outer loop"
            )
        if len(self.env) <= place:
            self.env.append(0)
        body, found = self._compile(item.body, {**scope, item.var: (place, item.trip)})
        seen = {s for q, inner in found if (s := seen_from(q, item.var, inner)) is not None}
        names = {v for s in seen for zone in s.zones for line in zone for v, _ in line[2]}
        outer = {v: scope[v][0] for v in sorted(names)}
        touched = Touched.of(item.body, self.tokens)
        return (LOOP, LoopCode(place, item.trip, body, touched, list(seen), outer)), found

    def _instruction(self, i: Instruction, scope: Scope) -> tuple[tuple, list[Quantity]]:
        engine = ENGINES.index(i.engine)
        found = quantities(i, self.facts.tensors)
        mine = varying(found, scope) if found else []
        places = {v: place for v, (place, _) in scope.items()}
        kind = isinstance(i, Load | Store)

        def charge(env: dict[str, int]) -> tuple[int, int, int]:
            cost = instruction_cost(self.facts, i, env)
            if cost.occupancy < 0 or cost.latency < 0:
                raise SimulationError(f"{i.opcode} moves nothing when {env or 'run'}")
            number = self.recorder.number(Charge(i.node, i.engine, i.opcode, cost, mode=i.mode))
            return cost.occupancy, cost.latency, number

        if not mine:
            return (FIXED, engine, kind, *charge(dict.fromkeys(places, 0))), []
        numbers = compile_many([compile_quantity(q, scope, self.env) for q in mine])
        known: dict[tuple[int, ...], tuple[int, int, int]] = {}
        env = self.env

        def look_up() -> tuple[int, int, int]:
            key = numbers()
            costs = known.get(key)
            if costs is None:
                costs = known[key] = charge({v: env[p] for v, p in places.items()})
            return costs

        return (VARYING, engine, kind, look_up), mine

    def run(self, code: Sequence[tuple]) -> None:
        """Execute a block once."""
        free, done, queues = self.free, self.done, self.queues
        for op in code:
            kind = op[0]
            if kind == WAIT:
                self._wait(op)
            elif kind == SIGNAL:
                queues[op[2]].append(done[op[1]])
            elif kind == RELEASE:
                queues[op[2]].append(free[op[1]])
            elif kind == LOOP:
                self._run_loop(op[1])
            elif kind == FIXED:
                self._issue(op[1], op[2], op[3], op[4], op[5])
            else:
                self._issue(op[1], op[2], *op[3]())

    def _wait(self, op: tuple) -> None:
        _, engine, token, stall = op
        queue = self.queues[token]
        if not queue:
            raise SimulationError(
                f"kernel {self.kernel.name}: {ENGINES[engine]} waits for token "
                f"'{self.kernel.tokens[token].name}', which nothing before it in the program "
                "gives: the engines would wait for ever"
            )
        given = queue.popleft()
        late = given - self.free[engine]
        if late > 0:
            self.free[engine] = given
            self.tally[stall] = self.tally.get(stall, 0) + late

    def _issue(self, engine: int, dram: bool, occupancy: int, latency: int, number: int) -> None:
        """One instruction: move the engine's times, the horizon and the tally."""
        tally = self.tally
        start = self.free[engine]
        end = start + occupancy
        if dram:
            end = self.channel.transfer(start, occupancy, min(self.free[LOAD], self.free[STORE]))
            late = end - start - occupancy
            if late:
                stall = self.dram_stall[engine]
                tally[stall] = tally.get(stall, 0) + late
        self.free[engine] = end
        end += latency
        if end > self.done[engine]:
            self.done[engine] = end
            if end > self.horizon:
                tally[number + 1] = tally.get(number + 1, 0) + end - self.horizon
                self.horizon = end
        tally[number] = tally.get(number, 0) + 1
        recorder = self.recorder
        if recorder.event_limit:
            charge = recorder.charges[number // 2]
            recorder.events.append(Event(charge.engine, charge.opcode, charge.node, start, end))
            recorder.event_limit -= 1

    def _run_loop(self, loop: LoopCode) -> None:
        env, place, body = self.env, loop.place, loop.body
        for first, end, uniform in loop.runs(env):
            if (
                uniform
                and end - first >= WORTHWHILE
                and self.fast
                and not self.recorder.event_limit
            ):

                def iteration() -> None:
                    self.run(body)

                env[place] = first
                repeat(self, loop.touched, end - first, iteration)
                continue
            for n in range(first, end):
                env[place] = n
                self.run(body)
