"""Tile sizes: what the mapper expects is what the simulator counts, and no tiling is cheaper."""

from dataclasses import replace
from math import prod

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ccnn.compiler.codegen import gemm_of, generate, make_context
from ccnn.compiler.codegen.nest import fetches
from ccnn.compiler.mapper import map_graph
from ccnn.compiler.mapper.price import fitting, price, traffic, work
from ccnn.compiler.mapper.rule import best_of, choose_tiling, make_grid, refine, whole_groups
from ccnn.compiler.mapper.solver import least_traffic
from ccnn.compiler.mapper.tables import make_tables, useful_sizes
from ccnn.compiler.mapping import Mapping, MappingError, Tiling
from ccnn.passes.graph import Builder
from ccnn.targets.machine import load_machine
from ccnn.targets.simulator import simulate
from ccnn.targets.verify import verify_program

MACHINES = {name: load_machine(name) for name in ("tiny", "wavecore", "wavecore-base")}
few = settings(max_examples=15, deadline=None)


def gemm_graph(op, *shapes, **attrs):
    b = Builder("t")
    names = [b.input(f"in{i}", s) if s else "" for i, s in enumerate(shapes)]
    return b.build(b.emit_all(op, names, **attrs))


def conv_case(kind, n, c, k, h, w, r, stride, group=1, bias=False):
    pad = r // 2
    attrs = {
        "strides": (stride, stride), "pads": (pad,) * 4, "dilations": (1, 1), "group": group,
    }  # fmt: skip
    p, q = (h + 2 * pad - r) // stride + 1, (w + 2 * pad - r) // stride + 1
    x, f, y = (n, c, h, w), (k, c // group, r, r), (n, k, p, q)
    if kind == "conv":
        return gemm_graph("conv", x, f, (k,) if bias else (), **attrs)
    if kind == "conv_dx":
        return gemm_graph("conv_dx", y, f, **attrs, shape=x)
    return gemm_graph("conv_dw", x, y, **attrs, shape=f)


def matmul_case(m, n, k, batch=(), shared=False):
    right = (k, n) if shared else (*batch, k, n)
    return gemm_graph("matmul", (*batch, m, k), right, (), trans_a=False, trans_b=False)


CASES = {
    "first layer": conv_case("conv", 2, 3, 20, 30, 31, 7, 2),
    "3x3": conv_case("conv", 3, 20, 24, 14, 14, 3, 1, bias=True),
    "3x3 dx": conv_case("conv_dx", 3, 20, 24, 14, 14, 3, 1),
    "3x3 dw": conv_case("conv_dw", 3, 20, 24, 14, 14, 3, 1),
    "strided": conv_case("conv", 2, 12, 18, 15, 13, 3, 2),
    "strided dx": conv_case("conv_dx", 2, 12, 18, 15, 13, 3, 2),
    "strided dx without halo": conv_case("conv_dx", 2, 12, 18, 15, 13, 1, 2),
    "strided dx in threes": conv_case("conv_dx", 2, 6, 7, 17, 19, 5, 3),
    "strided dw": conv_case("conv_dw", 2, 12, 18, 15, 13, 3, 2),
    "groups": conv_case("conv", 2, 12, 24, 11, 9, 3, 1, group=4),
    "depthwise dx": conv_case("conv_dx", 2, 12, 12, 11, 9, 3, 2, group=12),
    "depthwise dw": conv_case("conv_dw", 2, 12, 12, 11, 9, 3, 1, group=12),
    "matmul": matmul_case(70, 33, 90),
    "batched": matmul_case(17, 9, 21, (2, 3)),
    "shared": matmul_case(17, 9, 21, (2, 3), shared=True),
}


@pytest.mark.parametrize("machine", ["tiny", "wavecore"])
@pytest.mark.parametrize("name", CASES)
def test_expected_traffic_is_the_simulated(name, machine):
    context = make_context(CASES[name], MACHINES[machine], "bfloat16")
    mapping = map_graph(context)
    trace = simulate(generate(context, mapping), MACHINES[machine])
    (tiling,) = mapping.tilings.values()
    assert trace.dram_bytes == tiling.dram_bytes
    assert tiling.bound <= tiling.dram_bytes


@pytest.mark.parametrize("machine", ["tiny", "wavecore"])
@pytest.mark.parametrize("name", CASES)
def test_expected_array_cycles_are_the_simulated(name, machine):
    few_lanes = replace(MACHINES[machine], lanes=1)
    context = make_context(CASES[name], few_lanes, "float32")
    mapping = map_graph(context, mapper="heuristic")
    (tiling,) = mapping.tilings.values()
    gemm = gemm_of(context, CASES[name].nodes[0])
    tables = make_tables(gemm, {n: [s] for n, s in tiling.tiles})
    index = {n: np.zeros(1, int) for n in gemm.levels}
    expected = int(work(tables, few_lanes, index).array[0])
    trace = simulate(generate(context, mapping), few_lanes)
    assert expected == dict(trace.layers[0].busy)["array"]


def test_what_is_moved_once_gets_one_slot():
    """Weights that stay, and tiles of x that follow each other: one slot and two."""
    graph = conv_case("conv", 4, 16, 16, 16, 16, 3, 1)
    gemm = gemm_of(make_context(graph, MACHINES["wavecore"], "float32"), graph.nodes[0])
    tile = {v.name: v.total for v in gemm.levels.values()} | {"n": 1}
    slots = gemm.slots(gemm.orders[0], tile, 2)
    assert (slots["moving"], slots["stationary"], slots["result"]) == (2, 1, 2)
    assert set(gemm.slots(gemm.orders[0], {**tile, "n": 4}, 2).values()) == {1}


def every_size(gemm):
    return {
        v.name: sorted({min(v.total, (i + 1) * v.multiple) for i in range(v.total)})
        for v in gemm.levels.values()
    }  # fmt: skip


def brute_force(gemm, machine, depth):
    """Least bytes over all tile sizes and orders, none when nothing fits; nest.py counts."""
    sizes, best = every_size(gemm), None
    tables = make_tables(gemm, sizes)
    points = np.meshgrid(*(np.arange(len(sizes[n])) for n in gemm.levels), indexing="ij")
    index = whole_groups(gemm, tables, {n: p.ravel() for n, p in zip(sizes, points, strict=True)})
    done = work(tables, machine, index)
    for order in gemm.orders:
        found = price(tables, machine, done, traffic(tables, index, done, order), depth)
        fits = found.dram[found.need <= machine.gbuf_bytes]
        if len(fits) and (best is None or fits.min() < best):
            best = int(fits.min())
    return best


@st.composite
def small_gemms(draw):
    if draw(st.booleans()):
        batch = draw(st.lists(st.integers(1, 3), max_size=1))
        m, n, k = (draw(st.integers(1, 40)) for _ in range(3))
        return matmul_case(m, n, k, tuple(batch), draw(st.booleans()) and bool(batch))
    kind = draw(st.sampled_from(["conv", "conv_dx", "conv_dw"]))
    group = draw(st.sampled_from([1, 1, 2]))
    c, k = group * draw(st.integers(1, 9)), group * draw(st.integers(1, 9))
    h, w, r = draw(st.integers(4, 9)), draw(st.integers(4, 8)), draw(st.sampled_from([1, 3]))
    stride, n = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    return conv_case(kind, n, c, k, h, w, r, stride, group, draw(st.booleans()))


@settings(max_examples=30, deadline=None)
@given(small_gemms(), st.sampled_from([1024, 2048, 4096]), st.sampled_from([1, 2]))
def test_the_solver_finds_what_brute_force_finds(graph, room, depth):
    machine = replace(MACHINES["tiny"], gbuf_bytes=room)
    gemm = gemm_of(make_context(graph, machine, "float32"), graph.nodes[0])
    best = brute_force(gemm, machine, depth)
    assume(best is not None)
    tables = make_tables(gemm, useful_sizes(gemm))
    answer = least_traffic(tables, machine, depth, 4 * best, effort=20.0)
    assert answer.dram == best
    assert answer.bound == best
    mapping = Mapping(machine.name, {
        graph.nodes[0].name: Tiling(answer.order, answer.tiles, depth, answer.dram, answer.bound)
    })  # fmt: skip
    program = generate(make_context(graph, machine, "float32"), mapping)
    assert verify_program(program, machine) == []
    assert simulate(program, machine).dram_bytes == best


@few
@given(small_gemms(), st.sampled_from([1024, 2048, 4096]))
def test_the_choice_fits_and_keeps_its_bound(graph, room):
    machine = replace(MACHINES["tiny"], gbuf_bytes=room)
    context = make_context(graph, machine, "float32")
    gemm = gemm_of(context, graph.nodes[0])
    try:
        tiling = choose_tiling(gemm, machine)
    except MappingError:
        assert brute_force(gemm, machine, 1) is None
        return
    best = brute_force(gemm, machine, tiling.depth)
    assert tiling.bound <= best <= tiling.dram_bytes
    program = generate(context, Mapping(machine.name, {graph.nodes[0].name: tiling}))
    assert simulate(program, machine).dram_bytes == tiling.dram_bytes


def test_the_search_costs_no_more_than_the_grid():
    machine = MACHINES["tiny"]
    for graph in CASES.values():
        gemm = gemm_of(make_context(graph, machine, "float32"), graph.nodes[0])
        tables, index = make_grid(gemm, machine)
        grid = best_of(tables, machine, fitting(tables, machine, index)[0])
        found, bound = refine(gemm, machine, grid, tables.floor)
        assert found.cost <= grid.cost
        assert tables.floor <= bound <= found.dram


@pytest.mark.parametrize("effort", [1e-9, 1e-3])
def test_a_search_cut_short_still_gives_a_bound(effort):
    machine = MACHINES["tiny"]
    for graph in CASES.values():
        gemm = gemm_of(make_context(graph, machine, "float32"), graph.nodes[0])
        known = choose_tiling(gemm, machine)
        tables = make_tables(gemm, useful_sizes(gemm))
        hint = (known.order, dict(known.tiles))
        answer = least_traffic(tables, machine, known.depth, known.dram_bytes, hint, effort)
        assert tables.floor <= answer.bound <= known.dram_bytes
        assert answer.bound <= answer.dram <= known.dram_bytes


def test_the_same_graph_gives_the_same_mapping():
    context = make_context(CASES["3x3 dw"], MACHINES["tiny"], "float32")
    first = map_graph(context).text()
    assert first == map_graph(context).text()


def test_placement_is_counted_as_the_code_generator_counts():
    """Against nest.fetches, for tiles of every kind."""
    for graph in CASES.values():
        gemm = gemm_of(make_context(graph, MACHINES["tiny"], "float32"), graph.nodes[0])
        tables, index = make_grid(gemm, MACHINES["tiny"])
        index = {k: v[:: max(1, len(v) // 40)] for k, v in index.items()}
        done = work(tables, MACHINES["tiny"], index)
        for order in gemm.orders:
            counted = traffic(tables, index, done, order).count
            levels = [gemm.levels[n] for n in order]
            for i in range(len(index[order[0]])):
                tile = {n: int(tables.levels[n].sizes[index[n][i]]) for n in order}
                shapes = gemm.tile_shapes(tile)
                for o in gemm.operands():
                    assert counted[o.name][i] == fetches(levels, tile, o.depends)
                    assert done.volume[o.name][i] == prod(shapes[o.name]) * 4


def test_a_search_that_can_change_nothing_keeps_its_start():
    """Nothing to cut: every level is one tile."""
    graph = conv_case("conv", 1, 1, 1, 1, 1, 1, 1)
    machine = MACHINES["tiny"]
    gemm = gemm_of(make_context(graph, machine, "float32"), graph.nodes[0])
    tables, index = make_grid(gemm, machine)
    grid = best_of(tables, machine, index)
    assert refine(gemm, machine, grid, tables.floor) == (grid, 12)


def test_a_buffer_too_small_is_said():
    machine = replace(MACHINES["tiny"], gbuf_bytes=128)
    context = make_context(CASES["3x3"], machine, "float32")
    with pytest.raises(MappingError, match=r"'conv' .*smallest tile takes \d+ bytes.* has 128"):
        map_graph(context)


def test_a_long_row_is_mapped_without_looking_at_every_size():
    graph = conv_case("conv", 1, 2, 3, 1, 40000, 3, 1)
    machine = MACHINES["tiny"]
    context = make_context(graph, machine, "float32")
    assert useful_sizes(gemm_of(context, graph.nodes[0])) is None
    mapping = map_graph(context)
    (tiling,) = mapping.tilings.values()
    trace = simulate(generate(context, mapping), machine)
    assert tiling.bound <= tiling.dram_bytes == trace.dram_bytes
