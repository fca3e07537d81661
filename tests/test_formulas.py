"""Cycles of single GEMMs against closed formulas, written here from M, N and K."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ccnn.compiler.codegen import generate, make_context
from ccnn.compiler.mapping import Mapping, Tiling
from ccnn.passes.graph import Builder
from ccnn.targets.formulas import is_cycles, os_cycles, wave_cycles, ws_cycles
from ccnn.targets.machine import Machine, load_machine
from ccnn.targets.simulator import Trace, simulate

MEASURED = {  # M, N, K: WS, OS, IS cycles that SCALE-Sim 3.0.0 printed for a 128 x 128 array
    (128, 128, 128): (509, 381, 509),
    (256, 256, 256): (2551, 2039, 2551),
    (3136, 64, 576): (17589, 20749, 55749),
    (49, 2048, 512): (27583, 12255, 9719),
    (1000, 64, 2048): (22111, 18415, 57087),
    (64, 64, 64): (445, 317, 445),
    (100, 30, 200): (963, 453, 823),
}


@pytest.mark.parametrize("gemm", MEASURED)
def test_scale_sim(gemm):
    found = tuple(f(*gemm, 128, 128) for f in (ws_cycles, os_cycles, is_cycles))
    assert found == MEASURED[gemm]


def with_fast_memory(name: str) -> Machine:
    """A shipped machine whose DRAM moves any block in one cycle: what is left is the array's."""
    return replace(load_machine(name), dram_bandwidth_gib_s=1e12, dram_latency_cycles=0)


def simulated(m: int, n: int, k: int, machine: Machine) -> Trace:
    """One matmul whose operands fit the global buffer, through the code generator."""
    b = Builder("gemm")
    y = b.emit("matmul", [b.input("a", (m, k)), b.input("b", (k, n))], trans_a=False, trans_b=False)
    context = make_context(b.build([y]), machine, "bfloat16")
    tiling = Tiling(("m", "n", "k"), (("m", m), ("n", n), ("k", k)), 1)
    return simulate(generate(context, Mapping(machine.name, {y: tiling})), machine)


@pytest.mark.parametrize("gemm", [
    (128, 128, 128), (256, 128, 128), (200, 128, 128), (5, 7, 9), (256, 128, 1024), (64, 100, 1000),
    (256, 1024, 512), (768, 256, 384), (1024, 512, 512), (256, 130, 300), (1, 128, 512),
])  # fmt: skip
@pytest.mark.parametrize("name", ["wavecore", "wavecore-base"])
def test_weight_stationary(name, gemm):
    """Fill, a wave a step, skew and drain; the shift-in is hidden, or is not.

    All waves of these GEMMs are equally long (M is at most 256 or a multiple), so:

    fill    the first k0 rows of weights go to LBUF_V (k0 cycles) and into the array (k0 more);
            the first m rows go to LBUF_H meanwhile (m cycles)
    waves   all steps but the last take max(m, k of the next step), without the second
            weight register m + k of the next step; the last takes m
    skew    k + n - 2 cycles until the last result of the last wave is out
    drain   m cycles to the global buffer
    """
    machine = with_fast_memory(name)
    m_total, n_total, k_total = gemm
    m = min(m_total, 256)
    assert m_total % m == 0
    steps = [128] * (k_total // 128) + ([k_total % 128] if k_total % 128 else [])
    blocks = (m_total // m) * -(-n_total // 128)
    order = steps * blocks
    fill = 1 + max(m, 1 + 2 * steps[0])  # a is loaded first, b one cycle later
    hidden = name == "wavecore"
    waves = sum(max(m, k) if hidden else m + k for k in order[1:]) + m
    n_last = n_total % 128 or 128
    want = fill + waves + (steps[-1] + n_last - 2) + m + 1
    trace = simulated(*gemm, machine)
    assert trace.cycles == want
    assert trace.macs == m_total * n_total * k_total
    # the middle part is the formula of the papers, apart from the first shift-in
    longest = max(m, steps[0]) if hidden else m + steps[0]
    assert waves == wave_cycles(*gemm, 128, 128, 256, hidden) - longest + m


def test_two_accumulators_do_not_hide_the_drain_of_single_waves():
    """K of one step: a block waits until the one before the last has left its accumulators.

    A wave of 256 rows needs 256 cycles, its last result is out 254 later and the drain takes 256,
    so two blocks take 766 cycles, not 512.  From two steps (512 cycles a block) on, nothing waits.
    """
    blocks = 16
    trace = simulated(1024, 512, 128, with_fast_memory("wavecore"))
    first = 1 + 1 + 128 + 128
    last = first + (blocks // 2 - 1) * (256 + 254 + 256) + 256
    assert trace.cycles == last + 256 + 254 + 256 + 1
    stalls = {e.name: dict(e.stalls) for e in trace.engines}
    assert stalls["array"]["drain"] == (blocks // 2 - 1) * (766 - 512)


def test_wave_formula_gives_the_published_loss():
    """Without the second register a long GEMM of full waves loses a third of the array's time."""
    waves = [wave_cycles(25600, 1280, 1280, 128, 128, 256, hidden) for hidden in (True, False)]
    assert waves[1] * 2 == waves[0] * 3
    assert waves[0] * 128 * 128 == 25600 * 1280 * 1280
