"""The best cut of a GEMM over a stated space, and the paper's heuristic cut beside it.

The space of the exact search:

    flow        every dataflow of the machine's modes; either operand stays, or the result
    parts       every factorisation of the groups, and of the units, into parts of M, N and K
    waves       as few as the local buffers allow: full ones and a rest, or equal ones, in steps
                of one row or of as many as a mode has sub-waves
    strips      the width cut anywhere into pieces no wider than some mode
    blocks      each strip's depth cut anywhere, each block in any mode wide and deep enough

Least cycles first, then DRAM bytes, then buffer bytes.  Given flow, parts and waves a strip's
cost depends on its width only through the modes that are wide enough, so strips and blocks are
two covers (array_cover.py), each solved to a proof.  More waves than necessary never help: the
rows of one more wave cost at most as much when the others take them.

The heuristic (FlexSA's): activations stream, tiles of the whole array's size from the top left,
each tile in the mode with most sub-waves that still holds it; M split over the arrays, or K where
a gradient of weights is meant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import product as pairs
from math import lcm

from ccnn.compiler.cut import FLOWS, Cut, Flow, Run, Strip, Triple, Waves, part_of
from ccnn.compiler.mapper.array import (
    ArrayMapping,
    Figure,
    Product,
    Rules,
    block_cycles,
    flows,
    modes_of,
    wave_rows,
    with_bound,
)
from ccnn.compiler.mapper.array_blocks import block_kind, block_runs
from ccnn.compiler.mapper.array_cost import fill_cycles, floor_of, price_cut
from ccnn.compiler.mapper.array_cover import Kind, cover
from ccnn.compiler.mapper.array_energy import price
from ccnn.compiler.mapper.array_objective import best_strips, linear, prices_of
from ccnn.targets.machine import Machine
from ccnn.targets.modes import best_mode, splits

ONE: Triple = (1, 1, 1)
_PRICES = 8
"""Prices of a cycle that are tried for strips of least energy."""
Rank = Callable[[ArrayMapping], tuple[Figure, ...]]


def map_product(
    product: Product,
    machine: Machine,
    rules: Rules | None = None,
    mapper: str = "exact",
    split: str | None = None,
    flow: Flow | None = None,
    rank: Rank | None = None,
) -> ArrayMapping:
    """The mapping of a GEMM onto a machine's arrays; the exact one with this flow only, if given.

    `rank` chooses between the best mappings of each opening, by something no less than cycles
    first.  `split` keeps the heuristic to splitting 'm' or 'k' over the arrays; it takes the better
    of the two when left open.  Raises MappingError for a GEMM that no mapping fits.
    """
    rules = rules or Rules()
    by_rule = _heuristic(product, machine, rules, split)
    if mapper == "heuristic":
        return by_rule
    if rules.objective == "time":
        best, bound = _exact(product, machine, rules, by_rule, flow, rank or _rank)
    else:
        best, bound = _cheapest(product, machine, rules, flow, rank or _rank_by_value)
    return with_bound(best, bound)


# the exact search


def _exact(
    product: Product,
    machine: Machine,
    rules: Rules,
    known: ArrayMapping,
    only: Flow | None,
    rank: Rank,
) -> tuple[ArrayMapping, Figure]:
    """The best mapping and a bound for all; `known` prunes, and is kept when nothing beats it."""
    best: ArrayMapping | None = None
    bound = None
    for flow, groups, units in _openings(machine, rules):
        if only not in (None, flow):
            continue
        part = part_of(product.sizes, groups, units)
        rival = best if only else best or known  # the known one may have another flow
        if rival and _least(part, flow, machine, rules) > rank(rival)[0]:
            continue
        for waves in wave_lengths(machine, rules, flow, part):
            strips, cycles = _strips(machine, rules, flow, part, waves)
            cut = Cut(flow, groups, units, part, waves, strips)
            found = price_cut(product, machine, rules, cut, "exact")
            at_least = found.cycles if cycles == cut.cycles else found.floor
            bound = at_least if bound is None else min(bound, at_least)
            if best is None or rank(found) < rank(best):
                best = found
    if best is None or bound is None:
        return known, known.floor
    # what was passed over takes more cycles than the best
    return best, min(bound, best.cycles)


def _cheapest(
    product: Product, machine: Machine, rules: Rules, only: Flow | None, rank: Rank
) -> tuple[ArrayMapping, Figure]:
    """The mapping with least traffic or energy, and a bound for all.

    Static power is paid for as long as array or memory take, whichever is slower.  With a cycle of
    the array at any price up to that the strips give a bound for all; prices are tried until one
    gives the best strips, too, or _PRICES of them.
    """
    found, bounds, shared = [], [], machine.arrays if rules.balanced else 1
    power = price(machine, "static_cycle") if rules.objective == "energy" else Fraction(0)
    for flow, groups, units in _openings(machine, rules):
        if only not in (None, flow):
            continue
        part = part_of(product.sizes, groups, units)
        for waves in wave_lengths(machine, rules, flow, part):
            empty = Cut(flow, groups, units, part, waves, ())
            at_least, low, high = Fraction(0), Fraction(0), power
            for each in range(_PRICES):
                cycle = (power, Fraction(0))[each] if each < 2 else (low + high) / 2
                prices = prices_of(product, machine, rules, empty, cycle / shared)
                strips, proven = best_strips(machine, rules, empty, prices)
                cut = replace(empty, strips=strips)
                mapping = price_cut(product, machine, rules, cut, "exact")
                found.append(mapping)
                # of all in this opening, what lies outside the strips is the same
                modes = modes_of(machine, flow)
                held = mapping.value - linear(prices, modes, cut) + proven
                busy = mapping.array_cycles + mapping.fill_cycles + mapping.reduce_cycles
                over = busy - mapping.dram_cycles
                held -= power * max(over, 0) - cycle * over
                at_least = max(at_least, held)
                if held == mapping.value or not power:
                    break
                low, high = (cycle, high) if over > 0 else (low, cycle)
            bounds.append(at_least)
    return min(found, key=rank), min(bounds)


def _rank_by_value(mapping: ArrayMapping) -> tuple[Figure, ...]:
    return mapping.value, *_rank(mapping)


def _rank(mapping: ArrayMapping) -> tuple[Figure, ...]:
    return mapping.cycles, mapping.dram_bytes, mapping.array_cycles, mapping.buffer_bytes


def _openings(machine: Machine, rules: Rules) -> Iterator[tuple[Flow, Triple, Triple]]:
    over = (ONE,) if rules.balanced else tuple(splits(machine.groups))
    within = (ONE,) if rules.balanced else tuple(splits(machine.units))
    yield from pairs(flows(machine), over, within)


def _least(part: Triple, flow: Flow, machine: Machine, rules: Rules) -> int:
    """Cycles that any cut of the part takes at least."""
    pes = machine.peak_macs_per_cycle // (1 if rules.balanced else machine.arrays)
    work = -(-part[0] * part[1] * part[2] // pes)
    return work + (fill_cycles(flow, part, machine) if rules.fill_drain else 0)


def wave_lengths(machine: Machine, rules: Rules, flow: Flow, part: Triple) -> tuple[Waves, ...]:
    """The fewest waves that fit: full ones and a rest first, then equal ones."""
    length = flow.of(part)[0]
    most = length if rules.uncut or flow.dataflow == "os" else wave_rows(machine)
    count = -(-length // most)
    found: list[Waves] = [((most, count - 1), (length - most * (count - 1), 1))]
    # a length that all sub-waves of a mode divide leaves none of them idle
    shares = {mode.sub_waves for mode in modes_of(machine, flow)}
    for grain in sorted({1, lcm(*shares), *shares}):
        each, more = divmod(length // grain, count)
        low, rest = grain * each, length % grain
        found.append(((low + grain, more), (low + rest, 1), (low, count - more - 1)))
    waves = [_merged(pieces) for pieces in found]
    fits = [w for w in waves if max(rows for rows, _ in w) <= most]
    return tuple(dict.fromkeys(fits)) if count > 1 else (waves[0],)


def _merged(pieces: tuple[tuple[int, int], ...]) -> Waves:
    """Without empty ones, and equal neighbours as one."""
    kept: list[tuple[int, int]] = []
    for rows, many in pieces:
        if kept and kept[-1][0] == rows:
            kept[-1] = (rows, kept[-1][1] + many)
        elif rows and many:
            kept.append((rows, many))
    return tuple(kept)


def _strips(
    machine: Machine, rules: Rules, flow: Flow, part: Triple, waves: Waves
) -> tuple[tuple[Strip, ...], int]:
    """The cheapest strips, and a bound on their cycles."""
    _, width, depth = flow.of(part)
    modes = modes_of(machine, flow)
    widths = sorted({mode.cols for mode in modes}, reverse=True)
    blocks, bounds, columns = [], [], []
    for cols in widths:
        wide = tuple(mode for mode in modes if mode.cols >= cols)
        kinds = tuple(block_kind(machine, rules, mode, waves) for mode in wide)
        answer = cover(depth, kinds)
        blocks.append(block_runs(machine, rules, waves, wide, kinds, answer))
        bounds.append(answer.bound)
        columns.append(Kind(answer.cost, ((cols, 0),)))
    chosen = cover(width, tuple(columns))
    proven = chosen.bound
    if bounds != [kind.price for kind in columns]:
        proven = cover(
            width, tuple(Kind(b, k.levels) for b, k in zip(bounds, columns, strict=True))
        ).bound
    return _fill(width, widths, chosen.counts, blocks), proven


def _fill(
    width: int, widths: list[int], counts: tuple[int, ...], blocks: list[tuple[Run, ...]]
) -> tuple[Strip, ...]:
    """Strips of full width, and what is too much taken from the last."""
    over = sum(cols * count for cols, count in zip(widths, counts, strict=True)) - width
    strips: list[Strip] = []
    last = max(i for i, count in enumerate(counts) if count)
    for i, (cols, count) in enumerate(zip(widths, counts, strict=True)):
        full = count - 1 if i == last and over else count
        if full:
            strips.append(Strip(cols, full, blocks[i]))
        if i == last and over:
            strips.append(Strip(cols - over, 1, blocks[i]))
    return tuple(strips)


# the heuristic


def _heuristic(product: Product, machine: Machine, rules: Rules, split: str | None) -> ArrayMapping:
    """The paper's cut; see the module's text."""
    choices = []
    for dim in ("m", "k") if split is None else (split,):
        ways = [(machine.groups, machine.units)] if not rules.balanced else [(1, 1)]
        for groups, units in ways:
            over, within = _along(dim, groups), _along(dim, units)
            part = part_of(product.sizes, over, within)
            flow = FLOWS[0]
            waves = wave_lengths(machine, rules, flow, part)[0]
            strips = _tiles(machine, rules, part, waves)
            cut = Cut(flow, over, within, part, waves, strips)
            choices.append(price_cut(product, machine, rules, cut, "heuristic"))
    best = min(choices, key=_rank_by_value)
    return with_bound(best, floor_of(product, machine, rules))


def _along(dim: str, parts: int) -> Triple:
    return (parts, 1, 1) if dim == "m" else (1, 1, parts)


def _tiles(machine: Machine, rules: Rules, part: Triple, waves: Waves) -> tuple[Strip, ...]:
    """Tiles of the array's size and what is left at the edges."""
    _, width, depth = FLOWS[0].of(part)
    strips = []
    for cols, strip_count in _edges(width, machine.cols):
        runs = []
        for rows, count in _edges(depth, machine.rows):
            mode = best_mode(machine.array_modes, rows, cols)
            runs.append(
                Run(mode.name, rows, count, block_cycles(machine, rules, mode, waves, rows))
            )
        strips.append(Strip(cols, strip_count, tuple(runs)))
    return tuple(strips)


def _edges(total: int, tile: int) -> list[tuple[int, int]]:
    """(size, count): full tiles, then the rest."""
    full, rest = divmod(total, tile)
    return [(size, count) for size, count in ((tile, full), (rest, 1)) if count and size]
