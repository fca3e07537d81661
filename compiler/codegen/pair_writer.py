"""Writes the kernel of both gradients of a layer: tiles of dY, W and X in, of dX and dW out."""

from __future__ import annotations

from math import prod

from ccnn.compiler.codegen.bring import bring
from ccnn.compiler.codegen.emit import KernelWriter
from ccnn.compiler.codegen.gemm_writer import pipe_of
from ccnn.compiler.codegen.nest import Hook, Position, Tile, placement, walk
from ccnn.compiler.codegen.pair import PairedGemm, pair_mode
from ccnn.compiler.codegen.pair_waves import WantedPair, declare_pair, write_pair
from ccnn.compiler.codegen.place import Held
from ccnn.compiler.codegen.scope import Scope, dense, view_of
from ccnn.compiler.mapping import Tiling
from ccnn.targets.program import ZERO, Map, Store


def write_pair_kernel(
    gemm: PairedGemm, kw: KernelWriter, scope: Scope, tiling: Tiling, nodes: tuple[int, int]
) -> None:
    """Write the code of both gradients by their tiling; `nodes` are the numbers of dX and dW."""
    _Writer(gemm, kw, scope, tiling, nodes).write()


class _Writer:
    def __init__(
        self,
        gemm: PairedGemm,
        kw: KernelWriter,
        scope: Scope,
        tiling: Tiling,
        nodes: tuple[int, int],
    ) -> None:
        self.g, self.kw, self.scope, self.nodes = gemm, kw, scope, nodes
        self.tile: Tile = dict(tiling.tiles)
        self.levels = [gemm.levels[name] for name in tiling.order]
        self.shapes = gemm.tile_shapes(self.tile)
        self.slots = gemm.slots(tiling.order, self.tile, tiling.depth)
        self.mode = pair_mode(scope.machine)
        dtype = gemm.dtypes[gemm.tensors["moving"]]
        self.pieces = declare_pair(kw, scope.machine, self.mode, dtype, gemm.accum)
        self.converts = gemm.gathered(self.tile, self.pieces.wave) and gemm.may_convert
        self.held: dict[str, Held] = {}

    def write(self) -> None:
        """The loops over tiles, with what is moved at each."""
        g, (dx, dw) = self.g, self.nodes
        at = placement(self.levels, self.tile, g.stationary_on)
        hooks = [
            self.fetch("moving", "feed_h", g.moving_on, dx),
            self.fetch("stationary", "feed_v", g.stationary_on, dx),
            self.fetch("input", "feed_v", g.result_on, dw),
            Hook(at, self.open_gradient, self.close_gradient),
            Hook(len(self.levels) - len(g.reducing), self.open_result, self.close_result),
        ]
        walk(self.kw, self.levels, self.tile, hooks, self.body)

    def fetch(self, name: str, engine: str, depends: frozenset[str], node: int) -> Hook:
        """Bring the tile in where `depends` places it, for `engine` to read."""
        kw, tensor = self.kw, self.g.tensors[name]
        depth = placement(self.levels, self.tile, depends)
        size = prod(self.shapes[name])
        pipe = kw.pipe(
            name, "gbuf", self.g.dtypes[tensor], size, self.slots[name], "load", engine
        )  # fmt: skip

        def enter(position: Position) -> None:
            kw.node = node
            starts, sizes = self.g.box(name, position)
            self.held[name] = bring(kw, self.scope, pipe, engine, tensor, starts, sizes)

        return Hook(depth, enter, lambda _: kw.done(pipe, engine))

    def open(self, name: str, position: Position, dtype: str, slots: int, first: str) -> Held:
        """The next slot for a tile that is made, which the engine `first` may write."""
        kw, (_, sizes) = self.kw, self.g.box(name, position)
        pipe = kw.pipe(name, "gbuf", dtype, prod(self.shapes[name]), slots, "drain", "store")
        return Held(kw.fill(pipe, first), dense(sizes))

    def open_result(self, position: Position) -> None:
        """A tile of dX; zeros where no filter place reaches."""
        kw, g = self.kw, self.g
        kw.node, clears = self.nodes[0], g.clears()
        engine = "vector" if clears else "drain"
        held = self.open("result", position, g.dtypes[g.out], self.slots["result"], engine)
        self.held["result"] = held
        if clears:
            kw.emit(Map(kw.node, view_of(held, g.box("result", position)[1]), (), (0.0,)))
            kw.pair("vector", "drain", "clear")

    def close_result(self, position: Position) -> None:
        """dX to DRAM."""
        self.kw.node = self.nodes[0]
        self.send("result", position, self.held["result"], "drain")

    def open_gradient(self, position: Position) -> None:
        """A tile of dW, in sums where it gathers over waves or tiles."""
        self.kw.node = self.nodes[1]
        if self.converts:
            size = prod(self.shapes["gradient"])
            pipe = self.kw.pipe("sums", "gbuf", self.g.accum, size, 1, "drain", "vector")
            strides = dense(self.g.box("gradient", position)[1])
            self.held["gradient"] = Held(self.kw.fill(pipe, "drain"), strides)
            return
        dtype, slots = self.g.dtypes[self.g.tensors["gradient"]], self.slots["gradient"]
        self.held["gradient"] = self.open("gradient", position, dtype, slots, "drain")

    def close_gradient(self, position: Position) -> None:
        """dW to DRAM, rounded before where it has gathered in sums."""
        kw, held, by = self.kw, self.held["gradient"], "drain"
        kw.node = self.nodes[1]
        if self.converts:
            sums, by = pipe_of(held), "vector"
            kw.filled(sums, "drain")
            kw.take(sums, "vector")
            sizes = self.g.box("gradient", position)[1]
            dtype, slots = self.g.dtypes[self.g.tensors["gradient"]], self.slots["gradient"]
            made = self.open("gradient", position, dtype, slots, "vector")
            kw.emit(Map(kw.node, view_of(made, sizes), (view_of(held, sizes),), ("s0",)))
            kw.done(sums, "vector")
            held = made
        self.send("gradient", position, held, by)

    def send(self, name: str, position: Position, held: Held, by: str) -> None:
        """Store a finished slot to DRAM."""
        kw, pipe = self.kw, pipe_of(held)
        kw.filled(pipe, by)
        kw.take(pipe, "store")
        starts, sizes = self.g.box(name, position)
        tensor = self.g.tensors[name]
        where = self.scope.in_dram(tensor, starts)
        kw.emit(Store(kw.node, tensor, where, (1,) * len(starts), view_of(held, sizes)))
        kw.done(pipe, "store")

    def body(self, position: Position) -> None:
        """The products of a tile; dW is added to from the second tile of pixels on."""
        first, (dx, dw) = ZERO, self.nodes
        for name in self.g.summing:
            first = first + position[name][0]
        with self.kw.loop(self.g.repeats(position)) as index:
            for product, x, gradient in self.g.turns_of(position, self.held, index):
                moving, stationary, result, shape, _ = product
                wanted = WantedPair(
                    moving, stationary, result, x, gradient, shape, dx, dw, first
                )  # fmt: skip
                write_pair(self.kw, self.scope.machine, self.mode, self.pieces, wanted)
