"""The mapping of one GEMM onto the array: legal, as cheap as brute force finds, above the floor."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import product as pairs
from math import ceil, prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccnn.compiler.mapper.array import LARGEST, ArrayMapping, Product, Rules
from ccnn.compiler.mapper.array_cover import Kind, cover
from ccnn.compiler.mapper.array_search import map_product
from ccnn.compiler.mapping import MappingError
from ccnn.targets.machine import Machine, load_machine
from ccnn.targets.modes import Mode

FLEX = (
    Mode("FW", 4, 4),
    Mode("VSW", 4, 2, 2),
    Mode("HSW", 2, 4, 2),
    Mode("ISW", 2, 2, 4),
)
ODD = (Mode("FW", 4, 4), Mode("A", 3, 4), Mode("B", 1, 3, 5), Mode("OS", 4, 4, dataflow="os"))
TINY = load_machine("tiny")
MACHINES = {
    "plain": TINY,
    "one register": replace(TINY, weight_buffers=1),
    "flex": replace(TINY, modes=FLEX),
    "odd modes": replace(TINY, modes=ODD),
    "two groups": replace(TINY, groups=2, modes=FLEX),
    "units": replace(TINY, groups=2, units=2, rows=3, cols=2),
    "short waves": replace(TINY, modes=FLEX, acc_rows=4, lbuf_h_rows=6),
}
SHIPPED = [
    "wavecore", "wavecore-base", "flexsa-1g1c", "flexsa-1g4c", "flexsa-4g4c", "flexsa-1g1f",
    "flexsa-4g1f", "ccnn-flex", "intergrad-32",
]  # fmt: skip
sizes = st.integers(1, 13)


# An oracle that knows nothing of covers: it tries every cut of every dimension.


def all_waves(length: int, most: int, rules: Rules):
    """Every way to write `length` as a sum of at most one more wave than needed."""
    if rules.uncut:
        return [(length,)]
    count = ceil(length / most)

    def sums(left: int, number: int, largest: int):
        if number == 0:
            return [()] if left == 0 else []
        return [
            (first, *rest)
            for first in range(min(left, largest), 0, -1)
            for rest in sums(left - first, number - 1, first)
        ]

    return [w for n in (count, count + 1) for w in sums(length, n, most)]


def least_cycles(machine: Machine, rules: Rules, dataflow: str, lwd, free_waves: bool) -> int:
    """The least array cycles over all cuts of width and depth (and length)."""
    length, width, depth = lwd
    modes = [m for m in machine.array_modes if m.dataflow == dataflow]
    most = length if dataflow == "os" else min(machine.acc_rows, machine.lbuf_h_rows)
    best = None
    for waves in all_waves(length, most, rules) if free_waves else [None]:

        @cache
        def block(mode: Mode, rows: int, waves=waves) -> int:
            shift = mode.rows if rules.whole_shift else rows
            streams = [ceil(w / mode.sub_waves) for w in waves]
            if machine.weight_buffers == 1:
                return sum(s + shift for s in streams)
            return sum(max(s, shift) for s in streams)

        @cache
        def strip(cols: int, left: int, block=block) -> int:
            if left == 0:
                return 0
            return min(
                block(mode, rows) + strip(cols, left - rows)
                for mode in modes
                if mode.cols >= cols
                for rows in range(1, min(left, mode.rows) + 1)
            )

        @cache
        def all_strips(left: int, strip=strip) -> int:
            if left == 0:
                return 0
            widest = max(mode.cols for mode in modes)
            return min(
                strip(cols, depth) + all_strips(left - cols)
                for cols in range(1, min(left, widest) + 1)
            )

        cycles = all_strips(width)
        best = cycles if best is None else min(best, cycles)
    return best


def brute_force(product: Product, machine: Machine, rules: Rules) -> int:
    """Least cycles over dataflows, orientations and parts."""
    known = {mode.dataflow for mode in machine.array_modes}
    orders = {"ws": [(0, 1, 2), (1, 0, 2)], "os": [(2, 1, 0), (2, 0, 1)]}
    arrays, best = machine.arrays, None
    for split in pairs(range(1, arrays + 1), repeat=3):
        if prod(split) != arrays:
            continue
        part = [ceil(s / p) for s, p in zip(product.sizes, split, strict=True)]
        for flow in known & set(orders):
            for order in orders[flow]:
                lwd = tuple(part[i] for i in order)
                cycles = least_cycles(machine, rules, flow, lwd, True)
                best = cycles if best is None else min(best, cycles)
    return best


BARE = Rules(fill_drain=False, ideal_memory=True)


@pytest.mark.parametrize("name", MACHINES)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(m=sizes, n=sizes, k=sizes, whole=st.booleans())
def test_exact_equals_brute_force(name: str, m: int, n: int, k: int, whole: bool):
    rules = replace(BARE, whole_shift=whole)
    product, machine = Product(m, n, k), MACHINES[name]
    found = map_product(product, machine, rules)
    assert found.cycles == brute_force(product, machine, rules)
    assert found.gap == 0


# The same oracle with everything that is charged: fill and drain, reductions, DRAM.

CHARGED = {
    "little memory": replace(TINY, modes=FLEX, gbuf_bytes=160),
    "slow memory": replace(TINY, modes=ODD, gbuf_bytes=600, dram_bandwidth_gib_s=0.5),
    "two groups, two units": replace(
        TINY, modes=FLEX, groups=2, units=2, lanes=2, gbuf_bytes=600, dram_bandwidth_gib_s=2
    ),
    "one register, short waves": replace(
        TINY, weight_buffers=1, acc_rows=5, lbuf_h_rows=4, gbuf_bytes=400, dram_bandwidth_gib_s=1
    ),
}


def least_dram(sizes, groups, machine: Machine) -> int | None:
    """Bytes over all tilings of a group's part into x by y tiles of results; None if none fits."""
    m, n, k = (ceil(s / g) for s, g in zip(sizes, groups, strict=True))
    slices, room = 2 * 2 * min(k, machine.rows), machine.gbuf_bytes // machine.groups
    fits = []
    if min(m, n) * (2 * k + 4) + slices <= room:
        fits.append((1, 1))
    for x, y in pairs(range(1, m + 1), range(1, n + 1)):
        rows, cols = ceil(m / x), ceil(n / y)
        if 4 * rows * cols + (rows + cols) * slices <= room:
            fits.append((x, y))
    m, n, k = sizes
    over_m, over_n, _ = groups
    moved = (m * k * y * over_n + n * k * x * over_m + m * n for x, y in fits)
    return min((2 * words for words in moved), default=None)


def brute_force_charged(product: Product, machine: Machine) -> int | None:
    """Least cycles over dataflows, orientations and parts; None if no tile fits the buffer."""
    orders = {"ws": [(0, 1, 2), (1, 0, 2)], "os": [(2, 1, 0), (2, 0, 1)]}
    known = {mode.dataflow for mode in machine.array_modes} & set(orders)
    best = None
    over, within = (
        [s for s in pairs(range(1, count + 1), repeat=3) if prod(s) == count]
        for count in (machine.groups, machine.units)
    )
    for groups, units in pairs(over, within):
        dram = least_dram(product.sizes, groups, machine)
        if dram is None:
            continue
        split = [g * u for g, u in zip(groups, units, strict=True)]
        part = [ceil(s / p) for s, p in zip(product.sizes, split, strict=True)]
        adds = product.m * product.n * (split[2] - 1)
        for flow, order in ((f, o) for f in known for o in orders[f]):
            length, width, depth = (part[i] for i in order)
            busy = least_cycles(machine, Rules(), flow, (length, width, depth), True)
            fill = 2 * min(depth, machine.rows) + min(width, machine.cols) - 2
            cycles = max(
                busy + fill + ceil(adds / machine.lanes), ceil(dram / machine.bytes_per_cycle)
            )
            best = cycles if best is None else min(best, cycles)
    return best


@pytest.mark.parametrize("name", CHARGED)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(m=sizes, n=sizes, k=sizes)
def test_exact_equals_brute_force_with_all_that_is_charged(name: str, m: int, n: int, k: int):
    product, machine = Product(m, n, k), CHARGED[name]
    want = brute_force_charged(product, machine)
    if want is None:
        with pytest.raises(MappingError, match="no tile"):
            map_product(product, machine)
        return
    found = map_product(product, machine)
    assert found.cycles == want
    assert found.gap == 0
    assert found.floor <= want


def check_legal(mapping: ArrayMapping, machine: Machine) -> None:
    """Nothing left out, nothing twice, nothing larger than where it goes."""
    cut, modes = mapping.cut, {m.name: m for m in machine.array_modes}
    length, width, depth = cut.flow.of(cut.part)
    assert sum(rows * count for rows, count in cut.waves) == length
    assert sum(strip.count * strip.width for strip in cut.strips) == width
    for strip in cut.strips:
        assert strip.count >= 1
        assert strip.width >= 1
        assert sum(run.count * run.depth for run in strip.runs) == depth
        for run in strip.runs:
            mode = modes[run.mode]
            assert run.count >= 1
            assert 1 <= run.depth <= mode.rows
            assert strip.width <= mode.cols
            assert mode.dataflow == cut.flow.dataflow
    assert prod(cut.split) == machine.arrays
    for size, part, over in zip(mapping.product.sizes, cut.part, cut.split, strict=True):
        assert (part - 1) * over < size <= part * over
    if cut.flow.dataflow == "ws":
        assert max(rows for rows, _ in cut.waves) <= min(machine.acc_rows, machine.lbuf_h_rows)


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("mapper", ["exact", "heuristic"])
@settings(max_examples=8, deadline=None, derandomize=True)
@given(m=st.integers(1, 5000), n=st.integers(1, 700), k=st.integers(1, 5000))
def test_mappings_are_legal_and_above_the_floor(name: str, mapper: str, m: int, n: int, k: int):
    machine = load_machine(name)
    mapping = map_product(Product(m, n, k), machine, mapper=mapper)
    check_legal(mapping, machine)
    assert mapping.floor <= mapping.bound <= mapping.cycles
    assert mapping.floor * mapping.pes >= m * n * k
    assert mapping.utilisation <= 1


@pytest.mark.parametrize("name", SHIPPED)
@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    m=st.integers(1, 3000),
    n=st.integers(1, 400),
    k=st.integers(1, 3000),
    rules=st.builds(
        Rules, st.booleans(), st.booleans(), st.booleans(), st.booleans(), st.booleans()
    ),
)
def test_exact_is_never_worse_than_the_heuristic(name, m, n, k, rules):
    machine, product = load_machine(name), Product(m, n, k)
    exact = map_product(product, machine, rules)
    assert exact.cycles <= map_product(product, machine, rules, "heuristic").cycles
    assert exact.gap == 0


def test_the_heuristic_picks_the_papers_modes():
    """128 x 128 tiles; wide when n > 64, tall when k > 64: every corner of that rule."""
    machine = load_machine("flexsa-1g1f")
    for n, k, mode in [
        (128, 128, "FW"), (65, 65, "FW"), (64, 65, "VSW"), (64, 128, "VSW"), (65, 64, "HSW"),
        (128, 1, "HSW"), (64, 64, "ISW"), (1, 1, "ISW"),
    ]:  # fmt: skip
        mapping = map_product(Product(512, n, k), machine, BARE, "heuristic")
        (strip,) = mapping.cut.strips
        assert [run.mode for run in strip.runs] == [mode], (n, k)


def test_a_narrow_gemm_by_hand():
    """K = 200 is a full block of 128 and one of 72: both vertical sub-waves of half the rows."""
    mapping = map_product(Product(512, 64, 200), load_machine("flexsa-1g1f"), BARE, "heuristic")
    assert mapping.mode_cycles == {"VSW": 256 + 256}
    # two deep blocks of two sub-waves, or 128 + 64 + 8: the same for long waves
    assert map_product(Product(512, 64, 200), load_machine("flexsa-1g1f"), BARE).cycles == 512
    # 192 = 128 + 64 instead: the shallow block runs in four sub-waves
    deep = map_product(Product(512, 64, 192), load_machine("flexsa-1g1f"), BARE, "heuristic")
    assert deep.mode_cycles == {"VSW": 256, "ISW": 128}


def test_words_by_hand():
    """300 rows in two strips of columns: a twice, b once for each of 3 waves of 128 rows."""
    machine = replace(load_machine("wavecore"), acc_rows=128)
    mapping = map_product(Product(300, 200, 500), machine, mapper="heuristic", split="m")
    assert (mapping.words.a, mapping.words.b) == (300 * 500 * 2, 200 * 500 * 3)
    assert mapping.words.result == 300 * 200
    assert mapping.buffer_bytes == 2 * mapping.words.total


def test_partial_sums_are_stored_wide_read_back_and_stored_again():
    machine = load_machine("flexsa-1g4c")
    mapping = map_product(Product(64, 64, 4000), machine, mapper="heuristic", split="k")
    assert mapping.cut.split == (1, 1, 4)
    assert mapping.words.result == 4 * 64 * 64
    # 32-bit parts written and read, 16-bit results written
    moved = 2 * (mapping.words.a + mapping.words.b)
    assert mapping.buffer_bytes == moved + 64 * 64 * (4 * 4 * 2 + 2)
    assert mapping.reduce_cycles == ceil(3 * 64 * 64 / machine.lanes)


def test_dram_by_hand():
    """All fits: every operand once; a buffer for nothing: no mapping."""
    machine = load_machine("wavecore")
    small = map_product(Product(100, 200, 300), machine)
    assert small.dram_bytes == 2 * (100 * 300 + 200 * 300 + 100 * 200)
    assert small.dram_cycles == ceil(small.dram_bytes / machine.bytes_per_cycle)
    with pytest.raises(MappingError, match="fits the 64 bytes"):
        map_product(Product(100, 200, 300), replace(machine, gbuf_bytes=64))


def test_less_buffer_means_no_less_dram():
    found = [
        map_product(
            Product(5000, 900, 3000), replace(load_machine("wavecore"), gbuf_bytes=room)
        ).dram_bytes
        for room in (2**24, 2**22, 2**20, 2**18)
    ]
    assert found == sorted(found)
    assert found[0] < found[-1]


def test_a_result_stays_where_blocks_of_weights_would_come_and_go():
    """With one weight register, 1000 shift-ins of 32 rows against the draining of 16."""
    machine = replace(load_machine("intergrad-32"), weight_buffers=1)
    mapping = map_product(Product(16, 16, 32000), machine, BARE)
    assert mapping.cut.flow.dataflow == "os"
    assert mapping.cycles == 32000 + 16
    assert (mapping.words.a, mapping.words.b) == (16 * 32000, 16 * 32000)


@pytest.mark.parametrize("sizes", [(0, 1, 1), (1, -3, 1), (1, 1, LARGEST + 1), (10**7,) * 3])
def test_a_gemm_that_makes_no_sense_is_refused(sizes):
    with pytest.raises(MappingError, match="GEMM"):
        Product(*sizes)


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("sizes", [(2**31 - 1, 1, 1), (1, 2**31 - 1, 7), (3, 5, 2**31 - 1)])
def test_extreme_gemms_are_mapped(name: str, sizes):
    machine = load_machine(name)
    mapping = map_product(Product(*sizes), machine)
    check_legal(mapping, machine)
    assert mapping.floor <= mapping.bound <= mapping.cycles


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    total=st.integers(1, 40),
    kinds=st.lists(
        st.tuples(
            st.integers(1, 20),
            st.lists(st.tuples(st.integers(1, 6), st.integers(0, 5)), min_size=1, max_size=3),
        ),
        min_size=1,
        max_size=3,
    ),
)
def test_cover_equals_dynamic_programming(total, kinds):
    pieces = []
    for price, levels in kinds:
        rising = sorted(each for _, each in levels)
        # as blocks have it: a price that no rise makes up for, so that pieces add up no cheaper
        levels = tuple((w, e) for (w, _), e in zip(levels, rising, strict=True))
        pieces.append(Kind(price + sum(w * e for w, e in levels), levels))
    best = [0] + [10**9] * total
    for at in range(1, total + 1):
        best[at] = min(
            best[at - units] + kind.at(units)
            for kind in pieces
            for units in range(1, min(kind.most, at) + 1)
        )
    found = cover(total, tuple(pieces))
    assert found.cost == found.bound == best[total]
    assert sum(found.units) == total
