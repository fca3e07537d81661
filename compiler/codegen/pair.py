"""Both gradients of a layer as one GEMM that is multiplied twice, for arrays that take turns.

X lies as dX does and W as dW does, so the products of dX say it all: for each block of dY, W and dX
there is one of dY, X and dW.

    dX[M, N]  = dY[M, K] @ W[K, N]       M: n, h, w of one stride phase   N: c
    dW[K, N] += dY[M, K]^T @ X[M, N]     K: k, and the phase's r, s

A tile holds all of k, so dX is complete in it; dW gathers over the tiles of the pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from ccnn.compiler.codegen.convolution import ConvDx
from ccnn.compiler.codegen.emit import CodegenError
from ccnn.compiler.codegen.gemm import Gemm, Product, Start
from ccnn.compiler.codegen.matmul import MatMul
from ccnn.compiler.codegen.nest import Level, Operand, Position, Tile, trips
from ccnn.compiler.codegen.place import Held
from ccnn.compiler.codegen.scope import Scope
from ccnn.compiler.codegen.waves import Block
from ccnn.passes.interleave_gradients import Pair
from ccnn.targets.machine import Machine
from ccnn.targets.modes import Mode
from ccnn.targets.program import Affine

Turn = tuple[Product, Block, Block]
"""A product of dX, and the X and dW that stand beside its dX and W."""


@dataclass
class PairedGemm(Gemm):
    """dX with X and dW beside; `input` lies as the result does, `gradient` as what stays does."""

    alongside: tuple[str, str] = ("", "")
    """X and dW."""

    def setup(self) -> None:
        super().setup()
        self.tensors |= dict(zip(("input", "gradient"), self.alongside, strict=True))
        k = self.levels["k"]
        self.levels["k"] = Level("k", k.total, k.total)
        self.result_on = frozenset(self.levels) - self.reducing
        self.gathers = "gradient"
        self.summing = frozenset(self.levels) - self.stationary_on
        # with what moves W outermost, dW is in the making once
        inner = self.summing | self.reducing
        self.orders = tuple(
            order for order in self.orders if set(order[len(order) - len(inner) :]) == inner
        )

    def gathered(self, tile: Tile, wave: int) -> bool:
        """True when a block of dW is added to after it has left the array."""
        rows = prod(-(-tile[v] // self.levels[v].multiple) for v in self.axes["M"][0])
        return rows > wave or any(trips(self.levels[v], tile) > 1 for v in self.summing)

    def tile_shapes(self, tile: Tile) -> dict[str, tuple[int, ...]]:
        shapes = super().tile_shapes(tile)
        return {**shapes, "input": shapes["result"], "gradient": shapes["stationary"]}

    def box(self, operand: str, position: Position) -> tuple[Start, tuple[int, ...]]:
        beside = {"input": "result", "gradient": "stationary"}
        return super().box(beside.get(operand, operand), position)

    def operands(self) -> list[Operand]:
        def elements(name: str):
            return lambda tile: prod(self.tile_shapes(tile)[name])

        x, dw = (self.dtypes[tensor] for tensor in self.alongside)
        return [
            *super().operands(),
            Operand("input", self.result_on, elements("input"), x),
            Operand("gradient", self.stationary_on, elements("gradient"), dw, True),
        ]

    def turns_of(self, position: Position, held: Mapping[str, Held], index: Affine) -> list[Turn]:
        """The products of repetition `index`, each with its X and dW."""
        moving = held["moving"]
        three = moving, held["stationary"], held["result"]
        beside = moving, held["gradient"], held["input"]
        pairs = zip(
            self.products(position, three, index), self.products(position, beside, index),
            strict=True,
        )  # fmt: skip
        return [(product, x, dw) for product, (_, dw, x, _, _) in pairs]


class PairedConv(PairedGemm, ConvDx):
    """Both gradients of a convolution."""


class PairedMatMul(PairedGemm, MatMul):
    """Both gradients of a matrix product."""


def pair_gemm(scope: Scope, pair: Pair) -> PairedGemm:
    """The two nodes as one GEMM, ready to be mapped and written."""
    kind = PairedConv if pair.dx.op == "conv_dx" else PairedMatMul
    dtypes = dict(scope.dtypes)
    kinds = {dtypes[name] for name in (pair.dy, pair.weight, pair.x)}
    if len(kinds) > 1:
        raise CodegenError(
            f"'{pair.dx.name}' and '{pair.dw.name}' multiply {' by '.join(sorted(kinds))}: all "
            "operands of the array must have one dtype; cast with a map"
        )
    alongside = pair.x, pair.dw.outputs[0]
    made = kind(pair.dx, scope.graph, dtypes, scope.accum, alongside=alongside)
    made.turns = pair_mode(scope.machine).turns
    return made


def pair_mode(machine: Machine) -> Mode:
    """The mode in which PEs take turns; CodegenError where the machine has none."""
    mode = machine.turning_mode
    if mode is None:
        raise CodegenError(f"{machine.name} has no mode that interleaves gradients")
    return mode
