"""What the matrix products of a group read again because the room for their tiles is small.

A product of M x N results streams two operands of `a` and `b` bytes (0: on chip) through a room of
R bytes, half of it for what is held, half for partial sums.  It holds strips of one operand, at
least as wide as the array, while the other passes by, or blocks of results:

    strips of b    (max(ceil(b / (R / 2)), ceil(N width accum / (R / 2))) - 1) a
    strips of a    (max(ceil(a / (R / 2)), ceil(M width accum / (R / 2))) - 1) b
    x by y blocks  (x - 1) a + (y - 1) b,  with M N accum / (x y) <= R / 2

The least of those that fit is read beyond the first time, in each iteration of the group.  This
is a rule of thumb for choosing groups; what a program moves is up to its tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from ccnn.passes.graph import Graph, Node
from ccnn.passes.steps import ARRAY_OPS, Steps

_BLOCKS = np.array([1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64], np.float64)[:, None]


@dataclass(frozen=True)
class TileRoom:
    """The part of the room that a group leaves which the tiles of one node get, and the array."""

    share: float = 0.3
    width: int = 128
    """Columns of the array: strips are no narrower."""
    accum: int = 4
    """Bytes of a partial sum."""


class Products:
    """The matrix products of a step as arrays, by position."""

    def __init__(self, steps: Steps, tiles: TileRoom) -> None:
        self.tiles = tiles
        number = {s: k for k, s in enumerate(steps.stores)}
        stores = list(steps.stores.values())
        found = [(k, n) for k, n in enumerate(steps.nodes) if n.op in ARRAY_OPS]
        self.at = np.array([k for k, _ in found], np.int64)
        rows = [_operands(n) for _, n in found]
        self.left, self.right = (
            np.array([number[steps.root[names[side]]] for names in rows], np.int64)
            for side in (0, 1)
        )
        self.size = np.array([s.size for s in stores], np.float64)
        self.batched = np.array([s.batched for s in stores], bool)
        sizes = [_result(steps.graph, n) for _, n in found]
        self.m, self.n, self.results = np.array(sizes, np.float64).reshape(-1, 3).T
        self.loops = np.array([steps.root[n.outputs[0]] in steps.axis.rows for _, n in found], bool)
        """Whether M shrinks with the sub-batch."""

    def again(
        self,
        low: int,
        high: int,
        on_chip: np.ndarray,
        rounds: int,
        left: float,
        without: Sequence[int] = (),
    ) -> float:
        """Bytes that products at positions low … high - 1 read again in all iterations.

        on_chip: numbers of the stores that are resident or kept; left: bytes the group leaves;
        without: positions of nodes that are not in the group.
        """
        here = np.arange(*np.searchsorted(self.at, (low, high)))
        if without:
            gone = set(without)
            here = here[[k not in gone for k in self.at[here].tolist()]]
        m, n, results = self.m[here], self.n[here], self.results[here]
        if not len(m):
            return 0.0
        there = np.zeros(len(self.size), bool)
        there[on_chip] = True
        part = np.where(self.batched, self.size / rounds, self.size)
        part[there] = 0.0
        a, b = part[self.left[here]], part[self.right[here]]
        shrunk = np.where(self.loops[here], 1 / rounds, 1.0)
        m, results = m * shrunk, results * shrunk
        return rounds * float(self._least(m, n, results, a, b, left).sum())

    def _least(
        self,
        m: np.ndarray,
        n: np.ndarray,
        results: np.ndarray,
        a: np.ndarray,
        b: np.ndarray,
        left: float,
    ) -> np.ndarray:
        t = self.tiles
        half = max(1.0, left * t.share / 2)
        strip = t.width * t.accum / half

        def strips(held: np.ndarray, size: np.ndarray, other: np.ndarray) -> np.ndarray:
            parts = np.maximum(np.ceil(held / half), np.ceil(size * strip))
            fits = held * np.minimum(1.0, t.width / np.maximum(size, 1.0)) <= half
            return np.where(fits, (np.maximum(parts, 1.0) - 1) * other, np.inf)

        across = np.minimum(_BLOCKS, np.ceil(n / t.width))
        down = np.maximum(np.ceil(results * t.accum / half / across), 1.0)
        blocks = ((across - 1) * a + (down - 1) * b).min(axis=0)
        return np.minimum(np.minimum(strips(b, n, a), strips(a, m, b)), blocks)


def _operands(node: Node) -> tuple[str, str]:
    """The operand that has M and the one that has N."""
    first, second = node.inputs[:2]
    return (second, first) if node.op == "conv_dw" else (first, second)


def _result(graph: Graph, node: Node) -> tuple[float, float, float]:
    """M and N of one of the node's products, and all its results."""
    shape = graph[node.outputs[0]].shape
    size = prod(shape)
    groups = node.attr("group") if node.op != "matmul" else 1
    if node.op == "matmul":
        return shape[-2], shape[-1], size
    if node.op == "conv_dw":
        return shape[0] / groups, size / shape[0], size
    return size / shape[1], shape[1] / groups, size
