"""Mappings of one GEMM of least traffic or energy: equal to trying every cut, above the floor."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from itertools import groupby
from itertools import product as pairs
from math import ceil, prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_array_mapper import FLEX, ODD, TINY, all_waves, check_legal
from test_array_modes import gemm_graph
from test_mapper import CASES

from ccnn.compiler import cli
from ccnn.compiler.codegen import gemm_of, generate, make_context
from ccnn.compiler.cut import FLOWS, Cut, Flow, Run, Strip, Waves, part_of
from ccnn.compiler.mapper import map_graph
from ccnn.compiler.mapper.array import Figure, Product, Rules, block_cycles, flows, modes_of
from ccnn.compiler.mapper.array_cache import map_products
from ccnn.compiler.mapper.array_cost import price_cut
from ccnn.compiler.mapper.array_energy import count_actions, energy_pj
from ccnn.compiler.mapper.array_search import map_product
from ccnn.compiler.mapper.cuts import choose_cuts
from ccnn.compiler.mapping import Mapping, Tiling
from ccnn.targets.machine import Machine, load_machine
from ccnn.targets.modes import Mode
from ccnn.targets.simulator import simulate
from ccnn.targets.verify import verify_program

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
sizes = st.integers(1, 7)

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


@pytest.mark.parametrize("objective", OBJECTIVES[1:])
@pytest.mark.parametrize("name", MACHINES)
@settings(max_examples=10, deadline=None, derandomize=True)
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
@given(m=st.integers(1, 6), n=st.integers(1, 6), k=st.integers(1, 6))
def test_with_memory_no_mapping_is_below_the_bound(
    name: str, objective: str, m: int, n: int, k: int
):
    """Nor above it, but where array and memory take turns in being slower."""
    product, rules = Product(m, n, k), Rules(objective=objective)
    found, best = map_product(product, SLOW[name], rules), brute_force(product, SLOW[name], rules)
    assert found.floor <= found.bound <= best <= found.value
    assert found.value <= best * (1 if objective == "traffic" else 1.02)


@pytest.mark.parametrize("name", ["wavecore", "ccnn-flex", "flexsa-4g4c", "intergrad-32"])
@settings(max_examples=5, deadline=None, derandomize=True)
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


# in commands and programs


def facts_of(capsys, *arguments: str) -> dict:
    assert cli.run(["map", *arguments, "--json", "--no-cache"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_command_keeps_low_what_it_is_told(capsys, objective: str):
    sizes = ("3136", "200", "147", "--target", "flexsa-1g1f", "--objective")
    mine = facts_of(capsys, *sizes, objective)
    assert mine["objective"] == objective
    assert mine["value"] == mine["bound"] > mine["floor"]
    key = {"time": "cycles", "traffic": "buffer_bytes"}.get(objective)
    for other in OBJECTIVES if key else ():
        assert mine[key] <= facts_of(capsys, *sizes, other)[key]
    assert cli.run(["map", *sizes, objective]) == 0
    shown = capsys.readouterr().out
    assert ("least energy is wanted" in shown) == (objective == "energy")
    assert "optimal" in shown


def test_a_kept_mapping_is_one_of_its_objective(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    machine, product = load_machine("flexsa-1g1f"), Product(3136, 200, 147)
    for objective in (*OBJECTIVES, *OBJECTIVES):
        (kept,) = map_products([product], machine, Rules(objective=objective))
        assert kept == map_product(product, machine, Rules(objective=objective))


def test_the_command_says_what_each_core_has(capsys):
    """Many rows: half of them each; a long sum: half of it, and the other core's half is read."""
    rows = facts_of(capsys, "100352", "64", "576", "--target", "wavecore-chip")
    assert (rows["cores_mnk"], rows["core_mnk"]) == ([2, 1, 1], [50176, 64, 576])
    assert rows["exchange_bytes"] == 0
    deep = facts_of(capsys, "576", "64", "100352", "--target", "wavecore-chip")
    assert (deep["m"], deep["k"]) == (576, 100352)
    assert (deep["cores_mnk"], deep["core_mnk"]) == ([1, 1, 2], [576, 64, 50176])
    assert deep["exchange_bytes"] == 576 * 64 * 2
    alone = facts_of(capsys, "576", "64", "50176", "--target", "wavecore")
    assert deep["cycles"] == alone["cycles"]
    machine = load_machine("wavecore-chip")
    adds = ceil(576 * 64 / machine.lanes)
    assert deep["exchange_cycles"] == ceil(576 * 64 * 2 / machine.bytes_per_cycle) + adds
    assert cli.run(["map", "576", "64", "100352", "--target", "wavecore-chip"]) == 0
    assert "1 x 1 x 2 parts of M, N, K" in capsys.readouterr().out


@pytest.mark.parametrize("case", ["3x3", "strided dw"])
def test_cuts_of_programs_follow_the_objective(case: str):
    """Executed: through the buffers with fewest bytes where those are to be few."""
    machine, moved = load_machine("flexsa-1g1f"), {}
    for objective in OBJECTIVES:
        context = make_context(CASES[case], machine, "bfloat16")
        mapping = map_graph(context, objective=objective)
        program = generate(context, mapping)
        assert verify_program(program, machine) == []
        trace = simulate(program, machine)
        moved[objective] = trace.gbuf_bytes - trace.dram_bytes
    assert moved["traffic"] <= min(moved["time"], moved["energy"])


def test_a_product_in_one_tile_is_faster_or_moves_less():
    """Rows that stay are cut into narrower blocks than columns that stay: less idle, more reads."""
    machine, m, n, k = load_machine("flexsa-1g1f"), 1000, 200, 147
    context = make_context(gemm_graph(m, n, k), machine, "bfloat16")
    gemm = gemm_of(context, context.graph.nodes[0])
    traces = {}
    for objective in ("time", "traffic"):
        cuts, plain = {}, Tiling(("m", "n", "k"), (("m", m), ("n", n), ("k", k)), 2)
        tiling = choose_cuts(gemm, plain, machine, cuts, flows(machine), None, objective)
        program = generate(context, Mapping(machine.name, {"matmul": tiling}, {}, cuts))
        assert verify_program(program, machine) == []
        traces[objective] = simulate(program, machine)
    assert traces["time"].cycles < traces["traffic"].cycles
    assert traces["traffic"].gbuf_bytes < traces["time"].gbuf_bytes
