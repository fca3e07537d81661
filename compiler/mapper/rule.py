"""Tile sizes for one GEMM, chosen over a grid: least DRAM traffic and time, whatever fits.

The grid holds, for each level, the tiles that cut it into 1, 2, 3, 4, 6, 8, 12 ... equal parts
and those that come just below a multiple of the array's block; of the levels that share an
axis of the GEMM at most one is cut in an odd place.  Every point is priced by price.py, all
points at once with numpy, for each loop order the kernel offers, with double buffers where they
fit; cost = time + DRAM cycles.

DRAM counts twice because bytes also cost energy and leave less for the layers beside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from math import prod

import numpy as np

from ccnn.compiler.codegen.gemm import Gemm
from ccnn.compiler.codegen.nest import Level
from ccnn.compiler.mapper.price import Index, fitting, price, traffic, work
from ccnn.compiler.mapper.solver import least_traffic
from ccnn.compiler.mapper.tables import Tables, make_tables, useful_sizes
from ccnn.compiler.mapping import MappingError, Tiling
from ccnn.targets.machine import Machine

_PARTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128, 256, 512)
_BLOCKS = (1, 2, 4, 8)
_ROUNDS = 4


@dataclass(frozen=True)
class Choice:
    """A point of the grid and its price."""

    order: tuple[str, ...]
    tiles: tuple[tuple[str, int], ...]
    depth: int
    dram: int
    cost: float


def axis_candidates(levels: Sequence[Level], factor: float, block: int) -> list[tuple[int, ...]]:
    """Tiles to try for the levels of one axis, whose sizes multiply; the largest first."""
    least = [min(v.total, v.multiple) for v in levels]
    found = set()
    for i, level in enumerate(levels):
        others = [
            (least[j],) if least[j] == v.total else (least[j], v.total)
            for j, v in enumerate(levels)
        ]
        for rest in product(*others[:i], *others[i + 1 :]):
            inner = max(
                1.0,
                factor
                * prod(
                    -(-s // v.multiple)
                    for s, v in zip(rest, [*levels[:i], *levels[i + 1 :]], strict=True)
                ),
            )
            for size in _candidates(level, inner, block):
                found.add((*rest[:i], size, *rest[i:]))
    return sorted(found, reverse=True)


def _candidates(level: Level, inner: float, block: int) -> set[int]:
    """Equal parts of a level, and the largest tiles below a few multiples of a block."""
    units = -(-level.total // level.multiple)
    sizes = {-(-units // p) for p in _PARTS if p < units} | {1, units}
    sizes |= {int(block * j / inner) for j in _BLOCKS}
    return {min(level.total, s * level.multiple) for s in sizes if 1 <= s <= units}


def make_grid(gemm: Gemm, machine: Machine) -> tuple[Tables, Index]:
    """The tables of a GEMM over the grid's tile sizes, and the rows that make up each point."""
    blocks = {"M": machine.acc_rows, "N": machine.cols, "K": machine.rows}
    axes: list[tuple[tuple[str, ...], list[tuple[int, ...]]]] = []
    inside: set[str] = set()
    for axis, (names, factor) in gemm.axes.items():
        levels = [gemm.levels[n] for n in names]
        axes.append((tuple(names), axis_candidates(levels, factor, blocks[axis])))
        inside |= set(names)
    for name, level in gemm.levels.items():
        if name not in inside:
            axes.append(((name,), axis_candidates([level], 1, 1)))
    points = np.meshgrid(*(np.arange(len(c)) for _, c in axes), indexing="ij")
    sizes: dict[str, list[int]] = {}
    index: dict[str, np.ndarray] = {}
    for (names, choices), at in zip(axes, points, strict=True):
        for i, name in enumerate(names):
            sizes[name] = sorted({c[i] for c in choices}, reverse=True)
            rows = np.array([sizes[name].index(c[i]) for c in choices])
            index[name] = rows[at.ravel()]
    tables = make_tables(gemm, {n: sizes[n] for n in gemm.levels})
    return tables, whole_groups(gemm, tables, index)


def whole_groups(gemm: Gemm, tables: Tables, index: Index) -> Index:
    """The tilings that hold several groups only when they hold them whole."""
    if not gemm.grouped or gemm.levels["g"].total == 1:
        return index
    keep = np.ones(len(index["g"]), bool)
    for name in gemm.grouped:
        keep &= tables.levels[name].trips[index[name]] == 1
    keep |= tables.levels["g"].sizes[index["g"]] == 1
    return {k: v[keep] for k, v in index.items()}


def best_of(
    tables: Tables, machine: Machine, index: Index, orders: Sequence[tuple[str, ...]] = (),
    depths: Sequence[int] = (2, 1),
) -> Choice | None:  # fmt: skip
    """The cheapest of the tilings that fits, any order if none is given; None when none does."""
    if not len(next(iter(index.values()))):
        return None
    done = work(tables, machine, index)
    best: tuple[float, ...] | None = None
    chosen = None
    for order in orders or tables.gemm.orders:
        moved = traffic(tables, index, done, order)
        for depth in depths:
            found = price(tables, machine, done, moved, depth)
            cost = np.where(found.need <= machine.gbuf_bytes, found.cost, np.inf)
            at = int(np.argmin(cost))
            key = (float(cost[at]), -depth)
            if np.isfinite(cost[at]) and (best is None or key < best):
                tiles = tuple((n, int(tables.levels[n].sizes[index[n][at]])) for n in order)
                best = key
                chosen = Choice(order, tiles, depth, int(found.dram[at]), float(cost[at]))
    return chosen


def choose_tiling(gemm: Gemm, machine: Machine) -> Tiling:
    """The cheapest tiling found; raises MappingError when no point of the grid fits.

    Where the grid's choice moves more than the tensors' own bytes, the exact search of solver.py
    says how far it is from the least, and whatever it finds is taken when it costs less.
    """
    machine = machine.as_one
    tables, index = make_grid(gemm, machine)
    index, least = fitting(tables, machine, index)
    chosen = best_of(tables, machine, index)
    if chosen is None:
        raise MappingError(
            f"'{gemm.node.name}' ({gemm.node.op}): its smallest tile takes {least} bytes and the "
            f"global buffer of {machine.name} has {machine.gbuf_bytes}; use a machine with a "
            "larger buffer (gbuf size_bytes) or a narrower --dtype"
        )
    bound = tables.floor
    if chosen.dram > bound and not gemm.staying:  # the exact search prices all operands as loaded
        chosen, bound = refine(gemm, machine, chosen, bound)
    return Tiling(chosen.order, chosen.tiles, chosen.depth, chosen.dram, bound, gemm.flow)


def refine(gemm: Gemm, machine: Machine, chosen: Choice, bound: int) -> tuple[Choice, int]:
    """A tiling that costs no more, and the least bytes that any of its depth moves."""
    useful = useful_sizes(gemm)
    if useful is None:
        return polish(gemm, machine, chosen, None), bound
    answer = least_traffic(
        make_tables(gemm, useful), machine, chosen.depth, chosen.dram,
        (chosen.order, dict(chosen.tiles)),
    )  # fmt: skip
    best = polish(gemm, machine, chosen, useful)
    if answer.order:
        start = Choice(answer.order, answer.tiles, chosen.depth, answer.dram, float("inf"))
        other = polish(gemm, machine, start, useful)
        best = min(best, other, key=lambda c: c.cost)
    return best, answer.bound


def polish(
    gemm: Gemm, machine: Machine, start: Choice, useful: Mapping[str, Sequence[int]] | None
) -> Choice:
    """Change two levels' tiles at a time while the cost falls, from a tiling that fits."""
    own = dict(start.tiles)
    sizes = {}
    for name, level in gemm.levels.items():
        inner = {axis: factor for axis, (names, factor) in gemm.axes.items() if name in names}
        blocks = {"M": machine.acc_rows, "N": machine.cols, "K": machine.rows}
        found = {own[name]} | set(useful[name] if useful else ())
        for axis, factor in inner.items():
            found |= _candidates(level, factor, blocks[axis])
        sizes[name] = sorted(found, reverse=True)
    tables = make_tables(gemm, sizes)
    at = {name: sizes[name].index(own[name]) for name in sizes}
    best = start
    free = [name for name in gemm.levels if len(sizes[name]) > 1]
    pairs = list(combinations(free, 2)) if len(free) != 1 else [tuple(free)]
    for _ in range(_ROUNDS):
        before = best.cost
        for moved in pairs:
            mesh = np.meshgrid(*(np.arange(len(sizes[name])) for name in moved), indexing="ij")
            index = {n: np.full(mesh[0].size, i) for n, i in at.items()}
            index.update({n: m.ravel() for n, m in zip(moved, mesh, strict=True)})
            index, _ = fitting(tables, machine, whole_groups(gemm, tables, index))
            found = best_of(tables, machine, index, (best.order,), (best.depth,))
            if found is not None and found.cost < best.cost:
                best = found
                at = {name: sizes[name].index(size) for name, size in best.tiles}
        if best.cost == before:
            break
    return best
