"""Blocks of a strip's depth as pieces of a cover, and back."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from ccnn.compiler.cut import Run, Waves
from ccnn.compiler.mapper.array import Rules, block_cycles
from ccnn.compiler.mapper.array_cover import Cover, Kind
from ccnn.targets.machine import Machine
from ccnn.targets.modes import Mode


@lru_cache(maxsize=65536)
def block_kind(machine: Machine, rules: Rules, mode: Mode, waves: Waves) -> Kind:
    """What a block in a mode costs by its depth, as a piece of a cover."""
    breaks = {mode.rows}
    if not rules.whole_shift:
        streams = {-(-rows // mode.sub_waves) * mode.turns for rows, _ in waves}
        breaks |= {s for s in streams if s < mode.rows}
    levels, below = [], 0
    price = block_cycles(machine, rules, mode, waves, 0)
    for at in sorted(breaks):
        rise = block_cycles(machine, rules, mode, waves, at)
        rise -= block_cycles(machine, rules, mode, waves, below)
        levels.append((at - below, rise // (at - below)))
        below = at
    return Kind(price, tuple(levels))


def block_runs(
    machine: Machine,
    rules: Rules,
    waves: Waves,
    modes: Sequence[Mode],
    kinds: Sequence[Kind],
    answer: Cover,
) -> tuple[Run, ...]:
    """The blocks that a cover of a depth by pieces of these modes stands for."""
    runs: list[Run] = []
    for mode, kind, count, units in zip(modes, kinds, answer.counts, answer.units, strict=True):
        runs += _runs_of(machine, rules, mode, waves, kind, (count, units))
    return tuple(runs)


def _runs_of(
    machine: Machine, rules: Rules, mode: Mode, waves: Waves, kind: Kind, share: tuple[int, int]
) -> list[Run]:
    """Blocks of a mode: full ones and a rest where that costs no more than equal ones.

    Behind a short block the array waits for the next full one to be brought: where blocks take as
    long as they are deep, equal ones are better than the same cycles say.
    """
    count, units = share
    if not count:
        return []
    each, more = divmod(units, count)
    equal = [(each + 1, more), (each, count - more)]
    full, rest = divmod(units, kind.most)
    whole = [(kind.most, full), (rest, 1 if rest else 0)]

    def cost(depths: list[tuple[int, int]]) -> int:
        return sum(many * kind.at(depth) for depth, many in depths)

    # fewer blocks than were paid for would have been the better cover
    alike = not rest or kind.at(rest) == kind.at(kind.most)
    better = cost(whole) <= cost(equal) if alike else cost(whole) < cost(equal)
    depths = whole if full + (rest > 0) == count and better else equal
    return [
        Run(mode.name, depth, many, block_cycles(machine, rules, mode, waves, depth))
        for depth, many in depths
        if many and depth
    ]
