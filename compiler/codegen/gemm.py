"""Kernels for the array: conv, conv_dx, conv_dw and matmul.

Each kind is a class that says what its levels and operands are (for the mapper) and how a tile is
loaded, multiplied and stored (for the code generator).  Convolutions are GEMMs by
implicit im2col: the feed's address pattern walks the tile, the matrix is never built.

=========  =====================  ==========  ===================  (papers: MBS, table 1)
GEMM       M                      N           K
=========  =====================  ==========  ===================
forward    n, p, q                k           c, r, s
dX         n, h, w of one phase   c           k, and the phase's r, s
dW         c, r, s                k           n, p, q
=========  =====================  ==========  ===================

dX of a strided convolution is cut by stride phase: the results with h = a (mod stride) need only
the filter rows r with (a + pad - r*dilation) divisible by the stride, so no inserted zero is
ever multiplied.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import gcd, prod

from ccnn.compiler.codegen.nest import Level, Operand, Position, Tile, fetches, trips
from ccnn.compiler.codegen.place import Held
from ccnn.compiler.codegen.waves import Block
from ccnn.compiler.cut import FLOWS, LANES
from ccnn.passes.graph import Graph, Node
from ccnn.targets.program import Affine, Dim, Extent

Start = tuple[Affine, ...]

Product = tuple[Block, Block, Block, tuple[int, int, int], Affine]
"""Moving, stationary, result, (M, N, K), first column of the bias tile."""


def plain(*dims: tuple[int, int]) -> tuple[Dim, ...]:
    """Dims of constant size, from (size, stride) pairs."""
    return tuple((Extent(n), stride) for n, stride in dims)


@dataclass
class Gemm(ABC):
    """Common part of the four kinds; one object serves one node."""

    node: Node
    graph: Graph
    dtypes: dict[str, str]
    """Tensor name to machine dtype."""
    accum: str
    levels: dict[str, Level] = field(default_factory=dict)
    orders: tuple[tuple[str, ...], ...] = ()
    """Loop orders to choose from; the reducing levels come last in each."""
    reducing: frozenset[str] = frozenset()
    moving_on: frozenset[str] = frozenset()
    """Levels that move the operand that streams through the array."""
    stationary_on: frozenset[str] = frozenset()
    """Levels that move the operand that stays in the PEs."""
    bias_on: frozenset[str] = frozenset()
    axes: dict[str, tuple[tuple[str, ...], float]] = field(default_factory=dict)
    """M, N and K of a tile's product: the levels whose sizes multiply, and a constant factor."""
    grouped: tuple[str, ...] = ()
    """Levels that a tile must hold whole when it holds more than one group."""
    bias_level: str = ""
    """The level that counts bias elements."""
    spatial: tuple[str, ...] = ()
    """Levels that walk over pixels; an operand read with zeros around it takes them whole."""
    staying: frozenset[str] = frozenset()
    """Operands that lie in the buffer as they are: no slots, no traffic."""
    beside: tuple[int, ...] = ()
    """Bytes of an element of each tensor that moves along with the result, tile by tile."""
    tensors: dict[str, str] = field(default_factory=dict)
    """The tensors 'moving', 'stationary' and 'result' are."""
    gathers: str = "result"
    """The operand whose sums wait for further tiles."""
    turns: int = 1
    """Cycles that a moving row takes."""
    lanes: bool = False
    """The vector unit multiplies, not the array."""

    def __post_init__(self) -> None:
        self.shapes = [self.graph[i].shape if i else () for i in self.node.inputs]
        self.out = self.node.outputs[0]
        moving, stationary, *bias = self.node.inputs
        self.bias = bias[0] if bias else ""
        self.tensors = {"moving": moving, "stationary": stationary, "result": self.out}
        self.setup()

    # what each kind defines
    @abstractmethod
    def setup(self) -> None:
        """Set levels, orders and the levels each operand moves with."""

    @abstractmethod
    def tile_shapes(self, tile: Tile) -> dict[str, tuple[int, ...]]:
        """Shapes of the tiles 'moving', 'stationary' and 'result' in their buffers."""

    @abstractmethod
    def box(self, operand: str, position: Position) -> tuple[Start, tuple[int, ...]]:
        """Where an operand's tile starts in its tensor, and its sizes there."""

    @abstractmethod
    def repeats(self, position: Position) -> int:
        """How many independent products of equal shape a tile holds (groups, batch)."""

    @abstractmethod
    def products(
        self, position: Position, held: tuple[Held, Held, Held], index: Affine
    ) -> list[Product]:
        """The GEMMs of repetition `index`; held are moving, stationary and result."""

    def clears(self) -> bool:
        """True when some results get no product and must be zeroed first."""
        return False

    @property
    def flow(self) -> str:
        """The flow of a tiling before another was chosen."""
        return LANES if self.lanes else FLOWS[0].name

    def operands(self) -> list[Operand]:
        """The tensors that move through the global buffer, for the mapper."""

        def elements(name: str):
            return lambda tile: prod(self.tile_shapes(tile)[name])

        on = {
            "moving": self.moving_on,
            "stationary": self.stationary_on,
            "result": frozenset(self.levels) - self.reducing,
        }
        return [
            Operand(k, on[k], elements(k), self.dtypes[self.tensors[k]], k == "result")
            for k in ("moving", "stationary", "result")
        ]

    def slots(self, order: Sequence[str], tile: Tile, depth: int) -> dict[str, int]:
        """Slots of each operand's buffer: one for what is moved only once, else `depth`."""
        levels = [self.levels[name] for name in order]
        on = {o.name: o.depends for o in self.operands()} | {"bias": self.bias_on}
        return {k: depth if fetches(levels, tile, d) > 1 else 1 for k, d in on.items()}

    def stay(self, names: frozenset[str], whole: bool) -> None:
        """Say which operands stay in the buffer; with `whole`, tiles hold all pixels."""
        self.staying = names
        if whole:
            for name in self.spatial:
                level = self.levels[name]
                self.levels[name] = Level(name, level.total, level.total)

    def splits(self, tile: Tile) -> bool:
        """True when the reduction takes more than one tile."""
        return any(trips(self.levels[r], tile) > 1 for r in self.reducing)

    def converts(self, tile: Tile) -> bool:
        """True when partial sums wait in a buffer of their own until the last tile is added."""
        return self.splits(tile) and self.may_convert

    @property
    def may_convert(self) -> bool:
        """True when a split reduction cannot add up in the result's own buffer."""
        return bool(self.bias) or self.dtypes[self.out] != self.accum

    def bias_size(self, tile: Tile) -> int:
        """Elements of the bias tile."""
        return 0

    def bias_box(self, position: Position) -> tuple[Affine, int]:
        """Where the bias tile starts and its size."""
        raise ValueError(f"a {self.node.op} has no bias")

    def bias_dims(self, shape: tuple[int, ...]) -> tuple[Dim, ...]:
        """How the bias tile lies over the result tile (stride 0 where it repeats)."""
        raise ValueError(f"a {self.node.op} has no bias")


def divide(value: Affine, by: int) -> Affine:
    """An affine value known to be a multiple of `by`, divided by it."""
    return Affine(value.const // by, tuple((v, c // by) for v, c in value.terms))


@dataclass(frozen=True)
class Phase:
    """The results h = a + stride*i, i < count, of a transposed convolution along one axis.

    Tap j of `taps` reads row i + first + j*step and filter row `filter_first + j*filter_step`.
    """

    a: int
    count: int
    taps: int
    first: int
    step: int
    filter_first: int
    filter_step: int


def phases(size: int, kernel: int, stride: int, pad: int, dilation: int) -> list[Phase]:
    """All phases of `size` results; taps in the order of growing rows."""
    made = []
    for a in range(min(stride, size)):
        count = -(-(size - a) // stride)
        rows = [r for r in range(kernel) if (a + pad - r * dilation) % stride == 0]
        if not rows:
            made.append(Phase(a, count, 0, 0, 0, 0, 0))
            continue
        each = stride // gcd(stride, dilation)
        last = rows[-1]
        first = (a + pad - last * dilation) // stride
        made.append(Phase(a, count, len(rows), first, each * dilation // stride, last, -each))
    return made
