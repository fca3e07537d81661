"""Mean and population variance in one sweep.

Each tile's own mean and sum of squared deviations are taken while it is in the buffer and merged
into the running ones (Chan, Golub, LeVeque 1979), so nothing cancels:
d = mean_t - mean; mean += d*b/(a+b); M2 += M2_t + d*d*a*b/(a+b), a and b the counts so far.
"""

from __future__ import annotations

from math import prod

from ccnn.compiler.codegen.emit import KernelWriter, dims_of, segments, view
from ccnn.compiler.codegen.place import Held
from ccnn.compiler.codegen.scope import Scope, dense, view_of
from ccnn.compiler.codegen.tiles import choose_tile, operand_tile
from ccnn.compiler.codegen.vector import kept_shape, tile_bytes
from ccnn.passes.graph import Node
from ccnn.passes.row_work import AXIS
from ccnn.targets.program import DTYPE_BYTES, ZERO, Affine, Extent, Load, Map, Reduce, Store, View

_At = dict[int, tuple[Affine, int]]
"""Axis to where the present tile starts and how large it is."""


def write_moments(scope: Scope, kw: KernelWriter, node: Node) -> None:
    """The kernel code of one `moments` node."""
    _Moments(scope, kw, node).write()


class _Moments:
    def __init__(self, scope: Scope, kw: KernelWriter, node: Node) -> None:
        self.scope, self.kw, self.node = scope, kw, node
        self.x = node.inputs[0]
        self.space = scope.graph[self.x].shape
        self.axes = tuple(node.attr("axes"))
        self.outer = [a for a in range(len(self.space)) if a not in self.axes]
        kept = kept_shape(self.space, self.axes)
        width = DTYPE_BYTES[scope.accum]

        def fits(tile: tuple[int, ...]) -> bool:
            statistics = 8 * prod(operand_tile(kept, tile)) * width
            return tile_bytes(scope, [self.x], tile) + statistics + 512 <= scope.budget

        self.tile = choose_tile(self.space, fits)
        self.own = operand_tile(kept, self.tile)
        self.kept = kept
        self.summed = scope.summed(node.outputs[0])
        self.count = prod(self.space[a] for a in self.axes)

    def write(self) -> None:
        self.outside(0, {})

    def outside(self, depth: int, at: _At) -> None:
        """Loops over what is kept."""
        if depth == len(self.outer):
            self.block(at)
            return
        axis = self.outer[depth]
        for part in segments(self.space[axis], self.tile[axis]):
            with self.kw.loop(part.count) as index:
                place = (index * part.size + part.start, part.size)
                self.outside(depth + 1, {**at, axis: place})

    def sizes(self, at: _At) -> tuple[int, ...]:
        """Extents of the statistics of the present block."""
        return tuple(1 if a in self.axes else at[a][1] for a in range(len(self.space)))

    def starts(self, at: _At) -> tuple[Affine, ...]:
        """Where the statistics of the present block start."""
        return tuple(ZERO if a in self.axes else at[a][0] for a in range(len(self.space)))

    def running(self, name: str, out: str, at: _At) -> Held:
        """Where a running statistic lies: a region when it outlasts the iteration."""
        if self.summed:
            strides = dense(self.kept)
            offset = ZERO
            for start, stride in zip(self.starts(at), strides, strict=True):
                offset = offset + start * stride
            return Held(self.scope.sums[out], strides, offset)
        return self.local(name)

    def local(self, name: str) -> Held:
        """A scratch block of the present tile's statistics."""
        kw = self.kw
        pipe = kw.pipe(name, "gbuf", self.scope.accum, prod(self.own), 1, "vector", "vector")
        return Held(kw.fill(pipe, "vector"), dense(self.own))

    def block(self, at: _At) -> None:
        kw, scope = self.kw, self.scope
        sizes = self.sizes(at)
        held = [
            self.running("mean", self.node.outputs[0], at),
            self.running("m2", self.node.outputs[1], at),
            self.local("part"),
            self.local("delta"),
        ]
        if scope.fresh or not self.summed:
            for each in held[:2]:
                kw.emit(Map(kw.node, view_of(each, sizes), (), (0.0,)))
        self.inside(0, at, self.before(), held)
        if scope.final or not self.summed:
            self.hand_out(at, held)
        for each in held[2 if self.summed else 0 :]:
            pipe = each.ticket.pipe  # type: ignore[union-attr]
            kw.filled(pipe, "vector")
            kw.take(pipe, "vector")
            kw.done(pipe, "vector")

    def samples(self) -> int:
        """Samples of one iteration, when the statistics gather over iterations."""
        return int(self.space[0] / self.scope.rows[self.x])

    def row(self) -> int:
        """Elements in a row of the samples of one iteration, of all that is taken together."""
        return self.count // self.space[AXIS]

    def before(self) -> Affine:
        """How many elements earlier iterations have merged."""
        scope = self.scope
        if not self.summed:
            return ZERO
        if self.x not in scope.tops:
            return scope.passed * (self.count // self.samples())
        image = self.row() // self.samples() * scope.heights[self.x]
        return scope.passed * image + scope.tops[self.x] * self.row()

    def hand_out(self, at: _At, held: list[Held]) -> None:
        """The statistics are complete: mean and variance to where they belong."""
        kw, scope = self.kw, self.scope
        sizes, starts = self.sizes(at), self.starts(at)
        total = self.count
        if self.summed:
            total = self.count * scope.batch // self.samples()
            if self.x in scope.heights:
                total = total // self.space[AXIS] * scope.heights[self.x]
        codes = (("s0",), ("s0", float(total), "div"))
        for i, (out, each, code) in enumerate(zip(self.node.outputs, held[:2], codes, strict=True)):
            source = view_of(each, sizes)
            if out in scope.regions:
                kw.emit(Map(kw.node, view_of(scope.held(out, starts), sizes), (source,), code))
                continue
            size = prod(self.own)
            pipe = kw.pipe(f"y{i}", "gbuf", scope.accum, size, 2, "vector", "store")
            made = Held(kw.fill(pipe, "vector"), dense(self.own))
            kw.emit(Map(kw.node, view_of(made, sizes), (source,), code))
            kw.filled(pipe, "vector")
            kw.take(pipe, "store")
            where = scope.in_dram(out, starts)
            kw.emit(Store(kw.node, out, where, (1,) * len(starts), view_of(made, sizes)))
            kw.done(pipe, "store")

    def inside(self, depth: int, at: _At, before: Affine, held: list[Held]) -> None:
        """Loops over what is reduced; `before` counts the elements already merged."""
        if depth == len(self.axes):
            self.merge(at, before, held)
            return
        axis = self.axes[depth]
        inner = prod(self.space[a] for a in self.axes[depth + 1 :])
        # elements before this tile: whole planes of the axes further in
        outer = prod(at[a][1] for a in self.axes[:depth])
        for part in segments(self.space[axis], self.tile[axis]):
            with self.kw.loop(part.count) as index:
                start = index * part.size + part.start
                seen = before + start * (inner * outer)
                self.inside(depth + 1, {**at, axis: (start, part.size)}, seen, held)

    def tile_of(self, at: _At) -> tuple[View, bool]:
        """The present tile of x, loaded unless it stays in the buffer."""
        kw, rank = self.kw, len(self.space)
        sizes = tuple(at[a][1] for a in range(rank))
        starts = tuple(at[a][0] for a in range(rank))
        if self.x in self.scope.regions:
            return view_of(self.scope.held(self.x, starts), sizes), False
        dtype = self.scope.dtypes[self.x]
        pipe = kw.pipe("x", "gbuf", dtype, prod(self.tile), 2, "load", "vector")
        block = view(kw.fill(pipe, "load"), dims_of(sizes, sizes))
        where = self.scope.in_dram(self.x, starts)
        kw.emit(Load(kw.node, block, self.x, where, (1,) * rank))
        kw.filled(pipe, "load")
        kw.take(pipe, "vector")
        return block, True

    def merge(self, at: _At, before: Affine, held: list[Held]) -> None:
        kw, node = self.kw, self.kw.node
        sizes = tuple(at[a][1] for a in range(len(self.space)))
        tile, loaded = self.tile_of(at)
        count = prod(sizes[a] for a in self.axes)
        small = self.sizes(at)
        mean, m2, part, delta = (view_of(h, small) for h in held)

        def over(h: Held) -> View:
            return h.view(
                tuple(
                    (Extent(n), 0 if a in self.axes else s)
                    for a, (n, s) in enumerate(zip(sizes, h.strides, strict=True))
                )
            )

        squares = ("s0", "s1", "sub", "s0", "s1", "sub", "mul")
        kw.emit(Reduce(node, "sum", self.axes, over(held[2]), (tile,), ("s0",)))
        kw.emit(Map(node, part, (part,), ("s0", float(count), "div")))
        kw.emit(Reduce(node, "sum", self.axes, over(held[3]), (tile, over(held[2])), squares))
        if loaded:
            kw.done(kw.pipes[tile.buffer], "vector")
        counts = (before, Affine(count))
        weight = ("k1", "k0", "k1", "add", "div")
        gain = ("s0", "s1", "s1", "mul", "k0", "mul", *weight, "mul", "add")
        kw.emit(Map(node, m2, (m2, delta), ("s0", "s1", "add")))
        kw.emit(Map(node, delta, (part, mean), ("s0", "s1", "sub")))
        kw.emit(Map(node, m2, (m2, delta), gain, counts))
        kw.emit(Map(node, mean, (mean, delta), ("s0", "s1", *weight, "mul", "add"), counts))
