"""What a tiling costs: DRAM bytes and array cycles exactly, buffer bytes, and time estimated.

Bytes follow the placement rule of codegen/nest.py, array cycles the rule by which
codegen/waves.py blocks the array where no cut says otherwise, so both equal what the simulator
counts.  Time is

    max(DRAM + last tile's array, first tile in + last out + max(array, chain)) + uneven
    chain = (DRAM of the other tiles + array + latencies) / slots

where the array's share of a block of results is the slowest of: its waves; draining it; and,
shared by the accumulator's slots, waves, skew and drain one after the other.
Everything is vectorised: index[level] holds, for each tiling asked about, a row of that table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np

from ccnn.compiler.mapper.tables import LevelTable, Tables
from ccnn.targets.machine import Machine
from ccnn.targets.program import DTYPE_BYTES

Index = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Axis:
    """M, N or K of a tile's products, summed over all tiles of its levels."""

    tiles: np.ndarray
    blocks: np.ndarray
    whole: np.ndarray
    """Blocks of full size among them."""
    units: np.ndarray
    """Rows (columns, steps) of all blocks."""


@dataclass(frozen=True)
class Price:
    """Of each tiling asked about: bytes of buffer and of traffic; cycles."""

    need: np.ndarray
    dram: np.ndarray
    time: np.ndarray
    cost: np.ndarray


@dataclass(frozen=True)
class Work:
    """The part of the price that neither loop order nor depth changes."""

    volume: dict[str, np.ndarray]
    """Bytes of each operand's tile."""
    cover: dict[str, np.ndarray]
    """Bytes of each operand when every tile is moved once."""
    beside: list[np.ndarray]
    """Bytes of the tiles that move along with the result's."""
    sums: np.ndarray
    """Bytes of the partial sums' buffer."""
    array: np.ndarray
    """Cycles in which the array takes in a row."""
    compute: np.ndarray
    """Estimated cycles of array, drain and conversion when data is there."""
    even: np.ndarray
    """The average tile over the largest."""


Sizes = list[tuple[np.ndarray, np.ndarray]]
"""(how many tiles, their rows, columns or steps): of whole tiles, and of those peeled."""


def _sizes(
    levels: Sequence[LevelTable], rows: Sequence[np.ndarray], factor: float
) -> tuple[Sizes, np.ndarray]:
    """The tiles of an axis, for each different tiling of it, and which one each point has."""
    # few combinations of these levels stand behind many tilings: count each one once
    lengths = [len(v.sizes) for v in levels]
    key = np.ravel_multi_index(rows, lengths)
    seen = np.zeros(int(np.prod(lengths)), bool)
    seen[key] = True
    present = np.flatnonzero(seen)
    back = np.zeros(len(seen), np.int64)
    back[present] = np.arange(len(present))
    options = []
    for level, row in zip(levels, np.unravel_index(present, lengths), strict=True):
        size = level.sizes[row]
        count, rest = np.divmod(level.total, size)
        full = (count, -(-size // level.multiple))
        peeled = ((rest > 0).astype(np.int64), -(-rest // level.multiple))
        options.append((full, peeled) if rest.any() else (full,))
    found: Sizes = []
    for choice in product(*options):
        count, size = np.ones(len(present), np.int64), np.full(len(present), float(factor))
        for many, each in choice:
            count, size = count * many, size * each
        found.append((count, np.rint(size).astype(np.int64)))
    return found, back[key]


def _axis(
    levels: Sequence[LevelTable], rows: Sequence[np.ndarray], factor: float, block: int
) -> Axis:
    """Sum the blocks of an axis over whole and peeled tiles of its levels."""
    sizes, back = _sizes(levels, rows, factor)
    tiles = blocks = whole = units = np.zeros(len(sizes[0][0]), np.int64)
    for count, size in sizes:
        tiles, blocks = tiles + count, blocks + count * -(-size // block)
        whole, units = whole + count * (size // block), units + count * size
    return Axis(tiles[back], blocks[back], whole[back], units[back])


def _units(levels: Sequence[LevelTable]) -> int:
    total = 1
    for level in levels:
        total *= -(-level.total // level.multiple)
    return total


def _compute(tables: Tables, machine: Machine, index: Index) -> tuple[np.ndarray, np.ndarray]:
    """Cycles the array is busy, and cycles estimated with drains and shifts."""
    gemm = tables.gemm
    named = {a: [tables.levels[n] for n in names] for a, (names, _) in gemm.axes.items()}
    rows = {a: [index[v.name] for v in levels] for a, levels in named.items()}
    inside = {v.name for levels in named.values() for v in levels}
    repeats = 1
    for level in tables.levels.values():
        repeats *= 1 if level.name in inside else level.total
    if gemm.lanes:
        return _compute_on_lanes(tables, machine, index)
    if gemm.turns > 1:
        return _compute_in_turns(tables, machine, named, rows, repeats)
    if len(machine.modes) > 1:
        return compute_in_modes(tables, machine, named, rows, repeats)
    columns = _axis(named["N"], rows["N"], tables.columns / _units(named["N"]), machine.cols)
    busy, time = 0, 0.0
    for part in tables.parts:
        depth = _axis(named["K"], rows["K"], part.depth / _units(named["K"]), machine.rows)
        busy = busy + repeats * part.rows * columns.blocks * depth.blocks
        each = part.rows / part.many / _units(named["M"])
        height = _axis(named["M"], rows["M"], each, machine.acc_rows)
        waves, steps = depth.blocks / depth.tiles, depth.units / depth.blocks
        drains = 2 - 1 / depth.tiles
        skew = steps + columns.units / columns.blocks - 2

        def block(m, waves=waves, steps=steps, drains=drains, skew=skew):
            wave = np.maximum(m, steps) if machine.weight_buffers > 1 else m + steps
            chain = (waves * wave + skew + drains * m) / machine.acc_slots
            return np.maximum(np.maximum(waves * wave, drains * m), chain)

        part_blocks = height.blocks - height.whole
        left = height.units - height.whole * machine.acc_rows
        results = height.whole * block(float(machine.acc_rows)) + part_blocks * block(
            left / np.maximum(part_blocks, 1)
        )
        time = time + part.many * repeats * columns.blocks * depth.tiles * results
    return np.asarray(busy), np.asarray(time)


def compute_in_modes(
    tables: Tables,
    machine: Machine,
    named: Mapping[str, Sequence[LevelTable]],
    rows: Mapping[str, Sequence[np.ndarray]],
    repeats: int,
) -> tuple[np.ndarray, np.ndarray]:
    """As `_compute`, each block in the mode with most sub-waves that holds it (FlexSA's rule)."""
    shares, slots = sub_waves(machine), machine.acc_slots
    busy, time = 0, 0.0
    wide, at_n = _sizes(named["N"], rows["N"], tables.columns / _units(named["N"]))
    for part in tables.parts:
        each = part.rows / part.many / _units(named["M"])
        high, at_m = _sizes(named["M"], rows["M"], each)
        deep, at_k = _sizes(named["K"], rows["K"], part.depth / _units(named["K"]))
        drains = 2 - 1 / np.sum([count for count, _ in deep], axis=0)[at_k]
        for (cm, m), (cn, n), (ck, k) in product(high, wide, deep):
            often = repeats * part.many * cm[at_m] * cn[at_n] * ck[at_k]
            full, rest = np.divmod(k[at_k], machine.rows)
            for (across, width), (down, length) in product(
                _cut(n[at_n], machine.cols), _cut(m[at_m], machine.acc_rows)
            ):
                stream = -(-length // shares[machine.rows, width])
                last = -(-length // shares[rest, width])
                waves = full * np.maximum(stream, machine.rows) + np.where(
                    rest, np.maximum(last, rest), 0
                )
                drain = drains * np.where(rest, last, stream)
                skew = np.where(rest, rest, machine.rows) + width - 2
                chain = (waves + skew + drain) / slots
                count = often * across * down
                busy = busy + count * (full * stream + np.where(rest, last, 0))
                time = time + count * np.maximum(np.maximum(waves, drain), chain)
    return np.asarray(busy), np.asarray(time)


def _compute_in_turns(
    tables: Tables,
    machine: Machine,
    named: Mapping[str, Sequence[LevelTable]],
    rows: Mapping[str, Sequence[np.ndarray]],
    repeats: int,
) -> tuple[np.ndarray, np.ndarray]:
    """As `_compute`, both gradients by turns: a block of W stays for a wave of `acc_rows`, and
    its block of dW is drained behind it, added to what is there already."""
    busy, time = 0, 0.0
    wide, at_n = _sizes(named["N"], rows["N"], tables.columns / _units(named["N"]))
    for part in tables.parts:
        each = part.rows / part.many / _units(named["M"])
        high, at_m = _sizes(named["M"], rows["M"], each)
        waves_of_all = sum(count * -(-size // machine.acc_rows) for count, size in high)
        again = np.where(waves_of_all > 1, 2, 1)[at_m]
        blocks = -(-part.depth // machine.rows)
        for (cm, m), (cn, n) in product(high, wide):
            strips = repeats * part.many * cm[at_m] * cn[at_n] * -(-n[at_n] // machine.cols)
            for waves, length in _cut(m[at_m], machine.acc_rows):
                stream = tables.gemm.turns * length
                drain = again * machine.rows + length / blocks
                fold = np.maximum(np.maximum(stream, machine.rows), drain)
                busy = busy + strips * waves * blocks * stream
                time = time + strips * waves * blocks * fold
    return np.asarray(busy), np.asarray(time)


def _compute_on_lanes(
    tables: Tables, machine: Machine, index: Index
) -> tuple[np.ndarray, np.ndarray]:
    """Cycles of the vector unit: a slot a multiply-accumulate, an instruction for each product of a
    tile, which begins anew and leaves lanes idle at its end."""
    macs = sum(part.rows * part.depth * tables.columns for part in tables.parts)
    tiles = np.ones(len(next(iter(index.values()))))
    inside = {name for names, _ in tables.gemm.axes.values() for name in names}
    for name, level in tables.levels.items():
        macs *= 1 if name in inside else level.total
        tiles = tiles * level.trips[index[name]]
    many = sum(part.many for part in tables.parts)
    time = macs / machine.lanes + tiles * many * (machine.vector_startup_cycles + 0.5)
    return np.zeros(len(time), np.int64), time


def _cut(total: np.ndarray, block: int) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """(count, size) of the whole blocks of a length and of what is left."""
    whole, rest = np.divmod(total, block)
    return (whole, np.full(total.shape, block)), ((rest > 0).astype(np.int64), rest)


@lru_cache(maxsize=64)
def sub_waves(machine: Machine) -> np.ndarray:
    """[depth, width]: sub-waves of the weight-stationary mode that FlexSA's rule gives a block."""
    table = np.ones((machine.rows + 1, machine.cols + 1), np.int64)
    held = [mode for mode in machine.array_modes if mode.dataflow == "ws"]
    for mode in sorted(held, key=lambda m: m.sub_waves):
        table[: mode.rows + 1, : mode.cols + 1] = mode.sub_waves
    return table


def elements(tables: Tables, index: Index, operand: str) -> np.ndarray:
    """Elements of an operand's tile."""
    table, points = tables.operands[operand], next(iter(index.values())).shape
    v: float | np.ndarray = float(table.volume_scale)
    for name, level in tables.levels.items():
        if name in table.depends:
            v = v * level.volume[operand][index[name]]
    return np.broadcast_to(np.rint(v).astype(np.int64), points)


def volumes(tables: Tables, index: Index) -> dict[str, np.ndarray]:
    """Bytes of each operand's tile; one that stays in the buffer needs none of its own."""
    return {
        k: elements(tables, index, k) * (0 if k in tables.gemm.staying else operand.width)
        for k, operand in tables.operands.items()
    }


def covers(tables: Tables, index: Index) -> dict[str, np.ndarray]:
    """Bytes of each operand when every tile is moved once."""
    found = {}
    for k, operand in tables.operands.items():
        c = float(operand.cover_scale)
        for name in operand.depends:
            column = tables.levels[name].cover[k]
            if column.max() > 1:
                c = c * column[index[name]]
        found[k] = np.rint(c).astype(np.int64) * (0 if k in tables.gemm.staying else operand.width)
    return found


def partial_sums(tables: Tables, index: Index, volume: Mapping[str, np.ndarray]) -> np.ndarray:
    """Bytes of the partial sums' buffer."""
    gemm = tables.gemm
    if not gemm.may_convert:
        return np.zeros(volume["result"].shape, np.int64)
    # beside a result, sums gather over the waves of a tile as well
    split = np.full(volume["result"].shape, gemm.gathers != "result")
    for name in set(tables.levels) - tables.operands[gemm.gathers].depends:
        split = split | (tables.levels[name].trips[index[name]] > 1)
    size = elements(tables, index, gemm.gathers) * DTYPE_BYTES[gemm.accum]
    return np.where(split, size, 0)


def beside(tables: Tables, index: Index) -> list[np.ndarray]:
    """Bytes of the tiles of each tensor that moves along with the result."""
    return [width * elements(tables, index, "result") for width in tables.gemm.beside]


def fitting(tables: Tables, machine: Machine, index: Index) -> tuple[Index, int]:
    """The tilings that fit with one slot each, and the bytes that the smallest needs."""
    volume = volumes(tables, index)
    need = align(partial_sums(tables, index, volume))
    for size in (*volume.values(), *beside(tables, index)):
        need = need + align(size)
    fits = need <= machine.gbuf_bytes
    return {k: v[fits] for k, v in index.items()}, int(need.min())


def work(tables: Tables, machine: Machine, index: Index) -> Work:
    """What the tilings of `index` cost whatever the loop order."""
    gemm, volume = tables.gemm, volumes(tables, index)
    sums = partial_sums(tables, index, volume)
    busy, time = _compute(tables, machine, index)
    results, even = np.ones(len(sums), np.int64), np.ones(len(sums))
    for name, level in tables.levels.items():
        trips = level.trips[index[name]]
        even = even * level.total / (trips * level.sizes[index[name]])
        if name in tables.operands[gemm.gathers].depends:
            results = results * trips
    block = elements(tables, index, gemm.gathers)
    sweep = results * (machine.vector_startup_cycles + block / machine.lanes)
    skew = results * (0 if gemm.lanes else machine.rows + machine.cols)
    time = time + np.where(sums > 0, sweep + skew, 0) + (sweep if gemm.clears() else 0)
    return Work(volume, covers(tables, index), beside(tables, index), sums, busy, time, even)


def align(size: np.ndarray) -> np.ndarray:
    """Bytes that a buffer takes; every buffer starts at a multiple of 64."""
    return (size + 63) & ~63


@dataclass(frozen=True)
class Traffic:
    """What the loop order decides: how often tiles are moved, and all bytes together."""

    count: dict[str, np.ndarray]
    dram: np.ndarray


def traffic(tables: Tables, index: Index, done: Work, order: Sequence[str]) -> Traffic:
    """Follow the placement rule (see nest.fetches) at every tiling."""
    trips = {n: tables.levels[n].trips[index[n]] for n in order if tables.levels[n].trips.max() > 1}
    several = {n: t > 1 for n, t in trips.items()}
    counts, dram = {}, np.zeros(done.sums.shape, np.int64)
    for k, operand in tables.operands.items():
        count: np.ndarray | int = 1
        repeated: np.ndarray | int = 1
        moves = None
        for name in reversed(order):
            if name not in trips:
                continue
            if name in operand.depends:
                moves = several[name] if moves is None else moves | several[name]
                count = count * trips[name]
            elif moves is not None:
                outer = np.where(moves, trips[name], 1)
                count, repeated = count * outer, repeated * outer
        counts[k] = np.broadcast_to(count, done.sums.shape)
        dram = dram + done.cover[k] * repeated
    return Traffic(counts, dram)


def price(tables: Tables, machine: Machine, done: Work, moved: Traffic, depth: int) -> Price:
    """The price of the tilings under one loop order's traffic and one buffer depth."""
    need, ends, loads = align(done.sums), 0.0, 0
    for k, operand in tables.operands.items():
        count = moved.count[k]
        need = need + align(done.volume[k] * np.where(count > 1, depth, 1))
        ends = ends + np.minimum(done.volume[k], done.cover[k])
        loads = loads if operand.written else np.maximum(loads, count)
    for size in done.beside:
        need = need + align(size * np.where(moved.count["result"] > 1, depth, 1))
    per_cycle = float(machine.bytes_per_cycle)
    first, dram = ends / per_cycle, moved.dram / per_cycle
    rest = np.maximum(dram - first, 0)
    chain = (rest + done.compute + loads * machine.dram_latency_cycles) / depth
    # the channel waits for the last tile's products, the array for the first tile
    stream = dram + done.compute / np.maximum(loads, 1)
    # of uneven tiles, a small one's products do not hide the load of a large one
    uneven = (1 - done.even) * np.minimum(rest, done.compute)
    time = uneven + np.maximum(stream, first + np.maximum(done.compute, chain))
    return Price(need, moved.dram, time, time + dram)
