"""Timing: closed formulas for simple programs, and that skipping iterations changes nothing."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from small_programs import (
    BUFFERS,
    MACHINE,
    TENSORS,
    pipe,
    program,
    release,
    signal,
    wait,
    window,
)

from ccnn.targets.program import (
    ZERO,
    Affine,
    Drain,
    Exec,
    Extent,
    Load,
    LoadH,
    LoadV,
    Loop,
    Map,
    Random,
    Reduce,
    Shift,
    Slot,
    Store,
    Token,
    View,
    var,
)
from ccnn.targets.simulator import SimulationError, simulate
from ccnn.targets.simulator.channel import Channel
from ccnn.targets.simulator.cost import Facts, instruction_cost


def waves(count: int, m: int, k: int, n: int) -> list:
    """`count` waves of one GEMM, accumulated, then drained: the usual tokens."""
    m_, k_, n_ = Extent(m), Extent(k), Extent(n)
    body = (
        wait("feed_v", "v.free"),
        LoadV(0, Slot("v"), window("b", k_, n_)),
        signal("feed_v", "v.full"),
        wait("feed_h", "h.free"),
        LoadH(0, Slot("h"), window("b", m_, k_)),
        signal("feed_h", "h.full"),
        wait("shift", "v.full"),
        wait("shift", "pe.free"),
        Shift(0, Slot("pe"), Slot("v"), k_, n_),
        release("shift", "v.free"),
        signal("shift", "pe.full"),
        wait("array", "pe.full"),
        wait("array", "h.full"),
        Exec(0, Slot("acc"), Slot("h"), Slot("pe"), m_, k_, n_, var("i")),
        release("array", "h.free"),
        release("array", "pe.free"),
    )
    return [
        wait("array", "acc.free"),
        Loop("i", count, body),
        signal("array", "acc.full"),
        wait("drain", "acc.full"),
        Drain(0, window("a", m_, n_), Slot("acc")),
        release("drain", "acc.free"),
    ]


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("weight_buffers", [1, 2])
@pytest.mark.parametrize(
    ("count", "m", "k", "n"), [(1, 8, 4, 4), (5, 8, 4, 4), (100, 8, 3, 4), (9, 8, 4, 1)]
)
def test_weight_stationary_formula(count, m, k, n, weight_buffers, fast):
    """Feeding is never slower than the array (k <= m), so only the shift-in can show.

    Two registers: the first k to fill LBUF_V and k to shift in are seen (or the m to fill LBUF_H),
    then m a wave.  One register: each wave waits for its own shift-in.  Then the skew and drain.
    """
    tokens = pipe("v", 2) + pipe("h", 2) + pipe("pe", weight_buffers) + pipe("acc", 1)
    fill = max(2 * k, m)
    middle = (count - 1) * (m if weight_buffers == 2 else m + k)
    want = fill + middle + m + (k + n - 2) + m
    trace = simulate(program(waves(count, m, k, n), tokens=tokens), MACHINE, fast=fast)
    assert trace.cycles == want
    assert trace.macs == count * m * k * n
    assert trace.pe_utilisation == pytest.approx(trace.macs / (want * 16))
    assert dict(trace.opcodes)["ExecGEMM"] == count
    busy = {e.name: e.busy_cycles for e in trace.engines}
    assert busy["array"] == count * m
    stalls = {e.name: dict(e.stalls) for e in trace.engines}
    if weight_buffers == 1:
        assert stalls["array"]["shift"] >= (count - 1) * k
    assert trace.lbuf_bytes == count * 2 * (2 * k * n + 2 * m * k)
    assert trace.counts.acc_bytes == 4 * m * n * (2 * count - 1 + 1)


def copy_body(elements: int, row: Affine, compute: int = 0) -> tuple:
    """Load `elements` f32, compute on them, store them as bf16."""
    dims = ((Extent(1), 64), (Extent(elements), 1))
    block = View("a", dims)
    flat = View("a", ((Extent(compute), 1),)) if compute else None
    vector = (Map(1, flat, (flat,), ("s0",)),) if flat else ()
    return (
        wait("load", "a.free"),
        Load(0, block, "x", (row, ZERO), (1, 1)),
        signal("load", "a.full"),
        wait("vector", "a.full"),
        *vector,
        signal("vector", "o.full"),
        wait("store", "o.full"),
        Store(2, "y", (row, ZERO), (1, 1), block),
        release("store", "a.free"),
    )


@pytest.mark.parametrize("fast", [True, False])
def test_dram_bound_copy(fast):
    """Loads and stores share the channel; with both waiting it is never idle."""
    tokens = (*pipe("a", 2), Token("o.full"))
    body = copy_body(60, var("i"))
    trace = simulate(program([Loop("i", 64, body)], tokens=tokens), MACHINE, fast=fast)
    assert trace.dram_read_bytes == 64 * 240
    assert trace.dram_write_bytes == 64 * 120
    # 80 + 40 cycles each; one slot is loaded while the other is stored, but at the start the
    # channel waits for the first load's latency, at the end for the last store's
    busy = 64 * (80 + 40)
    assert busy + 7 <= trace.cycles <= busy + 64 * 2 * 7
    assert {(t.name, t.read_bytes, t.write_bytes) for t in trace.tensors} == {
        ("x", 64 * 240, 0),
        ("y", 0, 64 * 120),
    }


def test_compute_bound_pipeline_hides_dram():
    """With two slots and a vector unit slower than the channel, only the ends show."""
    tokens = (*pipe("a", 2), Token("o.full"))
    body = copy_body(60, var("i"), compute=1200)
    trace = simulate(program([Loop("i", 64, body)], tokens=tokens), MACHINE)
    step = 2 + 1200 // 4
    assert trace.cycles == (80 + 7) + 64 * step + (40 + 7)


def test_clipping_moves_only_what_is_inside():
    dims = ((Extent(4), 64), (Extent(64), 1))
    facts = Facts(MACHINE, {t.name: t for t in TENSORS}, {b.name: b for b in BUFFERS})
    ld = Load(0, View("a", dims), "x", (Affine(-3), Affine(-4)), (1, 2))
    cost = instruction_cost(facts, ld, {})
    inside = 1 * len([i for i in range(64) if 0 <= -4 + 2 * i < 64])
    assert cost.dram_read == inside * 4
    assert cost.occupancy == math.ceil(inside * 4 / 3)
    assert cost.gbuf_write == 4 * 64 * 4
    away = instruction_cost(facts, replace(ld, start=(Affine(64), ZERO)), {})
    assert (away.occupancy, away.latency, away.dram_read) == (0, 0, 0)


def test_vector_costs():
    facts = Facts(MACHINE, {}, {b.name: b for b in BUFFERS})
    dims = ((Extent(3), 10), (Extent(10), 1))
    row = View("b", ((Extent(3), 0), (Extent(10), 1)))
    block = View("a", dims)
    cost = instruction_cost(facts, Map(0, block, (block, row), ("s0", "s1", "div", "exp")), {})
    assert (cost.occupancy, cost.latency) == (2 + 8 * 8, 0)
    assert (cost.gbuf_read, cost.gbuf_write) == (30 * 4 + 10 * 2, 30 * 4)
    dst = View("a", ((Extent(3), 0), (Extent(10), 1)))
    red = Reduce(0, "sum", (0,), dst, (block,), ("s0",), accumulate=Affine(1))
    cost = instruction_cost(facts, red, {})
    assert (cost.occupancy, cost.latency, cost.vector_ops) == (2 + 8, 2, 30)
    assert (cost.gbuf_read, cost.gbuf_write) == (30 * 4 + 10 * 4, 10 * 4)
    assert instruction_cost(facts, Random(0, block, 0, ZERO), {}).occupancy == 2 + 8 * 4


def test_drain_that_reads_back_takes_twice_as_long():
    facts = Facts(MACHINE, {}, {b.name: b for b in BUFFERS})
    one = Drain(0, window("b", Extent(8), Extent(3)), Slot("acc"))
    again = replace(one, accumulate=Affine(1), bias=window("a", Extent(1), Extent(3)))
    assert instruction_cost(facts, one, {}).occupancy == 8
    cost = instruction_cost(facts, again, {})
    assert (cost.occupancy, cost.gbuf_write, cost.gbuf_read) == (16, 48, 48 + 12)


def test_channel_serves_older_requests_first_and_fills_gaps():
    channel = Channel(0)
    assert channel.transfer(10, 5, 0) == 15
    assert channel.transfer(100, 10, 0) == 110
    # ready at 2: takes 2-10, then 15-17 behind the older request
    assert channel.transfer(2, 10, 0) == 17
    assert channel.transfer(0, 2, 0) == 2
    assert channel.transfer(0, 90, 0) == 117
    assert channel.gaps == []
    assert channel.transfer(120, 0, 0) == 120


def test_barrier_separates_kernels_and_is_booked_to_the_next_one():
    block = View("a", ((Extent(8), 1),))
    one = [Map(0, block, (block,), ("s0",))]
    two = [Map(1, block, (block,), ("s0",))]
    trace = simulate(program(one, two), MACHINE)
    assert trace.cycles == 4 + 5 + 4
    assert [(k.start, k.end) for k in trace.kernels] == [(0, 4), (9, 13)]
    assert {layer.name: layer.cycles for layer in trace.layers} == {"n0": 4, "n1": 9}


def test_energy_is_counts_times_table():
    trace = simulate(program(waves(3, 8, 4, 4), tokens=pipe("v", 2) + pipe("h", 2) + pipe("pe", 2)
                             + pipe("acc", 1)), MACHINE)  # fmt: skip
    table = {a: (n, pj) for a, n, pj in trace.energy}
    assert table["static_cycle"][0] == trace.cycles
    assert table["mac_16bit"] == (3 * 128, 3 * 128 * 1.0)
    assert table["gbuf_byte"][0] == trace.gbuf_bytes
    assert trace.energy_pj == pytest.approx(sum(pj for _, pj in table.values()))
    assert sum(layer.counts.energy_pj for layer in trace.layers) == pytest.approx(trace.energy_pj)
    assert trace.seconds == pytest.approx(trace.cycles / 1.073741824e9)


def test_events_make_a_timeline():
    tokens = (*pipe("a", 2), Token("o.full"))
    p = program([Loop("i", 20, copy_body(60, var("i"), 8))], tokens=tokens)
    trace = simulate(p, MACHINE, events=True)
    assert len(trace.events) == 60
    assert max(e.end for e in trace.events) == trace.cycles
    assert len(simulate(p, MACHINE, events=True, max_events=7).events) == 7
    assert replace(trace, events=()) == simulate(p, MACHINE)


def test_errors():
    block = View("a", ((Extent(8), 1),))
    ok = Map(0, block, (block,), ("s0",))
    cases = {
        "nothing before it": [wait("load", "t"), ok],
        "no token 'u'": [wait("load", "u"), ok],
        "no tensor 'q'": [Load(0, block, "q", (ZERO,), (1,))],
        "its rank is 2": [Load(0, block, "x", (ZERO,), (1,))],
        "no buffer 'q'": [Map(0, View("q", ((Extent(8), 1),)), (), (1.0,))],
        "used by an outer loop": [Loop("i", 2, (Loop("i", 2, (ok,)),))],
        "used outside its loop": [Map(0, View("a", ((Extent(8, var("z")), 1),)), (), (1.0,))],
        "serves node 9 of 4": [replace(ok, node=9)],
    }
    for message, body in cases.items():
        with pytest.raises(SimulationError, match=message):
            simulate(program(body, tokens=(Token("t"),)), MACHINE)
    poor = replace(MACHINE, energy=MACHINE.energy[:1])
    with pytest.raises(SimulationError, match="has no energy for 'gbuf_byte'"):
        simulate(program([ok]), poor)


def test_long_loops_are_skipped_over():
    """10^12 iterations: only arithmetic can finish."""
    tokens = (*pipe("a", 2), Token("o.full"))
    inner = copy_body(60, ZERO, compute=1200)
    body = [Loop("i", 10**6, (Loop("j", 10**6, inner),))]
    trace = simulate(program(body, tokens=tokens), MACHINE)
    assert trace.cycles == 87 + 10**12 * 302 + 47
