"""Timing on random programs: against a cycle-by-cycle oracle, and that skipping changes nothing."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from small_programs import (
    BUFFERS,
    MACHINE,
    pipe,
    program,
    signal,
    wait,
    window,
)

from ccnn.targets.machine import Machine
from ccnn.targets.program import (
    ENGINES,
    Affine,
    Drain,
    Exec,
    Extent,
    Instruction,
    Kernel,
    Load,
    LoadH,
    LoadV,
    Loop,
    Map,
    Matrix,
    Program,
    Reduce,
    Shift,
    Slot,
    Store,
    Sync,
    View,
    var,
)
from ccnn.targets.simulator import simulate
from ccnn.targets.simulator.cost import Facts, instruction_cost

# Random programs: balanced pipes between engines, in nested loops, with ragged sizes.

PIPES = {"p": ("load", "vector"), "q": ("vector", "store"), "r": ("feed_v", "array"),
         "s": ("load", "load"), "t": ("array", "drain")}  # fmt: skip


@st.composite
def affine(draw, scope, low, high):
    """An affine of up to two variables of the scope."""
    made = Affine(draw(st.integers(low, high)))
    for v in draw(st.lists(st.sampled_from(sorted(scope)), max_size=2)) if scope else []:
        made = made + var(v, draw(st.sampled_from([-9, -2, -1, 1, 2, 7, 30])))
    return made


@st.composite
def extent(draw, scope):
    """A size, at times with a limit that stays above 0."""
    size = draw(st.integers(1, 9))
    if not scope or draw(st.integers(0, 3)):
        return Extent(size)
    limit = draw(affine(scope, 1, 40))
    lowest = limit.const + sum(min(0, c * (scope[v] - 1)) for v, c in limit.terms)
    return Extent(size, limit + max(0, 1 - lowest))


@st.composite
def instruction(draw, engine, scope):
    """Any instruction of an engine."""
    node, a, b = draw(st.integers(0, 3)), draw(extent(scope)), draw(extent(scope))
    flag = draw(affine(scope, -2, 2))
    if engine in ("load", "store"):
        block = View("a", ((a, 9), (b, 1)))
        start = (draw(affine(scope, -6, 66)), draw(affine(scope, -6, 66)))
        step = (1, draw(st.sampled_from([1, 2, -1])))
        if engine == "load":
            return Load(node, block, "x", start, step)
        return Store(node, "y", start, step, block)
    if engine == "vector":
        block = View("a", ((a, 9), (b, 1)))
        if draw(st.booleans()):
            return Map(node, block, (block,), ("s0", "exp"))
        return Reduce(node, "sum", (1,), block, (block,), ("s0",), accumulate=flag)
    match engine:
        case "feed_v":
            return LoadV(node, Slot("v"), window("b", a, b))
        case "feed_h":
            return LoadH(node, Slot("h"), window("b", a, b))
        case "shift":
            return Shift(node, Slot("pe"), Slot("v"), a, b)
        case "array":
            return Exec(node, Slot("acc"), Slot("h"), Slot("pe"), a, b, Extent(3), flag)
    return Drain(node, window("a", a, b), Slot("acc"), flag)


@st.composite
def body(draw, scope, depth, budget):
    """A block: instructions, passes through pipes, loops."""
    items: list = []
    for _ in range(draw(st.integers(1, 4))):
        choice = draw(st.integers(0, 3 if depth else 2))
        if choice == 0:
            items.append(draw(instruction(draw(st.sampled_from(ENGINES)), scope)))
        elif choice < 3:
            name = draw(st.sampled_from(sorted(PIPES)))
            first, second = PIPES[name]
            gives = draw(st.sampled_from(["signal", "release"]))
            items += [
                wait(first, f"{name}.free"),
                draw(instruction(first, scope)),
                signal(first, f"{name}.full"),
                wait(second, f"{name}.full"),
                draw(instruction(second, scope)),
                Sync(second, gives, f"{name}.free"),
            ]
        else:
            name = f"i{len(scope)}"
            trip = draw(st.integers(1, budget))
            inner = draw(body({**scope, name: trip}, depth - 1, max(1, min(40, 400 // trip))))
            items.append(Loop(name, trip, tuple(inner)))
    return items


@st.composite
def programs(draw):
    """One or two kernels over all pipes, with depths 1 to 3."""
    tokens = [t for name in sorted(PIPES) for t in pipe(name, draw(st.integers(1, 3)))]
    return program(*[draw(body({}, 2, 60)) for _ in range(draw(st.integers(1, 2)))], tokens=tokens)


def at(value, env):
    """An operand with its loop variables put in."""
    if isinstance(value, Affine):
        return Affine(value.at(env))
    if isinstance(value, Extent):
        return Extent(value.at(env))
    if isinstance(value, tuple):
        return tuple(at(v, env) for v in value)
    if isinstance(value, View | Matrix | Slot):
        return type(value)(**{k: at(v, env) for k, v in vars(value).items()})
    return value


def unroll(items, env) -> list:
    """The same block without loops."""
    flat: list = []
    for item in items:
        if isinstance(item, Loop):
            for n in range(item.trip):
                flat += unroll(item.body, {**env, item.var: n})
        elif isinstance(item, Instruction):
            flat.append(type(item)(**{k: at(v, env) for k, v in vars(item).items()}))
        else:
            flat.append(item)
    return flat


@given(p=programs(), bandwidth=st.sampled_from([3.0, 50.0]))
@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
def test_skipping_iterations_changes_nothing(p, bandwidth):
    machine = replace(MACHINE, dram_bandwidth_gib_s=bandwidth)
    slow = simulate(p, machine, fast=False)
    assert simulate(p, machine) == slow
    assert sum(layer.cycles for layer in slow.layers) == slow.cycles
    for engine in slow.engines:
        assert engine.busy_cycles + sum(c for _, c in engine.stalls) <= slow.cycles


@given(p=programs())
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_loop_is_its_iterations_written_out(p):
    flat = replace(p, kernels=tuple(replace(k, body=tuple(unroll(k.body, {}))) for k in p.kernels))
    assert simulate(p, MACHINE) == simulate(flat, MACHINE)


def facts_of(p: Program, machine: Machine) -> Facts:
    return Facts(machine, {t.name: t for t in p.tensors}, {b.name: b for b in BUFFERS})


@given(p=programs())
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_totals_are_the_sum_over_all_instructions(p):
    trace, facts = simulate(p, MACHINE), facts_of(p, MACHINE)
    flat = [i for k in p.kernels for i in unroll(k.body, {}) if isinstance(i, Instruction)]
    costs = [instruction_cost(facts, i, {}) for i in flat]
    assert trace.instructions == len(flat)
    assert trace.macs == sum(c.macs for c in costs)
    assert trace.dram_read_bytes == sum(c.dram_read for c in costs)
    assert trace.dram_write_bytes == sum(c.dram_write for c in costs)
    assert trace.gbuf_bytes == sum(c.gbuf_read + c.gbuf_write for c in costs)
    assert trace.lbuf_bytes == sum(c.lbuf for c in costs)
    assert trace.vector_ops == sum(c.vector_ops for c in costs)


class Clocked:
    """The oracle: engines that run side by side, one cycle after another."""

    def __init__(self, kernel: Kernel, facts: Facts) -> None:
        flat = list(enumerate(unroll(kernel.body, {})))
        self.facts = facts
        self.todo = {e: deque((n, i) for n, i in flat if i.engine == e) for e in ENGINES}
        self.tokens = {t.name: deque([0] * t.initial) for t in kernel.tokens}
        self.free = dict.fromkeys(ENGINES, 0)
        self.done = dict.fromkeys(ENGINES, 0)
        self.transfers: dict[str, list[int]] = {}
        """Engine to [age, cycles left, latency] of its transfer under way."""

    def run(self) -> int:
        """Cycles until every engine has finished."""
        now = 0
        while any(self.todo.values()) or self.transfers:
            while any([self.advance(e, now) for e in ENGINES]):
                pass
            if self.transfers:
                engine = min(self.transfers, key=lambda e: self.transfers[e][0])
                transfer = self.transfers[engine]
                transfer[1] -= 1
                if not transfer[1]:
                    del self.transfers[engine]
                    self.free[engine] = now + 1
                    self.done[engine] = max(self.done[engine], now + 1 + transfer[2])
            now += 1
        return max(self.done.values())

    def advance(self, engine: str, now: int) -> bool:
        """Let an engine take its next item, if it can in this cycle."""
        if not self.todo[engine] or engine in self.transfers or self.free[engine] > now:
            return False
        age, item = self.todo[engine][0]
        if isinstance(item, Sync):
            queue = self.tokens[item.token]
            if item.kind == "wait":
                if not queue or queue[0] > now:
                    return False
                queue.popleft()
            else:
                # nothing was waited for since: it counts from when the engine became free
                queue.append(self.done[engine] if item.kind == "signal" else now)
        else:
            cost = instruction_cost(self.facts, item, {})
            if isinstance(item, Load | Store) and cost.occupancy:
                self.transfers[engine] = [age, cost.occupancy, cost.latency]
            else:
                self.free[engine] = now + cost.occupancy
                self.done[engine] = max(self.done[engine], now + cost.occupancy + cost.latency)
        self.todo[engine].popleft()
        return True


@given(p=programs(), bandwidth=st.sampled_from([3.0, 50.0]))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_program_order_gives_the_times_of_engines_running_side_by_side(p, bandwidth):
    machine = replace(MACHINE, dram_bandwidth_gib_s=bandwidth)
    p = replace(p, kernels=p.kernels[:1])
    trace = simulate(p, machine)
    assume(trace.instructions < 400)
    assert Clocked(p.kernels[0], facts_of(p, machine)).run() == trace.cycles
