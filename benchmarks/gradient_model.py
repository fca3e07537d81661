"""Both gradients of a layer on one array in closed formulas, to hold published figures against.

What ccnn compiles is not chosen by these: each gradient takes the flow the mapper finds fastest,
and `--interleave auto` keeps both apart or together by executing them.

dX[P, M] = dY[P, K] @ W[K, M] and dW[K, M] = dY^T[K, P] @ X[P, M] share dY.  With c(n, s) folds of
side s in n, an array of r rows and q columns, and a fold of T steps taking T + 2r + q - 2 cycles
(load, stream, skew, no overlap between folds):

    dX held weights   c(K, r) c(M, q) folds, T = P      held results   c(P, r) c(M, q), T = K
    dW held results   c(K, r) c(M, q) folds, T = P      held inputs    c(P, r) c(M, q), T = K
    interleaved       c(K, r) c(M, q) folds, T = 2 P, and r cycles to drain the last dW

InterGrad (Unnikrishnan & Parhi, TCAS-I 2023) interleaves held weights with held results: a PE has
the weight W[k, m] and the sum dW[k, m], and dY[p, k] meets both in turns, so it is read once.
Words are those over the array's edges, partial sums of dX or dW read back and written included.
The formulas are worked out from those dataflows, not the paper's printed ones, and `Counting` says
what else may have been counted.
"""

from __future__ import annotations

from dataclasses import dataclass

INTERLEAVED = "interleaved"
SCHEDULES = {
    "ws+os": ("ws", "os"),
    "ws+ws": ("ws", "ws"),
    "os+os": ("os", "os"),
    "os+ws": ("os", "ws"),
    INTERLEAVED: ("pair", "pair"),
}
"""Name: dataflow of dX, of dW."""


@dataclass(frozen=True)
class Layer:
    """Output pixels P of the batch, output channels K, lowered inputs M (channels times taps)."""

    p: int
    k: int
    m: int

    def __post_init__(self) -> None:
        if min(self.p, self.k, self.m) < 1:
            raise ValueError(
                f"a layer of P={self.p}, K={self.k}, M={self.m}; each must be at least 1"
            )


@dataclass(frozen=True)
class Counting:
    """What is counted besides streaming."""

    drained: bool = True
    """Held results take a side's cycles to leave the array, before the next fold."""
    overlapped: bool = False
    """Loads, drains and skew hide behind other folds: a fold of T steps takes max(T, side)."""
    accumulated: bool = False
    """Partial sums are added below the array and cross its edge once, not read back."""


PLAIN = Counting()


@dataclass(frozen=True)
class GradientCost:
    """What both gradients take under a schedule, or one GEMM."""

    schedule: str
    cycles: int
    words: int
    """Over the array's edges."""


def held_weights(
    t: int, k: int, m: int, rows: int, cols: int, counting: Counting = PLAIN
) -> tuple[int, int]:
    """(cycles, words) of t x k times k x m with blocks of the k x m held."""
    folds, deep = -(-k // rows) * -(-m // cols), -(-k // rows)
    sums = deep if counting.accumulated else 2 * deep - 1
    return folds_cycles(folds, t, rows, cols, counting), k * m + t * k * -(
        -m // cols
    ) + t * m * sums


def held_results(
    t: int, k: int, m: int, rows: int, cols: int, counting: Counting = PLAIN
) -> tuple[int, int]:
    """(cycles, words) of k x t times t x m with blocks of the k x m result held."""
    down, across = -(-k // rows), -(-m // cols)
    unloaded = 0 if counting.drained or counting.overlapped else down * across * rows
    cycles = folds_cycles(down * across, t, rows, cols, counting) - unloaded
    return cycles, t * k * across + t * m * down + k * m


def folds_cycles(folds: int, steps: int, rows: int, cols: int, counting: Counting) -> int:
    """Cycles of folds of so many steps each."""
    skew = 2 * rows + cols - 2
    if counting.overlapped:
        return folds * max(steps, rows) + skew
    return folds * (steps + skew)


def gradient_cost(
    layer: Layer, rows: int, cols: int, schedule: str, counting: Counting = PLAIN
) -> GradientCost:
    """Cycles and words of both gradients; the module's formulas."""
    if schedule not in SCHEDULES:
        raise ValueError(f"no schedule '{schedule}'; there are {', '.join(SCHEDULES)}")
    p, k, m = layer.p, layer.k, layer.m
    array = rows, cols, counting
    flow_x, flow_w = SCHEDULES[schedule]
    if flow_x == "pair":
        down, across = -(-k // rows), -(-m // cols)
        cycles = folds_cycles(down * across, 2 * p, *array) + rows
        # dW leaves with the sums of each fold, and dY comes once for both
        words = held_weights(p, k, m, *array)[1] + p * m * down + k * m
        return GradientCost(schedule, cycles, words)
    x = held_weights(p, k, m, *array) if flow_x == "ws" else held_results(k, p, m, *array)
    w = held_results(p, k, m, *array) if flow_w == "os" else held_weights(k, p, m, *array)
    return GradientCost(schedule, x[0] + w[0], x[1] + w[1])
