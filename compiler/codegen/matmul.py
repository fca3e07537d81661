"""result[…, M, N] = a[…, M, K] @ b[…, K, N] (+ bias[N]), either operand stored transposed."""

from __future__ import annotations

from itertools import product
from math import prod

from ccnn.compiler.codegen.gemm import Gemm, Product, Start, plain
from ccnn.compiler.codegen.nest import Level, Position, Tile, named
from ccnn.compiler.codegen.place import Held
from ccnn.targets.program import ZERO, Affine, Dim


class MatMul(Gemm):
    """A batched matrix product; b without batch dims serves every batch."""

    def setup(self) -> None:
        a, b = self.shapes[:2]
        self.trans_a = bool(self.node.attr("trans_a", False))
        self.trans_b = bool(self.node.attr("trans_b", False))
        out = self.graph[self.out].shape
        self.batch = out[:-2]
        self.shared = len(b) == 2 and len(a) > 2
        m, n = out[-2:]
        k = a[len(a) - (2 if self.trans_a else 1)]
        self.names = [f"b{i}" for i in range(len(self.batch))]
        batch = [Level(v, size) for v, size in zip(self.names, self.batch, strict=True)]
        self.levels = named(*batch, Level("m", m), Level("n", n), Level("k", k))
        self.orders = ((*self.names, "m", "n", "k"), ("n", *self.names, "m", "k"))
        if not self.shared:
            self.orders = (*self.orders[:1], (*self.names, "n", "m", "k"))
        self.reducing = frozenset("k")
        self.moving_on = frozenset((*self.names, "m", "k"))
        self.stationary_on = frozenset(("n", "k", *(() if self.shared else self.names)))
        self.bias_on, self.bias_level = frozenset("n"), "n"
        rows = (*self.names, "m") if self.shared else ("m",)
        self.axes = {"M": (rows, 1), "N": (("n",), 1), "K": (("k",), 1)}

    def shape_of(self, operand: str, size: dict[str, int]) -> tuple[int, ...]:
        """An operand's shape, given the sizes of all levels."""
        m, n, k = size["m"], size["n"], size["k"]
        batch = tuple(size[v] for v in self.names)
        if operand == "moving":
            return (*batch, *((k, m) if self.trans_a else (m, k)))
        if operand == "stationary":
            return (*(() if self.shared else batch), *((n, k) if self.trans_b else (k, n)))
        return (*batch, m, n)

    def tile_shapes(self, tile: Tile) -> dict[str, tuple[int, ...]]:
        return {k: self.shape_of(k, dict(tile)) for k in ("moving", "stationary", "result")}

    def box(self, operand: str, position: Position) -> tuple[Start, tuple[int, ...]]:
        at = position
        sizes = self.shape_of(operand, {v: size for v, (_, size) in at.items()})
        batch = tuple(at[v][0] for v in self.names)
        m, n, k = at["m"][0], at["n"][0], at["k"][0]
        if operand == "moving":
            return (*batch, *((k, m) if self.trans_a else (m, k))), sizes
        if operand == "stationary":
            return (*(() if self.shared else batch), *((n, k) if self.trans_b else (k, n))), sizes
        return (*batch, m, n), sizes

    def bias_size(self, tile: Tile) -> int:
        return tile["n"]

    def bias_box(self, position: Position) -> tuple[Affine, int]:
        return position["n"]

    def bias_dims(self, shape: tuple[int, ...]) -> tuple[Dim, ...]:
        return plain(*((n, int(i == len(shape) - 1)) for i, n in enumerate(shape)))

    def repeats(self, position: Position) -> int:
        if self.shared:
            return 1
        return self.count(position) // prod(self.apart(position))

    def apart(self, position: Position) -> list[int]:
        """Sizes of the outer batch dims of a tile over which one index cannot run on: entries of
        an operand that lies whole in the buffer follow each other only where the dims inside are
        taken whole."""
        sizes = [position[v][1] for v in self.names]
        if self.shared or not self.staying:
            return []
        whole = [size == full for size, full in zip(sizes, self.batch, strict=True)]
        last = max((k for k in range(len(sizes)) if not whole[k]), default=0)
        return sizes[:last]

    def count(self, position: Position) -> int:
        """Batch entries in a tile."""
        return prod(position[v][1] for v in self.names)

    def products(
        self, position: Position, held: tuple[Held, Held, Held], index: Affine
    ) -> list[Product]:
        m, n, k = (position[v][1] for v in "mnk")
        a, b, y = held
        # index runs over the batch dims of a tile, which lie one behind the other
        a_m, a_k = (-1, -2) if self.trans_a else (-2, -1)
        b_k, b_n = (-1, -2) if self.trans_b else (-2, -1)
        # a shared b multiplies all batches at once: their rows simply follow each other
        batch = [position[v][1] for v in self.names] if self.shared else []

        def rows(of: Held, axis: int) -> tuple[Dim, ...]:
            outer = list(zip(batch, of.strides, strict=False))
            return plain(*outer, (m, of.strides[axis]))

        def step(of: Held, outer: tuple[int, ...]) -> Affine:
            if not self.names or batch:
                return ZERO
            first = sum(i * stride for i, stride in zip(outer, of.strides, strict=False))
            return index * of.strides[len(self.names) - 1] + first

        return [
            (
                a.block(rows(a, a_m), plain((k, a.strides[a_k])), step(a, outer)),
                b.block(plain((k, b.strides[b_k])), plain((n, b.strides[b_n])), step(b, outer)),
                y.block(rows(y, -2), plain((n, y.strides[-1])), step(y, outer)),
                (m * prod(batch), n, k),
                ZERO,
            )
            for outer in product(*(range(size) for size in self.apart(position)))
        ]
