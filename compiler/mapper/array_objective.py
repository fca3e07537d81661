"""What a mapping of a GEMM is chosen for, and the best strips and blocks where that is not time.

    time      cycles
    traffic   bytes through DRAM, and between the global and the local buffers
    energy    picojoules of the actions that array_energy.py counts, and static power in all cycles

Given flow, parts and waves, traffic and energy are sums over strips of width w and their blocks:

    strip * 1 + for each block (w * (block + depth * word) + cycle * its cycles)

For a width, the blocks are a cover (array_cover.py).  What a strip costs is concave in its width as
long as the same modes are wide enough, so of two strips narrower than that one may as well be as
wide, or gone: all strips but one are as wide as some mode, and those by the least price for their
width, but for fewer than there are units in it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from math import gcd, lcm

from ccnn.compiler.cut import Cut, Run, Strip, Waves
from ccnn.compiler.mapper.array import Product, Rules, block_cycles, modes_of, wave_rows
from ccnn.compiler.mapper.array_blocks import block_kind, block_runs
from ccnn.compiler.mapper.array_cover import Kind, cover
from ccnn.compiler.mapper.array_energy import price
from ccnn.targets.machine import Machine
from ccnn.targets.modes import Mode

OBJECTIVES = ("time", "traffic", "energy")
_UNIT = 2**96
"""More than any number of cycles, which decide between equals."""


@dataclass(frozen=True)
class Prices:
    """What strips and blocks of a cut cost, in the objective's units; see the module."""

    strip: Fraction
    block: Fraction
    """For each column."""
    word: tuple[Fraction, ...]
    """For each word of a block, by mode."""
    cycle: Fraction

    def whole(self) -> tuple[Prices, int]:
        """In units so small that all are whole numbers, and how many of those make one."""
        parts = (self.strip, self.block, self.cycle, *self.word)
        scale = lcm(*(p.denominator for p in parts))
        words = tuple(w * scale for w in self.word)
        return Prices(self.strip * scale, self.block * scale, words, self.cycle * scale), scale


def prices_of(
    product: Product, machine: Machine, rules: Rules, cut: Cut, cycle: Fraction
) -> Prices:
    """The prices that hold for a cut's flow, parts and number of waves, and that of a cycle."""
    m, n, k = product.sizes
    by_m, by_n, by_k = cut.split
    _, width, depth = cut.flow.of(cut.part)
    moved = buffered = Fraction(rules.word_bytes)
    sums = Fraction(0)
    if rules.objective == "energy":
        lbuf, gbuf = price(machine, "lbuf_byte"), price(machine, "gbuf_byte")
        moved, buffered = rules.word_bytes * gbuf, 2 * rules.word_bytes * lbuf
        sums = 2 * rules.sum_bytes * price(machine, "acc_byte")
    else:
        buffered = Fraction(0)
    modes = modes_of(machine, cut.flow)
    if cut.flow.dataflow == "os":
        across, down = (by_n, by_m) if cut.flow.width == 1 else (by_m, by_n)
        deep, wide = (m * k, n * k) if cut.flow.width == 1 else (n * k, m * k)
        both = moved + buffered
        none = (Fraction(0),) * len(modes)
        return Prices(deep * across * both, Fraction(wide * down, width) * both, none, cycle)
    streams, held = (m * k * by_n, n * k * by_m) if cut.flow.length == 0 else (
        n * k * by_m, m * k * by_n,
    )  # fmt: skip
    waves = -(-cut.flow.of(cut.part)[0] // wave_rows(machine))
    often = Fraction(held * waves, width * depth)
    words = tuple(often * (mode.loads * moved + mode.sub_waves * buffered) for mode in modes)
    return Prices(streams * (moved + buffered), Fraction(m * n * by_k, width) * sums, words, cycle)


def linear(prices: Prices, modes: tuple[Mode, ...], cut: Cut) -> Fraction:
    """What a cut's strips and blocks cost."""
    word = {mode.name: each for mode, each in zip(modes, prices.word, strict=True)}
    return sum(
        (
            strip.count
            * (
                prices.strip
                + sum(
                    run.count
                    * (
                        strip.width * (prices.block + run.depth * word[run.mode])
                        + prices.cycle * run.cycles
                    )
                    for run in strip.runs
                )
            )
            for strip in cut.strips
        ),
        Fraction(0),
    )


def best_strips(
    machine: Machine, rules: Rules, cut: Cut, prices: Prices
) -> tuple[tuple[Strip, ...], Fraction]:
    """The cheapest strips for a cut's flow, part and waves, and a bound on what any cost.

    Where cycles cost nothing, those of fewest cycles among the cheapest blocks of a strip.
    """
    _, width, depth = cut.flow.of(cut.part)
    modes = modes_of(machine, cut.flow)
    units, scale = prices.whole()
    classes = sorted({mode.cols for mode in modes}, reverse=True)
    grain = gcd(*classes)

    @cache
    def strip(wide: int) -> tuple[tuple[int, int], tuple[Run, ...]]:
        """Cost, bound and blocks of a strip; of equals, the one of fewer cycles is less."""
        held = [(m, w) for m, w in zip(modes, units.word, strict=True) if m.cols >= wide]
        runs, cost, bound = _blocks(machine, rules, held, units, (wide, depth, cut.waves))
        cycles, once = sum(run.count * run.cycles for run in runs), int(units.strip)
        return ((cost + once) * _UNIT + cycles, (bound + once) * _UNIT + cycles), runs

    def least(which: int) -> tuple[int, dict[int, int]]:
        """The least sum of costs (0) or bounds (1), and how many strips of each width."""
        each = {c: strip(c)[0][which] for c in classes}
        best = min(classes, key=lambda c: (Fraction(each[c], c), -c))
        few = _few(classes, each, grain, min(width, (best // grain - 1) * classes[0]))
        found: list[tuple[int, dict[int, int]]] = []
        for rest in range(width % grain, min(width, classes[0]) + 1, grain):
            for other in range((width - rest) % best, max(few) + 1, best):
                left = width - rest - other
                if left < 0 or other not in few:
                    continue
                cost, used = few[other][0] + left // best * each[best], Counter(few[other][1])
                used[best] += left // best
                if rest:
                    cost, used[rest] = cost + strip(rest)[0][which], used[rest] + 1
                found.append((cost, used))
        return min(found, key=lambda offer: offer[0])

    (_, counts), (proven, _) = least(0), least(1)
    used = sorted((w for w, count in counts.items() if count), reverse=True)
    strips = tuple(Strip(w, counts[w], strip(w)[1]) for w in used)
    return strips, Fraction(proven // _UNIT, scale)


def _few(
    classes: list[int], each: dict[int, int], grain: int, most: int
) -> dict[int, tuple[int, dict[int, int]]]:
    """The cheapest strips of whole classes for each width up to `most`."""
    found: dict[int, tuple[int, dict[int, int]]] = {0: (0, {})}
    for total in range(grain, most + 1, grain):
        offers = [(found[total - c][0] + each[c], c) for c in classes if total - c in found]
        if offers:
            cost, c = min(offers)
            counts = found[total - c][1]
            found[total] = cost, counts | {c: counts.get(c, 0) + 1}
    return found


def _blocks(
    machine: Machine,
    rules: Rules,
    held: list[tuple[Mode, Fraction]],
    units: Prices,
    sizes: tuple[int, int, Waves],
) -> tuple[tuple[Run, ...], int, int]:
    """The cheapest blocks of a strip of (width, depth) under waves: they, their cost, a bound."""
    width, depth, waves = sizes
    if not units.cycle:
        # cheapest whatever the cycles: then those of fewest cycles
        cheapest = min(each for _, each in held)
        modes = [m for m, each in held if each == cheapest]
        deepest = max(m.rows for m in modes)
        price_of_block = 0
        if units.block:  # the fewest blocks
            longest = max(block_cycles(machine, rules, m, waves, m.rows) for m in modes)
            price_of_block = 1 + longest * -(-depth // deepest)
        kinds = tuple(block_kind(machine, rules, m, waves) for m in modes)
        kinds = tuple(Kind(k.price + price_of_block, k.levels) for k in kinds)
        answer = cover(depth, kinds)
        runs = block_runs(machine, rules, waves, modes, kinds, answer)
        cost = width * (sum(answer.counts) * units.block + depth * cheapest)
        bound = width * (-(-depth // deepest) * units.block + depth * cheapest)
        return runs, int(cost), int(bound)
    kinds = []
    for mode, each in held:
        timed = block_kind(machine, rules, mode, waves)
        levels = tuple((u, int(e * units.cycle + width * each)) for u, e in timed.levels)
        kinds.append(Kind(int(timed.price * units.cycle + width * units.block), levels))
    answer = cover(depth, tuple(kinds))
    modes = [m for m, _ in held]
    return block_runs(machine, rules, waves, modes, tuple(kinds), answer), answer.cost, answer.bound
