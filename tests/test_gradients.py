"""Interleaved gradients: the schedule itself cycle by cycle, and what it costs beside others."""

from __future__ import annotations

import numpy as np
import pytest
from gradient_model import (
    INTERLEAVED,
    SCHEDULES,
    Layer,
    gradient_cost,
)
from hypothesis import given, settings
from hypothesis import strategies as st


def interleave(dy: np.ndarray, w: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """(dX, dW, cycles) of one fold, a register at a time; PE (k, m) holds W[k, m].

    dY[p, k] enters row k at cycle 2p + k and is held for two; down column m go, in turns, the sum
    of dX[p, m] (even) and X[p, m] (odd), one PE a cycle.
    """
    (p_total, rows), cols = dy.shape, w.shape[1]
    dx, dw = np.zeros((p_total, cols)), np.zeros((rows, cols))
    down: dict[tuple[int, int], tuple[str, int, float]] = {}
    done = cycle = 0
    while done < p_total * (cols + cols):
        entering: dict[tuple[int, int], tuple[str, int, float]] = {}
        for m in range(cols):
            step, odd = divmod(cycle - m, 2)
            if 0 <= step < p_total:
                entering[0, m] = ("x", step, x[step, m]) if odd else ("dx", step, 0.0)
        passed: dict[tuple[int, int], tuple[str, int, float]] = {}
        for (k, m), (kind, p, value) in {**down, **entering}.items():
            # the dY that row k holds in column m at this cycle must be that of the same p
            assert (cycle - k - m) // 2 == p
            if kind == "dx":
                value += w[k, m] * dy[p, k]
            else:
                dw[k, m] += value * dy[p, k]
            if k + 1 < rows:
                assert (k + 1, m) not in passed
                passed[k + 1, m] = (kind, p, value)
            else:
                done += 1
                if kind == "dx":
                    dx[p, m] = value
        down = passed
        cycle += 1
    return dx, dw, cycle


@pytest.mark.parametrize(("p", "side"), [(1, 4), (3, 4), (8, 4), (5, 7), (16, 8)])
def test_the_interleaved_schedule_computes_both_gradients(p: int, side: int):
    """In 2P + 2S - 2 cycles once the weights are there; never two values on a link."""
    rng = np.random.default_rng(p * side)
    dy, w, x = (rng.standard_normal(s) for s in ((p, side), (side, side), (p, side)))
    dx, dw, cycles = interleave(dy, w, x)
    np.testing.assert_allclose(dx, dy @ w, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(dw, dy.T @ x, rtol=1e-12, atol=1e-12)
    assert cycles == 2 * p + 2 * side - 2
    # the cost adds the loading of W and the draining of dW
    cost = gradient_cost(Layer(p, side, side), side, side, INTERLEAVED)
    assert cost.cycles == cycles + side + side


# cycles, words of each schedule over the interleaved one's: K = M = 1024 on 128 x 128, computed
# separately from the same formulas
TABLE = {
    1: ((1.98, 1.00), (1.45, 1.00), (1.45, 1.00), (0.91, 0.99)),
    32: ((1.85, 1.08), (1.32, 1.01), (1.32, 0.94), (0.78, 0.86)),
    128: ((1.59, 1.17), (1.07, 1.02), (1.07, 0.87), (0.55, 0.72)),
    512: ((1.27, 1.23), (1.13, 1.37), (1.13, 1.00), (1.00, 1.14)),
    4096: ((1.04, 1.25), (1.18, 1.52), (1.18, 1.06), (1.31, 1.33)),
    16384: ((1.01, 1.26), (1.18, 1.54), (1.18, 1.06), (1.36, 1.35)),
}


@pytest.mark.parametrize("p", TABLE)
def test_ratios_are_those_of_the_reference(p: int):
    layer = Layer(p, 1024, 1024)
    pair = gradient_cost(layer, 128, 128, INTERLEAVED)
    for name, (cycles, words) in zip(("ws+os", "ws+ws", "os+os", "os+ws"), TABLE[p], strict=True):
        cost = gradient_cost(layer, 128, 128, name)
        assert cost.cycles / pair.cycles == pytest.approx(cycles, abs=0.006), name
        assert cost.words / pair.words == pytest.approx(words, abs=0.006), name


def test_small_batches_keep_results_and_large_ones_interleave():
    """Streaming P is the worse choice where P is small against K."""

    def best(p: int) -> str:
        costs = [gradient_cost(Layer(p, 1024, 1024), 128, 128, name) for name in SCHEDULES]
        return min(costs, key=lambda cost: (cost.cycles, cost.words)).schedule

    assert best(64) == "os+ws"
    assert best(4096) == INTERLEAVED


@settings(max_examples=50, deadline=None, derandomize=True)
@given(p=st.integers(1, 5000), k=st.integers(1, 600), m=st.integers(1, 600))
def test_no_schedule_is_below_the_floor(p: int, k: int, m: int):
    layer = Layer(p, k, m)
    costs = [gradient_cost(layer, 32, 32, name) for name in SCHEDULES]
    for cost in costs:
        assert cost.cycles * 32 * 32 >= 2 * p * k * m
        # dY, W and X come in, dX and dW go out
        assert cost.words >= p * k + 2 * k * m + 2 * p * m


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="P=0"):
        Layer(0, 1, 1)
    with pytest.raises(ValueError, match="no schedule 'both'; there are ws"):
        gradient_cost(Layer(1, 1, 1), 4, 4, "both")
