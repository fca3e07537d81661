"""Serialization: the choice of groups, what they move, and that they compute the same."""

from __future__ import annotations

from functools import cache
from itertools import combinations, pairwise
from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serialised import run_serialised
from test_batch_axis import BATCH, network

from ccnn.passes.batch_axis import batch_axis
from ccnn.passes.check import verify
from ccnn.passes.graph import Builder, Graph, GraphError
from ccnn.passes.grouping import group_exactly, group_greedily, total
from ccnn.passes.interpret import interpret
from ccnn.passes.level_order import by_levels
from ccnn.passes.move_cuts import moved_cuts
from ccnn.passes.norm_policy import NormPolicy
from ccnn.passes.place_groups import place_groups
from ccnn.passes.recompute import Recompute
from ccnn.passes.serialize_minibatch import Planner, SerializeMinibatch, unit_bounds
from ccnn.passes.sink import sink_nodes
from ccnn.passes.steps import ElementBytes, make_steps
from ccnn.passes.traffic import estimate

MODES = ("full", "mbs1", "mbs2", "best")


@cache
def step(norm: str, recompute: str = "none") -> Graph:
    return Recompute(recompute, least_bytes=0)(network(NormPolicy(norm, 2, 4)))


def values(graph: Graph) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    inputs = {"x": rng.standard_normal((BATCH, 3, 8, 8)), "target": rng.integers(0, 5, BATCH)}
    return {**graph.data, **inputs}


prices = st.integers(1, 12).flatmap(
    lambda n: st.tuples(
        st.just(n),
        st.lists(st.one_of(st.integers(0, 50), st.just(inf)), min_size=144, max_size=144),
    )
)


@given(prices)
@settings(max_examples=40, deadline=None)
def test_exact_grouping_is_that_of_brute_force_and_never_worse_than_greedy(case):
    count, table = case

    def price(i: int, j: int) -> float:
        value = table[12 * i + j - 1]
        return value if value < inf or j > i + 1 else 60  # a single unit can always run

    every = ([0, *cuts, count] for n in range(count) for cuts in combinations(range(1, count), n))
    best = min(sum(price(i, j) for i, j in pairwise(c)) for c in every)
    exact = group_exactly(count, price)
    greedy = group_greedily(count, price, [k // 3 for k in range(count)])
    for groups in (exact, greedy):
        assert [k for i, j in groups for k in range(i, j)] == list(range(count))
    assert total(exact, price) == best
    assert best <= total(greedy, price) < inf


@pytest.mark.parametrize("buffer", [600, 1500, 4000, 9000, 10**6])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("norm", ["exact", "group", "ghost"])
def test_groups_compute_the_same_move_what_is_estimated_and_fit(norm, mode, buffer):
    graph = step(norm, "cheap" if mode == "best" else "none")
    grouped = SerializeMinibatch(buffer_bytes=buffer, mode=mode)(graph)
    verify(grouped)
    assert sorted(n.name for n in grouped.nodes) == sorted(n.name for n in graph.nodes)
    given_values = values(graph)
    run = run_serialised(grouped, given_values)
    expected = interpret(graph, given_values)
    for name in graph.needed:
        np.testing.assert_allclose(run.values[name], expected[name], rtol=1e-9, atol=1e-12)
    moved = estimate(grouped)
    assert (run.read, run.written) == (moved.read, moved.written)
    assert run.most <= buffer
    if buffer == 10**6:
        assert moved.total < 0.7 * estimate(graph).total


@given(prices, st.sets(st.integers(1, 11)), st.sets(st.integers(1, 11)), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_no_single_step_leads_from_moved_cuts_to_a_lower_price(case, begin, marks, reach):
    count, table = case

    def price(i: int, j: int) -> float:
        value = table[12 * i + j - 1]
        return value if value < inf or j > i + 1 else 60

    def cost(cuts) -> float:
        return sum(price(i, j) for i, j in pairwise(cuts))

    first = sorted({0, count, *(c for c in begin if c < count)})
    cuts = moved_cuts(first, price, marks, reach)
    assert cuts == sorted(set(cuts))
    assert (cuts[0], cuts[-1]) == (0, count)
    assert cost(cuts) <= cost(first)
    for low, at, high in zip(cuts, cuts[1:], cuts[2:], strict=False):
        near = [[p] for p in range(low + 1, high) if abs(p - at) <= reach]
        for between in ([], *near):
            assert cost([low, at, high]) <= cost([low, *between, high])
    for low, high in pairwise(cuts):
        for p in range(low + 1, high):
            if p in marks or p - low <= reach or high - p <= reach:
                assert price(low, high) <= cost([low, p, high])


@pytest.mark.parametrize(("norm", "better"), [("exact", True), ("group", False)])
def test_the_planner_prices_as_the_formula_says(norm, better):
    graph = step(norm)
    options = SerializeMinibatch(buffer_bytes=1500, most_units=1000)
    planner = Planner(make_steps(graph, batch_axis(graph), options.bytes_per), options)
    chosen = planner.refined(planner.choose())
    rest = estimate(graph).total - sum(planner.alone)
    moved = []
    for groups in (chosen, planner.moved(chosen)):
        grouped = place_groups(planner.steps, groups)
        moved.append(estimate(grouped).total)
        assert sum(p.moved for _, p in groups) + rest == moved[-1]
        assert len(grouped.groups) == sum(not p.alone for _, p in groups) > 1
    assert estimate(options(graph)).total <= moved[1] <= moved[0]
    assert (moved[1] < moved[0]) == better
    left = [planner.steps.nodes[k].name for _, p in groups for k in p.leaving]
    assert left
    assert not any(name in grouped.group_of for name in left)


@pytest.mark.parametrize("mode", MODES[1:])
@pytest.mark.parametrize("buffer", [600, 1500, 4000, 9000])
def test_exact_moves_no_more_than_greedy_on_a_network(mode, buffer):
    graph = step("group")
    both = [
        estimate(SerializeMinibatch(buffer_bytes=buffer, mode=mode, method=m)(graph)).total
        for m in ("exact", "greedy")
    ]
    assert both[0] <= both[1] <= estimate(graph).total


def test_better_modes_and_larger_buffers_move_less():
    graph = step("group")

    def cost(buffer: int, mode: str) -> int:
        return estimate(SerializeMinibatch(buffer_bytes=buffer, mode=mode)(graph)).total

    for buffer in (1500, 4000, 9000):
        assert cost(buffer, "best") <= cost(buffer, "mbs2") <= cost(buffer, "full")
        assert cost(buffer, "best") <= cost(buffer, "mbs1")
    assert cost(9000, "best") < cost(4000, "best") < cost(1500, "best")


def test_recomputing_saves_traffic_on_chip():
    stored, anew = (
        estimate(SerializeMinibatch(buffer_bytes=3000)(step("group", r))).total
        for r in ("none", "cheap")
    )
    assert anew < stored


def test_exact_norms_are_barriers_of_looped_groups():
    graph = step("exact")
    axis = batch_axis(graph)
    grouped = SerializeMinibatch(buffer_bytes=1500)(graph)
    for group in grouped.groups:
        kinds = {axis.kinds[n] for n in group.nodes}
        assert not group.sub_batch or "merges" not in kinds
    merged = SerializeMinibatch(buffer_bytes=1500, merge_moments=True)(graph)
    assert estimate(merged).total < estimate(grouped).total
    assert any(g.sub_batch and axis.kinds[n] == "merges" for g in merged.groups for n in g.nodes)


def chain(length: int) -> Graph:
    b = Builder("chain")
    x = b.input("x", (6, 10))
    for k in range(length):
        x = b.emit("map", [x], name=f"n{k}", exprs=("a + 1",), dtypes=("float",))
    return b.build([x])


def test_sub_batches_of_a_chain_are_even_and_as_large_as_fits():
    # two tensors of 20 bytes a sample are alive at once; 180 bytes hold 4 samples: 2 iterations
    grouped = SerializeMinibatch(buffer_bytes=180, mode="mbs2")(chain(4))
    (group,) = grouped.groups
    assert group.sub_batch == 3
    assert group.nodes == ("n0", "n1", "n2", "n3")
    assert group.resident == ("n0", "n1", "n2")
    assert estimate(grouped).total == 2 * 6 * 10 * 2  # x read, the last written


def test_without_its_branches_a_block_input_resides_only_for_layers_side_by_side():
    b = Builder("block")
    x = b.emit("map", [b.input("x", (8, 4, 8, 8))], exprs=("a + 1",), dtypes=("float",))
    w = [b.declare(f"w{k}", (4, 4, 1, 1), "parameter") for k in range(3)]
    window = {"strides": (1, 1), "pads": (0,) * 4, "dilations": (1, 1), "group": 1}
    first = b.emit("conv", [x, w[0]], name="first", **window)
    beside = b.emit("conv", [x, w[1]], name="beside", **window)
    after = b.emit(
        "conv", [b.emit("map", [first], exprs=("a",), dtypes=("float",)), w[2]], **window
    )
    both = b.emit("map", [beside, after], exprs=("a + b",), dtypes=("float",))
    late = b.emit("map", [x, both], exprs=("a + b",), dtypes=("float",))
    graph = b.build([late])

    def residing(mode: str) -> set[str]:
        groups = SerializeMinibatch(buffer_bytes=10**5, mode=mode, sub_batch=2)(graph).groups
        return {t for g in groups for t in g.resident}

    assert x in residing("mbs2")  # for all of its readers
    assert x not in residing("mbs1")  # the last of them waits while `after` runs
    assert first not in residing("mbs1")  # `beside` runs before it is read


def test_data_and_weight_gradients_share_the_gradient_they_read():
    grouped = SerializeMinibatch(buffer_bytes=10**6, mode="mbs1")(step("group"))
    residing = {t for g in grouped.groups for t in g.resident}
    pairs = [n for n in grouped.nodes if n.op == "conv_dx"]
    assert pairs
    for node in pairs:
        assert node.inputs[0] in residing, node.name


def test_a_pinned_sub_batch_is_taken_or_the_nodes_stay_alone():
    (group,) = SerializeMinibatch(buffer_bytes=180, sub_batch=2)(chain(3)).groups
    assert group.sub_batch == 2
    assert SerializeMinibatch(buffer_bytes=110, sub_batch=6, mode="mbs2")(chain(3)).groups == ()


def test_dear_starts_make_fewer_iterations():
    def starts(start_bytes: float) -> int:
        options = SerializeMinibatch(buffer_bytes=2500, start_bytes=start_bytes)
        grouped = options(step("group"))
        times = {
            n: -(-BATCH // g.sub_batch) for g in grouped.groups if g.sub_batch for n in g.nodes
        }
        return sum(times.get(n.name, 1) for n in grouped.nodes)

    assert starts(0.0) > starts(100.0) > starts(10.0**6) == len(step("group").nodes)


def test_waiting_for_the_vector_unit_has_its_price():
    """Forward runs that cannot go in halves become dearer than runs of fewer layers."""
    graph = step("group")
    forward = {n.name for n in graph.nodes if n.phase == "forward"}

    def sub_batches(idle: float) -> list[int]:
        options = SerializeMinibatch(buffer_bytes=1500, mode="mbs2", idle_per_byte=idle)
        groups = options(graph).groups
        return [g.sub_batch for g in groups if g.sub_batch and forward.issuperset(g.nodes)]

    assert min(sub_batches(0.0)) == 1
    assert min(sub_batches(1.0)) == 2


def test_work_that_waits_is_not_carried_past_a_barrier():
    b = Builder("waiting")
    x = b.input("x", (8, 4))

    def add_one(x: str, name: str) -> str:
        return b.emit("map", [x], name=name, exprs=("a + 1",), dtypes=("float",))

    early = add_one(x, "early")
    total = b.emit_all(
        "reduce", [x], name="total", kind="sum", exprs=("a",), axes=(0,), dtypes=("accum",)
    )[0]
    late = b.emit("map", [early, total], name="late", exprs=("a - b",), dtypes=("float",))
    graph = b.build([late])
    sunk = sink_nodes(graph)
    assert [n.name for n in sunk.nodes] == ["total", "early", "late"]
    values = {"x": np.arange(32.0).reshape(8, 4)}
    np.testing.assert_array_equal(interpret(sunk, values)[late], interpret(graph, values)[late])
    grouped = SerializeMinibatch(buffer_bytes=60)(graph)
    assert [g.nodes for g in grouped.groups] == [("early", "late")]


@pytest.mark.parametrize("recompute", ["none", "cheap"])
def test_levels_change_the_order_alone(recompute):
    graph = step("exact", recompute)
    found = by_levels(graph, batch_axis(graph))
    assert set(found.nodes) == set(graph.nodes)
    assert found.nodes != graph.nodes
    verify(found)
    before, after = (interpret(g, values(graph)) for g in (graph, found))
    for name in graph.needed:
        np.testing.assert_array_equal(after[name], before[name])


def test_levels_bring_branches_together():
    """Both layers that read a go in one sweep, and so do the gradients that make da."""
    b = Builder("branches")
    x = b.input("x", (8, 4))
    b.phase = "forward"

    def cheap(name: str, *reads: str) -> str:
        text = "+".join("abc"[: len(reads)])
        return b.emit("map", reads, name=name, exprs=(text,), dtypes=("float",))

    def whole(name: str, read: str) -> str:
        attrs = {"axes": (0,), "kind": "sum", "exprs": ("a",), "dtypes": ("accum",)}
        return b.emit("reduce", [read], name=name, **attrs)

    a = cheap("a", x)
    long = cheap("long2", cheap("long1", a), whole("s1", a))
    short = cheap("short", a)
    y = cheap("y", long, whole("s2", long), short)
    b.phase = "backward"
    dshort = cheap("dshort", y)
    dlong = cheap("dlong", y, whole("s3", y))
    out = cheap("da", dlong, dshort)
    found = by_levels(graph := b.build([out]), batch_axis(graph))
    names = [n.name for n in found.nodes]
    assert names == ["a", "long1", "s1", "short", "long2", "s2", "y", "s3", "dshort", "dlong", "da"]


@pytest.mark.parametrize(("wide", "waits"), [(4, True), (8, False)])
def test_a_layer_that_is_read_behind_a_barrier_waits_where_its_operand_is_small(wide, waits):
    b = Builder("late")
    x, w = b.input("x", (8, wide)), b.declare("w", (wide, 4), "parameter")
    y = b.input("y", (8, 4))
    made = b.emit("matmul", [x, w], name="layer")
    half = b.emit("map", [made], name="half", exprs=("a / 2",), dtypes=("float",))
    total = b.emit(
        "reduce", [y], name="total", kind="sum", exprs=("a",), axes=(0,), dtypes=("accum",)
    )
    z = b.emit("map", [half, y, total], name="z", exprs=("a + b - c",), dtypes=("float",))
    graph = b.build([z])
    found = by_levels(graph, batch_axis(graph))
    verify(found)
    late = ["total", "layer", "half", "z"]
    assert [n.name for n in found.nodes] == (late if waits else ["layer", "half", "total", "z"])


def test_nothing_fits_nothing_is_grouped():
    graph = chain(3)
    assert SerializeMinibatch(buffer_bytes=19, mode="mbs2")(graph) == graph
    assert SerializeMinibatch(mode="none")(graph) == graph


def test_ghost_batches_are_not_torn():
    grouped = SerializeMinibatch(buffer_bytes=6000)(step("ghost"))
    assert {g.sub_batch for g in grouped.groups} <= {0, 4}
    assert any(g.sub_batch == 4 for g in grouped.groups)


def test_margins_take_room():
    graph = step("group")
    axis = batch_axis(graph)
    plain, wide = (make_steps(graph, axis, ElementBytes(margins=m)) for m in (False, True))
    assert wide.stores["x"].room == plain.stores["x"].room * 100 / 64
    assert all(wide.stores[s].room >= plain.stores[s].room for s in plain.stores)


def test_what_a_padded_result_is_written_over_has_its_margins(monkeypatch):
    """A norm's gradient is padded for the convolution in front: so is the one it is made of, unless
    that takes much room, as around planes of 8 x 8."""
    graph = step("group")
    usual = make_steps(graph, batch_axis(graph), ElementBytes(margins=True))
    monkeypatch.setattr("ccnn.passes.steps.MOST_MARGIN", 3.0)
    steps = make_steps(graph, batch_axis(graph), ElementBytes(margins=True))
    over = 0
    for node in steps.nodes:
        store = steps.stores[steps.root[node.outputs[0]]]
        if node.op == "map" and node.phase == "backward" and store.name in steps.padded:
            read = [steps.stores[steps.root[i]] for i in node.inputs if i]
            at = steps.nodes.index(node)
            last = [s for s in read if s.readers[-1] == at and s.writer >= steps.backward]
            assert any(s.room == store.room for s in last)
            assert not any(usual.stores[s.name].room == store.room for s in last)
            over += 1
    assert over


def test_units_begin_where_one_tensor_leads_on():
    graph = step("group")
    steps = make_steps(graph, batch_axis(graph), ElementBytes())
    bounds = unit_bounds(steps)
    assert bounds[0] == 0
    assert bounds[-1] == len(steps.nodes)
    assert steps.backward in bounds
    (joined,) = (k for k, n in enumerate(steps.nodes) if n.name.startswith("add"))
    pooled = next(k for k, n in enumerate(steps.nodes) if n.op == "window_max")
    assert steps.nodes[pooled].outputs[0] in steps.nodes[joined].inputs
    assert pooled + 1 in bounds
    assert joined + 1 in bounds
    assert not any(pooled + 1 < b <= joined for b in bounds)  # not within the shortcut's block


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "mbs3"}, "mode 'mbs3' is none of"),
        ({"method": "random"}, "neither exact nor greedy"),
        ({"buffer_bytes": 10, "reserved_bytes": 10}, "10 of 10 bytes of buffer are reserved"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(GraphError, match=message):
        SerializeMinibatch(**options)


def maps(*exprs: str) -> Graph:
    """Maps one after the other, the last one reading the input as well."""
    b = Builder("maps")
    x = b.input("x", (BATCH, 16))
    y = x
    for i, expr in enumerate(exprs):
        inputs = [y, x] if "b" in expr else [y]
        y = b.emit("map", inputs, name=f"n{i}", exprs=(expr,), dtypes=("float",))
    return b.build([y])


def test_a_map_takes_no_room_beside_an_operand_that_nobody_reads_afterwards():
    sample = 16 * ElementBytes().element
    for exprs, apart, together in (
        (("a + 1", "a * 2", "a - 3"), 2, 1),  # x, read once, is never on chip
        (("a + 1", "a * 2", "a - b"), 3, 2),  # x stays to the end
    ):
        for in_place, room in ((False, apart), (True, together)):
            for samples in (1, 2, 4):
                grouped = SerializeMinibatch(
                    buffer_bytes=room * sample * samples, in_place=in_place, mode="mbs2"
                )(maps(*exprs))
                assert [g.sub_batch for g in grouped.groups] == [samples]
