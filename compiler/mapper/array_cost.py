"""What a cut of a GEMM costs besides its blocks: fill, reduction, buffer and DRAM traffic; floors.

DRAM: each group keeps a tile of results in its buffer, in sums, and streams both operands past it
in slices one array deep, double-buffered; or keeps a whole operand and reads each of them once.
M is cut into x and N into y tiles; then a is read y times and b x times, by each group that holds
a part of it.  All pairs (x, y) that fit with the smallest x are tried.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from functools import lru_cache

from ccnn.compiler.cut import Cut, Flow
from ccnn.compiler.mapper.array import (
    ArrayMapping,
    Figure,
    Product,
    Rules,
    Words,
    flows,
    modes_of,
    wave_rows,
)
from ccnn.compiler.mapper.array_energy import price, total_pj
from ccnn.compiler.mapping import MappingError
from ccnn.targets.machine import Machine


def price_cut(
    product: Product, machine: Machine, rules: Rules, cut: Cut, mapper: str
) -> ArrayMapping:
    """The mapping that a cut amounts to; its bound is still the floor."""
    array = -(-cut.cycles // machine.arrays) if rules.balanced else cut.cycles
    words = count_words(product, machine, cut)
    m, n, _ = product.sizes
    partial = cut.split[2]
    sums = m * n * partial
    reduced = sums * rules.sum_bytes if partial > 1 else 0
    result = sums * (rules.sum_bytes if partial > 1 else rules.word_bytes)
    written = m * n * rules.word_bytes if partial > 1 else 0
    buffer = (words.a + words.b) * rules.word_bytes + result + reduced + written
    dram = dram_bytes(product.sizes, cut.groups, machine, rules)
    adds = m * n * (partial - 1)
    found = ArrayMapping(
        product, machine.name, mapper, machine.peak_macs_per_cycle, cut,
        array,
        fill_cycles(cut.flow, cut.part, machine) if rules.fill_drain else 0,
        0 if rules.ideal_memory else -(-adds // machine.lanes),
        0 if rules.ideal_memory else -(-dram // machine.bytes_per_cycle),
        words, buffer, dram, 0, 0,
    )  # fmt: skip
    floor = floor_of(product, machine, rules)
    return replace(found, value=worth(found, machine, rules), bound=floor, floor=floor)


def worth(mapping: ArrayMapping, machine: Machine, rules: Rules) -> Figure:
    """What a mapping is judged by: cycles, bytes of both kinds of traffic, or picojoules."""
    if rules.objective == "traffic":
        return mapping.dram_bytes + mapping.buffer_bytes
    return mapping.cycles if rules.objective == "time" else total_pj(mapping, machine, rules)


def floor_of(product: Product, machine: Machine, rules: Rules) -> Figure:
    """What no mapping at all goes below, in units of the objective."""
    cycles = floor_cycles(product, machine)
    if rules.objective == "time":
        return cycles
    m, n, k = product.sizes
    each = (m * k + k * n + m * n) * rules.word_bytes
    if rules.objective == "traffic":
        return 2 * each
    actions = {
        f"mac_{max(16, 8 * rules.word_bytes)}bit": product.macs,
        "lbuf_byte": 2 * (m * k + k * n) * rules.word_bytes,
        "acc_byte": m * n * rules.sum_bytes,
        "gbuf_byte": 2 * each,
        "dram_byte": each,
        "static_cycle": cycles,
    }
    return sum((count * price(machine, action) for action, count in actions.items()), Fraction(0))


def fill_cycles(flow: Flow, part: tuple[int, int, int], machine: Machine) -> int:
    """Shift-in of a first block and the skew of a last one, as for the largest block there is."""
    _, width, depth = flow.of(part)
    down, across = min(depth, machine.rows), min(width, machine.cols)
    return down + down + across - 2


def piped_cycles(cut: Cut, machine: Machine, pieces: int = 1) -> int:
    """Cycles that the array takes when accumulator slots and shared ports are waited for as well.

    A block of results is done after its waves, their skew and the drain, and as many blocks are
    under way as there are slots: each takes max(waves, drain, (waves + skew + drain) / slots).
    Where a wave goes past a single block in `pieces`, each holds a slot only for its own rows.
    Parts of K drain one after another.
    """
    modes = {mode.name: mode for mode in machine.array_modes}
    stays, by_k, total = cut.flow.dataflow == "os", cut.split[2], 0
    for strip in cut.strips:
        for rows, count in cut.waves:
            waves, drains = [], []
            for run in strip.runs:
                mode = modes[run.mode]
                stream = -(-rows // mode.sub_waves) * mode.turns
                held = (rows if stays else run.depth * mode.loads) * strip.width
                fed = machine.arrays * max(held, rows * run.depth)
                shift = 0 if stays else run.depth
                waves.append((max(stream, shift, machine.port_cycles(fed)), run))
                out = run.depth if stays else -(-rows // mode.sub_waves)
                sums = machine.arrays * (run.depth if stays else rows) * strip.width
                drains.append(max(out * by_k, machine.port_cycles(sums)))
            blocks = [(w, d, r.depth, r.count) for (w, r), d in zip(waves, drains, strict=True)]
            if not stays:
                blocks = [(sum(r.count * w for w, r in waves), *blocks[-1][1:3], 1)]
            for wave, drain, depth, many in blocks:
                skew = depth + strip.width - 2
                parts = pieces if not stays and strip.blocks == 1 else 1
                chain = -(-((wave + drain) // parts + skew) // machine.acc_slots)
                total += strip.count * count * many * max(wave, drain, chain)
    return total


def count_words(product: Product, machine: Machine, cut: Cut) -> Words:
    """Words over the local buffers' ports: what is read again for each strip, wave or block."""
    m, n, k = product.sizes
    by_m, by_n, by_k = cut.split
    strips = cut.strip_count
    loads = {mode.name: mode.loads for mode in machine.array_modes}
    if cut.flow.dataflow == "os":
        # a strip streams its own operand past each of its blocks of results
        blocks = sum(s.count * s.width * s.blocks for s in cut.strips)
        width = sum(s.count * s.width for s in cut.strips)
        across, down = (by_n, by_m) if cut.flow.width == 1 else (by_m, by_n)
        deep, wide = (m * k, n * k) if cut.flow.width == 1 else (n * k, m * k)
        again = (deep * strips * across, -(-wide * blocks * down // width))
        a, b = again if cut.flow.width == 1 else again[::-1]
        return Words(a, b, m * n * by_k)
    full = sum(s.count * s.width * r.count * r.depth for s in cut.strips for r in s.runs)
    held = sum(
        s.count * s.width * r.count * r.depth * loads[r.mode] for s in cut.strips for r in s.runs
    )
    waves = -(-cut.flow.of(cut.part)[0] // wave_rows(machine))
    if cut.flow.length == 0:
        return Words(m * k * strips * by_n, -(-n * k * waves * by_m * held // full), m * n * by_k)
    return Words(-(-m * k * waves * by_n * held // full), n * k * strips * by_m, m * n * by_k)


def floor_cycles(product: Product, machine: Machine) -> int:
    """max(MACs / PEs, words / port width): each operand enters, or result leaves, at least once."""
    by_flow = []
    for flow in flows(machine):
        length, width, depth = flow.of(product.sizes)
        modes = modes_of(machine, flow)
        across = max(mode.cols for mode in modes) * machine.arrays
        down = max(mode.rows * mode.sub_waves for mode in modes) * machine.arrays
        by_flow.append(max(-(-depth * width // across), -(-length * depth // down)))
    return max(-(-product.macs // machine.peak_macs_per_cycle), min(by_flow))


@lru_cache(maxsize=65536)
def dram_bytes(
    sizes: tuple[int, int, int], groups: tuple[int, int, int], machine: Machine, rules: Rules
) -> int:
    """DRAM bytes of the whole GEMM under the module's rule; MappingError when no tile fits."""
    m, n, k = (-(-size // split) for size, split in zip(sizes, groups, strict=True))
    word, room = rules.word_bytes, machine.gbuf_bytes // machine.groups
    slice_bytes = 2 * min(k, machine.rows) * word
    again = _fewest_passes(m, n, k, room, word, rules.sum_bytes, slice_bytes)
    if again is None:
        raise MappingError(
            f"no tile of the GEMM {m} x {n} x {k} fits the {room} bytes of {machine.name}'s "
            "buffer; use a machine with a larger one"
        )
    x, y = again
    gm, gn, _ = groups
    return (sizes[0] * sizes[2] * y * gn + sizes[1] * sizes[2] * x * gm) * word + (
        sizes[0] * sizes[1] * word
    )


def _fewest_passes(
    m: int, n: int, k: int, room: int, word: int, sum_word: int, slice_bytes: int
) -> tuple[int, int] | None:
    """(times b is read, times a is read) with the fewest bytes."""
    if min(m, n) * (k * word + sum_word) + slice_bytes <= room:
        return 1, 1
    best = None
    y = 1
    while y <= n:
        tile_n = -(-n // y)
        each = sum_word * tile_n + slice_bytes
        most = (room - tile_n * slice_bytes) // each
        if most >= 1:
            x = -(-m // min(most, m))
            cost = m * k * y + n * k * x
            if best is None or cost < best[0]:
                best = (cost, x, y)
            if x == 1 or (best is not None and m * k * y > best[0]):
                break
        # the next y with a smaller tile: others only read a more often
        y = -(-n // (tile_n - 1)) if tile_n > 1 else n + 1
    return None if best is None else best[1:]
