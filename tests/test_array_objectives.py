"""Mappings of one GEMM of least traffic or energy: equal to trying every cut, above the floor."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import groupby
from itertools import product as pairs
from math import prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_array_mapper import FLEX, ODD, TINY, all_waves, check_legal

from ccnn.compiler.cut import FLOWS, Cut, Flow, Run, Strip, Waves, part_of
from ccnn.compiler.mapper.array import Figure, Product, Rules, block_cycles, modes_of
from ccnn.compiler.mapper.array_cost import price_cut
from ccnn.compiler.mapper.array_energy import count_actions, energy_pj
from ccnn.compiler.mapper.array_search import map_product
from ccnn.targets.machine import Machine, load_machine
from ccnn.targets.modes import Mode

OBJECTIVES = ("time", "traffic", "energy")
MACHINES = {
    "one shape": TINY,
    "one register": replace(TINY, weight_buffers=1),
    "flexible": replace(TINY, modes=FLEX),
    "copies": replace(
        TINY, modes=(*FLEX[:1], *(replace(mode, stationary="copies") for mode in FLEX[1:]))
    ),
    "odd modes": replace(TINY, modes=ODD),
    "results stay": replace(
        TINY, modes=(*FLEX, Mode("OS", 4, 4, dataflow="os"), Mode("O2", 3, 2, dataflow="os"))
    ),
    "short waves": replace(TINY, modes=FLEX, acc_rows=3, lbuf_h_rows=4),
}
sizes = st.integers(1, 8)

# An oracle that knows nothing of covers, and of prices only what a whole mapping costs: it keeps
# every strip, and every set of strips, that no other is better than in all that prices depend on.

Vector = tuple[int, ...]


def kept(offers: dict[Vector, tuple]) -> dict[Vector, tuple]:
    """Those that no other is below in every respect."""
    return {
        v: what
        for v, what in offers.items()
        if not any(w != v and all(a <= b for a, b in zip(w, v, strict=True)) for w in offers)
    }


def all_strips(machine: Machine, rules: Rules, flow: Flow, part, waves: Waves) -> list[tuple]:
    """Sets of strips, each a tuple of (width, blocks), that may be the best for some prices."""
    _, width, depth = flow.of(part)
    modes = modes_of(machine, flow)

    @cache
    def strip(cols: int, left: int) -> dict[Vector, tuple]:
        if not left:
            return {(0, 0, 0, 0): ()}
        offers: dict[Vector, tuple] = {}
        for mode in (m for m in modes if m.cols >= cols):
            for rows in range(1, min(left, mode.rows) + 1):
                here = (
                    block_cycles(machine, rules, mode, waves, rows), rows * mode.loads,
                    rows * mode.sub_waves, 1,
                )  # fmt: skip
                for vector, blocks in strip(cols, left - rows).items():
                    total = tuple(a + b for a, b in zip(here, vector, strict=True))
                    offers.setdefault(total, ((mode.name, rows), *blocks))
        return kept(offers)

    @cache
    def strips(left: int, widest: int) -> dict[Vector, tuple]:
        if not left:
            return {(0, 0, 0, 0, 0): ()}
        offers: dict[Vector, tuple] = {}
        for cols in range(1, min(left, widest) + 1):
            for (cycles, *words), blocks in strip(cols, depth).items():
                here = (cycles, *(cols * x for x in words), 1)
                for vector, others in strips(left - cols, cols).items():
                    total = tuple(a + b for a, b in zip(here, vector, strict=True))
                    offers.setdefault(total, ((cols, blocks), *others))
        return kept(offers)

    return list(strips(width, max(mode.cols for mode in modes)).values())


def run_lengths(items) -> list[tuple]:
    return [(item, len(list(same))) for item, same in groupby(items)]


def brute_force(product: Product, machine: Machine, rules: Rules) -> Figure:
    """The least value over all cuts, each priced as a whole."""
    dataflows = {mode.dataflow for mode in machine.array_modes}
    best = None
    over, within = (
        [s for s in pairs(range(1, count + 1), repeat=3) if prod(s) == count]
        for count in (machine.groups, machine.units)
    )
    most = min(machine.acc_rows, machine.lbuf_h_rows)
    for flow, groups, units in pairs(FLOWS, over, within):
        if flow.dataflow not in dataflows:
            continue
        part = part_of(product.sizes, groups, units)
        length = flow.of(part)[0]
        for lengths in all_waves(length, length if flow.dataflow == "os" else most, rules):
            waves = tuple(run_lengths(lengths))
            modes = {mode.name: mode for mode in machine.array_modes}
            for chosen in all_strips(machine, rules, flow, part, waves):
                strips = []
                for (width, blocks), count in run_lengths(chosen):
                    runs = tuple(
                        Run(m, d, n, block_cycles(machine, rules, modes[m], waves, d))
                        for (m, d), n in run_lengths(blocks)
                    )
                    strips.append(Strip(width, count, runs))
                cut = Cut(flow, groups, units, part, waves, tuple(strips))
                value = price_cut(product, machine, rules, cut, "tried").value
                best = value if best is None or value < best else best
    assert best is not None
    return best


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", MACHINES)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(m=sizes, n=sizes, k=sizes)
def test_exact_equals_brute_force(name: str, objective: str, m: int, n: int, k: int):
    product, rules = Product(m, n, k), Rules(ideal_memory=True, objective=objective)
    found = map_product(product, MACHINES[name], rules)
    assert found.value == brute_force(product, MACHINES[name], rules)
    assert found.gap == 0
    assert found.floor <= found.bound


SLOW = {
    "slow memory": replace(TINY, modes=FLEX, gbuf_bytes=600, dram_bandwidth_gib_s=0.5),
    "two groups": replace(TINY, groups=2, modes=FLEX, gbuf_bytes=900, dram_bandwidth_gib_s=2),
    "two units": replace(TINY, units=2, lanes=2, gbuf_bytes=700, dram_bandwidth_gib_s=1),
}


@pytest.mark.parametrize("objective", ["traffic", "energy"])
@pytest.mark.parametrize("name", SLOW)
@settings(max_examples=10, deadline=None, derandomize=True)
@given(m=st.integers(1, 8), n=st.integers(1, 8), k=st.integers(1, 8))
def test_with_memory_no_mapping_is_below_the_bound(
    name: str, objective: str, m: int, n: int, k: int
):
    """Nor above it, but where array and memory take turns in being slower."""
    product, rules = Product(m, n, k), Rules(objective=objective)
    found, best = map_product(product, SLOW[name], rules), brute_force(product, SLOW[name], rules)
    assert found.floor <= found.bound <= best <= found.value
    assert found.value <= best * (1 if objective == "traffic" else 1.02)


@pytest.mark.parametrize("name", ["wavecore", "ccnn-flex", "flexsa-4g4c", "intergrad-32"])
@settings(max_examples=8, deadline=None, derandomize=True)
@given(m=st.integers(1, 3000), n=st.integers(1, 400), k=st.integers(1, 3000))
def test_each_objective_is_lowest_in_its_own(name: str, m: int, n: int, k: int):
    machine, product = load_machine(name), Product(m, n, k)
    found = {o: map_product(product, machine, Rules(objective=o)) for o in OBJECTIVES}
    by_rule = {
        o: map_product(product, machine, Rules(objective=o), "heuristic") for o in OBJECTIVES
    }
    for objective, mapping in found.items():
        check_legal(mapping, machine)
        assert mapping.floor <= mapping.bound <= mapping.value <= by_rule[objective].value
        for other in found.values():
            again = price_cut(product, machine, Rules(objective=objective), other.cut, "other")
            assert mapping.bound <= again.value
    assert found["traffic"].gap == 0


def test_values_by_hand():
    """What the objective counts is what the parts say."""
    machine, product = load_machine("wavecore"), Product(1000, 200, 300)
    rules = Rules(objective="traffic")
    mapping = map_product(product, machine, rules)
    assert mapping.value == mapping.dram_bytes + mapping.buffer_bytes
    rules = Rules(objective="energy")
    mapping = map_product(product, machine, rules)
    acted = sum(energy_pj(mapping, machine, rules).values())
    assert float(mapping.value) == pytest.approx(acted + 4000 * mapping.cycles)
    assert count_actions(mapping, machine, rules)["mac_16bit"] == product.macs


def test_traffic_is_saved_by_wider_strips_where_time_is_by_sub_waves():
    """200 columns: two strips of 100 read the rows twice; 128 and two narrow ones three times."""
    machine, product = load_machine("flexsa-1g1f"), Product(3136, 200, 147)
    time, traffic = (map_product(product, machine, Rules(objective=o)) for o in OBJECTIVES[:2])
    assert time.cycles < traffic.cycles
    assert (
        traffic.value
        < price_cut(product, machine, Rules(objective="traffic"), time.cut, "time").value
    )
