"""Run a stretch of equal iterations without executing all of them.

After an iteration the state relative to its own end decides everything that follows: times of
the engines the body uses, tokens in its queues, free time of the DRAM channel.  When that
relative state occurs a second time the iterations in between repeat for ever, each time later by
the same number of cycles, so the rest of the stretch is arithmetic.  The result is exactly that
of running every iteration.

Two things lie outside the body's reach and need care: an engine it does not use may still be
finishing later than all of this (then the horizon stands still until the body catches up), and
free channel time that only the other DMA engine can still use (then it must have stayed where it
was, or all of it must have moved along).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ccnn.targets.program import ENGINES, Item, Loop, Sync
from ccnn.targets.simulator.channel import Channel, Gap

LOAD, STORE = ENGINES.index("load"), ENGINES.index("store")
_REMEMBERED = 64
"""Iterations looked back for a repetition."""


@dataclass(frozen=True)
class Touched:
    """The engines and tokens that a loop's body uses, by number."""

    engines: tuple[int, ...]
    tokens: tuple[int, ...]

    @classmethod
    def of(cls, body: Sequence[Item], tokens: Mapping[str, int]) -> Touched:
        """Collect them from a body."""
        engines: set[int] = set()
        found: set[int] = set()

        def visit(items: Sequence[Item]) -> None:
            for item in items:
                if isinstance(item, Loop):
                    visit(item.body)
                    continue
                engines.add(ENGINES.index(item.engine))
                if isinstance(item, Sync):
                    found.add(tokens[item.token])

        visit(body)
        return cls(tuple(sorted(engines)), tuple(sorted(found)))


class State(Protocol):
    """What repeat() reads and moves; see KernelTiming."""

    free: list[int]
    done: list[int]
    horizon: int
    channel: Channel
    queues: list[deque[int]]
    waiters: list[set[int]]
    tally: dict[int, int]


@dataclass(frozen=True)
class _Moment:
    """A state: relative part, the time it is relative to, and what must be compared by hand."""

    key: tuple
    base: int
    old_gaps: tuple[Gap, ...]
    iteration: int


def _moment(state: State, touched: Touched, iteration: int) -> _Moment | None:
    """The present state; None while the other DMA engine is ahead of the body's."""
    free, done = state.free, state.done
    base = max([done[e] for e in touched.engines])
    parts: list = [state.horizon > base]
    for e in touched.engines:
        parts += (free[e] - base, done[e] - base)
    for token in touched.tokens:
        # a token that is older than its waiter's present makes no difference to anything
        least = min([free[e] for e in state.waiters[token]], default=0)
        parts.append(tuple([max(t, least) - base for t in state.queues[token]]))
    used = [e for e in (LOAD, STORE) if e in touched.engines]
    old: tuple[Gap, ...] = ()
    if used:
        channel, mine = state.channel, min([free[e] for e in used])
        channel.prune(min(free[LOAD], free[STORE]))
        if len(used) == 1 and free[LOAD + STORE - used[0]] > mine:
            return None
        old = tuple([g for g in channel.gaps if g[1] <= mine])
        parts.append(channel.tail - base)
        parts.append(tuple([(s - base, e - base) for s, e in channel.gaps if e > mine]))
    return _Moment(tuple(parts), base, old, iteration)


def _gaps_follow(then: _Moment, now: _Moment) -> tuple[bool, bool]:
    """(may the repetition be used, do the old gaps move along)."""
    if then.old_gaps == now.old_gaps:
        return True, False
    shift = now.base - then.base
    moved = tuple((s + shift, e + shift) for s, e in then.old_gaps)
    return moved == now.old_gaps, True


def _advance(state: State, touched: Touched, by: int, now: _Moment, move_old: bool) -> None:
    """Let `by` cycles pass for everything the body uses."""
    for e in touched.engines:
        state.free[e] += by
        state.done[e] += by
    for token in touched.tokens:
        queue = state.queues[token]
        for position in range(len(queue)):
            queue[position] += by
    if not now.key[0]:
        state.horizon += by
    if LOAD in touched.engines or STORE in touched.engines:
        channel, kept = state.channel, len(now.old_gaps)
        channel.tail += by
        channel.gaps = [
            (s + by, e + by) if move_old or n >= kept else (s, e)
            for n, (s, e) in enumerate(channel.gaps)
        ]


def repeat(state: State, touched: Touched, count: int, iteration: Callable[[], None]) -> None:
    """Run `count` equal iterations of a body."""
    outer = state.tally
    seen: dict[tuple, _Moment] = {}
    tallies: list[dict[int, int]] = []
    n = 0
    while n < count:
        state.tally = {}
        iteration()
        n += 1
        _add(outer, state.tally, 1)
        tallies.append(state.tally)
        if n == count:
            break
        now = _moment(state, touched, len(tallies))
        if now is None:
            continue
        then = seen.get(now.key)
        times, move_old = _periods(state, then, now, count - n)
        if then is not None and times:
            for tally in tallies[then.iteration : now.iteration]:
                _add(outer, tally, times)
            _advance(state, touched, times * (now.base - then.base), now, move_old)
            n += times * (now.iteration - then.iteration)
            seen, tallies = {}, []
        elif len(tallies) >= _REMEMBERED:
            seen, tallies = {}, []
        else:
            seen[now.key] = now
    state.tally = outer


def _periods(state: State, then: _Moment | None, now: _Moment, left: int) -> tuple[int, bool]:
    """How many whole periods may be skipped, and whether old gaps move along."""
    if then is None:
        return 0, False
    times = left // (now.iteration - then.iteration)
    follow, move_old = _gaps_follow(then, now)
    if not follow:
        return 0, False
    period = now.base - then.base
    if now.key[0] and period:
        # the horizon belongs to another engine: stop before the body passes it
        times = min(times, (state.horizon - now.base) // period)
    return times, move_old


def _add(into: dict[int, int], tally: dict[int, int], times: int) -> None:
    for key, value in tally.items():
        into[key] = into.get(key, 0) + value * times
