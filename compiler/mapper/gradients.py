"""Both gradients of a layer on one array: one after the other, or interleaved, by cost.

dX[P, M] = dY[P, K] @ W[K, M] and dW[K, M] = dY^T[K, P] @ X[P, M] share dY.  With c(n, s) folds of
side s in n, an array of r rows and q columns, and a fold of T steps taking T + 2r + q - 2 cycles
(load, stream, skew, no overlap between folds):

    dX held weights   c(K, r) c(M, q) folds, T = P      held results   c(P, r) c(M, q), T = K
    dW held results   c(K, r) c(M, q) folds, T = P      held inputs    c(P, r) c(M, q), T = K
    interleaved       c(K, r) c(M, q) folds, T = 2 P, and r cycles to drain the last dW

InterGrad (Unnikrishnan & Parhi, TCAS-I 2023) interleaves held weights with held results: a PE has
the weight W[k, m] and the sum dW[k, m], and dY[p, k] meets both in turns, so it is read once.
Words are those over the array's edges, partial sums of dX or dW read back and written included.
The formulas are worked out from those dataflows, not the paper's printed ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from ccnn.compiler.mapping import MappingError
from ccnn.targets.machine import Machine

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
            raise MappingError(
                f"a layer of P={self.p}, K={self.k}, M={self.m}; each must be at least 1"
            )


@dataclass(frozen=True)
class GradientCost:
    """What both gradients take under a schedule."""

    schedule: str
    cycles: int
    words: int
    """Over the array's edges."""


def gradient_cost(layer: Layer, rows: int, cols: int, schedule: str) -> GradientCost:
    """Cycles and words of both gradients; the module's formulas."""
    if schedule not in SCHEDULES:
        raise MappingError(f"no schedule '{schedule}'; there are {', '.join(SCHEDULES)}")
    p, k, m = layer.p, layer.k, layer.m
    across, by_k, by_p = -(-m // cols), -(-k // rows), -(-p // rows)
    fold = 2 * rows + cols - 2
    dy = p * k * across
    kept = by_k * across * (p + fold), k * m + dy + p * m * (2 * by_k - 1)
    streamed = by_p * across * (k + fold)
    flow_x, flow_w = SCHEDULES[schedule]
    if flow_x == "pair":
        # dW leaves with the sums of each fold, and dY comes once for both
        words = kept[1] + p * m * by_k + k * m
        return GradientCost(schedule, by_k * across * (2 * p + fold) + rows, words)
    x = kept if flow_x == "ws" else (streamed, dy + k * m * by_p + p * m)
    if flow_w == "os":
        w = kept[0], dy + p * m * by_k + k * m
    else:
        w = streamed, p * m + dy + k * m * (2 * by_p - 1)
    return GradientCost(schedule, x[0] + w[0], x[1] + w[1])


def usable(machine: Machine) -> tuple[str, ...]:
    """The schedules whose dataflows the machine has modes for."""
    known = {mode.dataflow for mode in machine.array_modes}
    return tuple(name for name, flows in SCHEDULES.items() if known.issuperset(flows))


def best_schedule(layer: Layer, machine: Machine) -> GradientCost:
    """The schedule of fewest cycles on one array, then of fewest words."""
    costs = [gradient_cost(layer, machine.rows, machine.cols, s) for s in usable(machine)]
    return min(costs, key=lambda cost: (cost.cycles, cost.words))
