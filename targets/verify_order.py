"""Rules about the order of a kernel: tokens, and what they order.

The kernel is walked in program order.  Each access has a time, and each engine a clock: for every
engine's reads and every engine's writes the time up to which it *knows* them to be finished (an
engine works in order, so the latest one finished means all are).  A signal carries the engine's
clock with all its own accesses up to now; a release the clock with its own reads; a wait sets the
waiting engine's clock forward.  A write to a slot is safe when the engine knows the latest access
of every other engine to it, a read when it knows their latest writes.  Slots of different buffers
that share bytes count as one in this, and a write to one leaves the others undefined.

Long loops are not walked to their end.  What matters of the state (which accesses each clock and
each waiting token knows, slots written) holds no times and no iteration numbers, and an iteration
depends on its number only through slot numbers, which are periodic, and through `accumulate`
being positive.  So when an iteration begins in the same phase and state as an earlier one, all
further iterations repeat those in between (induction over the iterations); the same holds for a
loop that is entered again in a known phase and state.  That every wait finds a token in program
order also proves that there is no deadlock.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from ccnn.targets.machine import Machine
from ccnn.targets.program import ENGINES, Item, Kernel, Loop, Program, Sync
from ccnn.targets.verify_common import Finding, about
from ccnn.targets.verify_dram import crossings
from ccnn.targets.verify_found import left_behind
from ccnn.targets.verify_steps import Nest, Step, Turn, peers_of, slot_of, steps_of

_LONGEST_QUEUE = 1024
_LONGEST_WALK = 4_000_000
_SHORT_WALK = 2_000
"""Steps of a loop that cost less to walk than to compare states."""
_KEYS = 2 * len(ENGINES)
"""Entries of a clock: the reads (even) and the writes (odd) of each engine."""

Clock = tuple[int, ...]
Snapshot = tuple[list[Clock], list[tuple[Clock, ...]], list[dict[int, int]], bytes]
"""What each engine knows, what each waiting token carries, times of accesses, slots written."""


@dataclass
class _Walk:
    """The state of the walk through one kernel."""

    kernel: Kernel
    peers: list[tuple[int, ...]]
    """Of each slot: the slots whose bytes it shares, itself among them."""
    known: list[Clock]
    tokens: list[tuple[Clock, ...]]
    latest: list[dict[int, int]]
    """Of each slot: time of the latest access of each kind since it was last written."""
    written: bytearray
    now: int = 0
    steps: int = 0
    env: dict[str, int] = field(default_factory=dict)
    memo: dict[tuple, Snapshot] = field(default_factory=dict)
    found: dict[tuple[str, int], Finding] = field(default_factory=dict)

    def report(self, rule: str, item: Item, message: str) -> None:
        self.found.setdefault((rule, id(item)), about(rule, self.kernel, item, message))

    def snapshot(self) -> Snapshot:
        return (
            list(self.known),
            list(self.tokens),
            [dict(times) for times in self.latest],
            bytes(self.written),
        )

    def restore(self, state: Snapshot) -> None:
        known, tokens, latest, written = state
        self.known, self.tokens = list(known), list(tokens)
        self.latest = [dict(times) for times in latest]
        self.written = bytearray(written)

    def state(self) -> bytes:
        """Which accesses there are and which of them each clock knows, without their times.

        Accesses are put in order of key and time.  Of each key a clock knows a first part of
        them: where it ends says how many; and of each access how many such ends lie before it.
        """
        live = sorted(
            (key, time, slot)
            for slot, times in enumerate(self.latest)
            for key, time in times.items()
        )
        keys, times, slots = np.array(live, np.int64).reshape(-1, 3).T
        clocks = np.array([*self.known, *(c for queue in self.tokens for c in queue)], np.int64)
        span = self.now + 1
        ends = np.searchsorted(keys * span + times, clocks + np.arange(_KEYS) * span, "right")
        before = np.searchsorted(np.unique(ends), np.arange(len(live)), "right")
        names = slots * _KEYS + keys
        order = np.argsort(names)
        queues = np.array([len(queue) for queue in self.tokens])
        parts = (queues, names[order], before[order], ends)
        return b"".join([part.tobytes() for part in parts]) + self.written


class _TooLong(Exception):
    """The walk gives up; the finding is already there."""


def _execute(w: _Walk, s: Step, names: list[str]) -> None:
    w.now += 1
    key = 2 * s.engine
    for place in s.reads:
        if place.when is not None and place.when.at(w.env) <= 0:
            continue
        slot = slot_of(place, w.env)
        if not w.written[slot]:
            w.report("defined", s.item, f"{names[slot]} is read before anything was written to it")
        if place.asks:
            _ordered(w, s, slot, "reads", names)
        if place.leaves:
            w.latest[slot][key] = w.now
    for place in s.writes:
        slot = slot_of(place, w.env)
        if place.asks:
            _ordered(w, s, slot, "writes", names)
        if place.leaves:
            w.latest[slot] = {key + 1: w.now}
            for peer in w.peers[slot]:
                w.written[peer] = peer == slot


def _ordered(w: _Walk, s: Step, slot: int, does: str, names: list[str]) -> None:
    """Report accesses to the bytes of a slot that the engine does not know of."""
    known, own, latest = w.known[s.engine], s.engine, w.latest
    for peer in w.peers[slot]:
        unknown = []
        for key, time in latest[peer].items():
            if time > known[key] and key // 2 != own and (key % 2 or does == "writes"):
                unknown.append(key)
        if not unknown:
            continue
        key = min(unknown)
        other = f"{ENGINES[key // 2]} {'writes' if key % 2 else 'reads'}"
        what = "it" if peer == slot else f"{names[peer]} at the same address"
        w.report(
            "hazards",
            s.item,
            f"{s.item.engine} {does} {names[slot]} and no token makes it wait until {other} {what}",
        )


def _turn(w: _Walk, t: Turn) -> None:
    queue = w.tokens[t.token]
    if t.item.kind == "wait":
        if not queue:
            w.report("tokens", t.item, "waits for a token that nothing before it gives: deadlock")
            return
        w.known[t.engine] = tuple(map(max, w.known[t.engine], queue[0]))
        w.tokens[t.token] = queue[1:]
        return
    clock = list(w.known[t.engine])
    clock[2 * t.engine] = w.now
    if t.item.kind == "signal":
        clock[2 * t.engine + 1] = w.now
    w.tokens[t.token] = (*queue, tuple(clock))
    if len(queue) >= _LONGEST_QUEUE:
        w.report("tokens", t.item, f"more than {_LONGEST_QUEUE} tokens pile up; nobody takes them")
        raise _TooLong


def _run(w: _Walk, body: tuple | list, names: list[str]) -> None:
    for item in body:
        w.steps += 1
        if isinstance(item, Step):
            _execute(w, item, names)
        elif isinstance(item, Turn):
            _turn(w, item)
        else:
            _loop(w, item, names)
    if w.steps > _LONGEST_WALK:
        message = "the order of this kernel does not repeat, so it could not be proven"
        w.found.setdefault(("tokens", 0), Finding("tokens", w.kernel.name, message))
        raise _TooLong


def _loop(w: _Walk, nest: Nest, names: list[str]) -> None:
    var, trip = nest.loop.var, nest.loop.trip
    if nest.steps <= _SHORT_WALK:
        for index in range(trip):
            w.env[var] = index
            _run(w, nest.body, names)
        w.env.pop(var, None)
        return
    here = w.state()
    entry = (id(nest), nest.phase(w.env), here)
    if entry in w.memo:
        w.restore(w.memo[entry])
        return
    seen: dict[tuple, int] = {}
    snapshots: list[Snapshot] = []
    for index in range(trip):
        w.env[var] = index
        here = w.state() if index else here
        key = (nest.phase(w.env), here)
        if key in seen:
            first = seen[key]
            w.restore(snapshots[first + (trip - first) % (index - first)])
            break
        seen[key] = index
        snapshots.append(w.snapshot())
        _run(w, nest.body, names)
    w.env.pop(var, None)
    w.memo[entry] = w.snapshot()


def _single_ends(kernel: Kernel) -> Iterator[Finding]:
    """Each token has one giver and one taker, else which wait gets which token is left to time."""
    givers: dict[str, set[tuple[str, str]]] = {}
    takers: dict[str, set[str]] = {}

    def collect(body: tuple[Item, ...]) -> None:
        for item in body:
            if isinstance(item, Loop):
                collect(item.body)
            elif isinstance(item, Sync) and item.kind == "wait":
                takers.setdefault(item.token, set()).add(item.engine)
            elif isinstance(item, Sync):
                givers.setdefault(item.token, set()).add((item.engine, item.kind))

    collect(kernel.body)
    for name, ends in [*givers.items(), *takers.items()]:
        if len(ends) > 1:
            words = sorted(" ".join(e) if isinstance(e, tuple) else f"{e} wait" for e in ends)
            message = f"token '{name}' is shared by {', '.join(words)}; use one token for each"
            yield Finding("tokens", kernel.name, message)


def order(program: Program, machine: Machine) -> Iterator[Finding]:
    """No wait finds its token missing (tokens), accesses of two engines to one slot or to the
    same part of a tensor are ordered by tokens unless both read (hazards), and no slot is read
    before it is written (defined); what a later kernel finds is there when the kernel ends."""
    for kernel, leaves in zip(program.kernels, left_behind(program.kernels), strict=True):
        yield from _single_ends(kernel)
        dram = crossings(program, kernel)
        body, count = steps_of(kernel, dram)
        names = [f"'{b.name}'[{n}]" for b in kernel.buffers for n in range(b.depth)]
        names += [f"tensor '{name}'" for name in dram.names]
        nothing = (0,) * _KEYS
        w = _Walk(
            kernel,
            peers_of(kernel, len(names)),
            known=[nothing] * len(ENGINES),
            tokens=[(nothing,) * min(t.initial, _LONGEST_QUEUE) for t in kernel.tokens],
            latest=[{} for _ in names],
            written=bytearray(count) + b"\1" * len(dram.names),
        )
        at = 0
        for b in kernel.buffers:
            if b.found:  # the rule `found` says whether it is
                w.written[at : at + b.depth] = b"\1" * b.depth
            at += b.depth
        with suppress(_TooLong):
            _run(w, body, names)
        yield from w.found.values()
        at = 0
        for b in kernel.buffers:
            if b.name in leaves and not all(w.written[at : at + b.depth]):
                message = f"buffer '{b.name}' is found by a later kernel, and is not whole here"
                yield Finding("defined", kernel.name, message)
            at += b.depth
