"""Writes one GEMM of a kernel: tiles in, waves, tiles out.

Where an operand lies decides how it comes: from DRAM through a double-buffered pipe; from a region
of the buffer as it is; or, when a convolution needs zeros around it, from a region through
the vector unit into a pipe.  Results go the same ways, and those that gather over the iterations
of a group are kept, or fetched, added to and put back.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from ccnn.compiler.codegen.bring import bring, giver_of, overhangs
from ccnn.compiler.codegen.emit import CodegenError, KernelWriter, Pipe, Ticket, dims_of, view
from ccnn.compiler.codegen.gemm import Gemm, plain
from ccnn.compiler.codegen.lanes import write_on_lanes
from ccnn.compiler.codegen.nest import Hook, Position, Tile, placement, walk
from ccnn.compiler.codegen.place import Held
from ccnn.compiler.codegen.scope import Scope, dense, view_of
from ccnn.compiler.codegen.update import is_result, write_update
from ccnn.compiler.codegen.waves import Block, Wanted, declare_array, exchanges, write_waves
from ccnn.compiler.cut import Cut, Triple, flow_named
from ccnn.compiler.mapping import Tiling
from ccnn.targets.program import DTYPE_BYTES, ZERO, Affine, Load, Map, Store, View

Starts = tuple[Affine, ...]
Cuts = Mapping[tuple[Triple, str], Cut]
"""As in `compiler.mapping.Mapping`."""


def write_gemm(gemm: Gemm, kw: KernelWriter, scope: Scope, tiling: Tiling, cuts: Cuts) -> None:
    """Write the code of a GEMM by its tiling and the cuts of the products it consists of."""
    _Writer(gemm, kw, scope, tiling, cuts).write()


def _engines(tiling: Tiling) -> tuple[tuple[str, str], str]:
    """What reads the operands moving and stationary, and what makes the result."""
    if tiling.on_lanes:
        return ("vector", "vector"), "vector"
    other_way = exchanges(flow_named(tiling.flow))
    return ("feed_v", "feed_h") if other_way else ("feed_h", "feed_v"), "drain"


class _Writer:
    def __init__(
        self,
        gemm: Gemm,
        kw: KernelWriter,
        scope: Scope,
        tiling: Tiling,
        cuts: Cuts,
    ) -> None:
        self.g, self.kw, self.scope = gemm, kw, scope
        self.tile: Tile = dict(tiling.tiles)
        self.cuts, self.flow = cuts, tiling.flow
        self.feeds, self.maker = _engines(tiling)
        self.levels = [gemm.levels[name] for name in tiling.order]
        self.held: dict[str, Held] = {}
        self.shapes = gemm.tile_shapes(self.tile)
        self.slots = gemm.slots(tiling.order, self.tile, tiling.depth)
        self.resident = gemm.out in scope.regions
        self.summed = scope.summed(gemm.out)
        self.converts = gemm.converts(self.tile) or self.summed
        self.pieces = tiling.pieces
        self.updated = gemm.out in scope.updates
        if self.updated and self.resident:
            raise CodegenError(f"'{gemm.out}' stays on chip as a whole: its update runs apart")
        # slots that another engine frees need a pipe of their own
        self.taker = f"vector {is_result(scope, gemm.out)}" if self.updated else "store"
        moving = gemm.dtypes[gemm.tensors["moving"]]
        if not gemm.lanes:
            declare_array(kw, scope.machine, moving, gemm.accum, tiling.pieces)

    def pipe(self, name: str, dtype: str, size: int, slots: int, giver: str, taker: str) -> Pipe:
        return self.kw.pipe(name, "gbuf", dtype, size, slots, giver, taker)

    def write(self) -> None:
        g = self.g
        hooks = [
            self.fetch("moving", self.feeds[0], g.moving_on),
            self.fetch("stationary", self.feeds[1], g.stationary_on),
        ]
        if g.bias:
            hooks.append(self.fetch("bias", "vector" if self.converts else self.maker, g.bias_on))
        outer = len(self.levels) - len(g.reducing)
        hooks.append(Hook(outer, self.open_result, self.close_result))
        if self.resident and not self.converts and g.clears():
            shape = self.scope.graph[g.out].shape
            self.clear(self.scope.held(g.out, (ZERO,) * len(shape)), shape)
        gathers = g.out in self.scope.partial
        if gathers and self.scope.final:
            self.hand_over("wait")
        walk(self.kw, self.levels, self.tile, hooks, self.body)
        if gathers and self.scope.fresh:
            self.hand_over("signal")

    def hand_over(self, kind: str) -> None:
        """Partial sums in DRAM are fetched only when those before them have been put back."""
        token = f"partial.{self.kw.node}"
        self.kw.own_tokens.add(token)
        self.kw.sync("store" if kind == "signal" else "load", kind, token)

    # operands

    def place(self, name: str, position: Position) -> tuple[str, Starts, tuple[int, ...]]:
        """An operand's tensor, and where its tile starts and how large it is."""
        if name == "bias":
            start, size = self.g.bias_box(position)
            return self.g.bias, (start,), (size,)
        starts, sizes = self.g.box(name, position)
        return self.g.tensors[name], starts, sizes

    def fetch(self, name: str, engine: str, depends: frozenset[str]) -> Hook:
        """Bring the tile in where `depends` places it, for `engine` to read."""
        tensor = self.g.bias if name == "bias" else self.g.tensors[name]
        depth = placement(self.levels, self.tile, depends)
        if tensor in self.scope.regions and not self.overhangs(name):

            def find(position: Position) -> None:
                _, starts, _ = self.place(name, position)
                self.held[name] = self.scope.held(tensor, starts)

            return Hook(depth, find, lambda _: None)
        size = self.g.bias_size(self.tile) if name == "bias" else prod(self.shapes[name])
        giver = giver_of(self.scope, tensor)
        pipe = self.pipe(name, self.g.dtypes[tensor], size, self.slots[name], giver, engine)

        def enter(position: Position) -> None:
            _, starts, sizes = self.place(name, position)
            self.held[name] = bring(self.kw, self.scope, pipe, engine, tensor, starts, sizes)

        return Hook(depth, enter, lambda _: self.kw.done(pipe, engine))

    def overhangs(self, name: str) -> bool:
        """True when tiles of an operand reach beyond its tensor and need zeros there."""
        if name != "moving":
            return False
        whole: Position = {v.name: (ZERO, v.total) for v in self.levels}
        starts, sizes = self.g.box(name, whole)
        return overhangs(self.scope, self.g.tensors[name], starts, sizes)

    # results

    def open_result(self, position: Position) -> None:
        kw, g = self.kw, self.g
        starts, sizes = g.box("result", position)
        if g.out in self.scope.sums:
            strides = dense(self.scope.graph[g.out].shape)
            offset = ZERO
            for start, stride in zip(starts, strides, strict=True):
                offset = offset + start * stride
            self.held["target"] = Held(self.scope.sums[g.out], strides, offset)
            return
        if self.resident and not self.converts:
            self.held["target"] = self.scope.held(g.out, starts)
            return
        resumes = g.out in self.scope.partial and not self.scope.fresh
        engine = "load" if resumes else "vector" if g.clears() else self.maker
        name, dtype, slots, taker = "result", g.dtypes[g.out], self.slots["result"], self.taker
        if self.converts:
            spills = g.out in self.scope.partial and not self.scope.final
            # small sums that gather in DRAM are fetched while those before are still in the making
            small = prod(self.shapes["result"]) * DTYPE_BYTES[g.accum] <= self.scope.budget // 8
            slots = 2 if small and g.out in self.scope.partial else 1
            name, dtype, taker = "sums", g.accum, "store" if spills else "vector"
        # whoever opens a slot, another engine fills it: a pipe of its own
        size = prod(self.shapes["result"])
        giver = engine if engine == self.maker == "vector" else f"{engine} {self.maker}"
        pipe = self.pipe(name, dtype, size, slots, giver, taker)
        ticket = kw.fill(pipe, engine)
        self.held["target"] = target = Held(ticket, dense(sizes))
        if resumes:
            if not self.scope.final:
                self.hand_over("wait")
            block = view(ticket, dims_of(sizes, sizes))
            kw.emit(Load(kw.node, block, self.scope.partial[g.out], starts, (1,) * len(starts)))
            kw.pair("load", self.maker, "resumed.lanes" if g.lanes else "resumed")
        elif g.clears():
            self.clear(target, sizes)

    def clear(self, target: Held, sizes: tuple[int, ...]) -> None:
        """Zero a tile of which not every element gets a product."""
        self.kw.emit(Map(self.kw.node, view_of(target, sizes), (), (0.0,)))
        self.pair("vector", self.maker, "clear")

    def pair(self, giver: str, taker: str, token: str) -> None:
        """One engine waits for another; none waits for itself."""
        if giver != taker:
            self.kw.pair(giver, taker, token)

    def body(self, position: Position) -> None:
        held, first = self.held, ZERO
        for name in self.g.reducing:
            first = first + position[name][0]
        if self.summed and not self.scope.fresh:
            first = Affine(1)
        three = (held["moving"], held["stationary"], held["target"])
        if self.g.lanes:
            bias = held["bias"] if self.g.bias and not self.converts else None
            write_on_lanes(self.kw, self.g, position, three, first, bias)
            return
        with self.kw.loop(self.g.repeats(position)) as index:
            for moving, stationary, result, shape, column in self.g.products(
                position, three, index
            ):
                extra: Block | None = None
                if self.g.bias and not self.converts:
                    bias = held["bias"]
                    extra = bias.block(plain((1, 0)), plain((shape[1], 1)), column)
                wanted = Wanted(moving, stationary, result, shape, first, extra, self.pieces)
                cut = self.cuts.get((shape, self.flow))
                write_waves(self.kw, self.scope.machine, wanted, self.flow, cut)

    def close_result(self, position: Position) -> None:
        kw, g, scope = self.kw, self.g, self.scope
        starts, sizes = g.box("result", position)
        target = self.held["target"]
        kept = g.out in scope.sums
        if kept:
            if scope.final:
                self.pair(self.maker, "vector", "summed")
                self.hand_out(target, starts, sizes)
                self.pair("vector", self.maker, "handed")
            return
        if not self.converts:
            if not self.resident:
                self.send(target, g.out, starts, sizes, self.maker)
            return
        if g.out in scope.partial and not scope.final:
            self.send(target, scope.partial[g.out], starts, sizes, self.maker)
            if not scope.fresh:
                self.hand_over("signal")
            return
        pipe = pipe_of(target)
        kw.filled(pipe, self.maker)
        kw.take(pipe, "vector")
        self.hand_out(target, starts, sizes)
        kw.done(pipe, "vector")

    def hand_out(self, sums: Held, starts: Starts, sizes: tuple[int, ...]) -> None:
        """Complete sums: to the result's dtype, with the bias, to where the result belongs."""
        kw, g = self.kw, self.g
        sources: list[View] = [view_of(sums, sizes)]
        code: tuple[str | float, ...] = ("s0",)
        if g.bias:
            bias = self.held["bias"]
            sources.append(bias.view(g.bias_dims(sizes)))
            code = ("s0", "s1", "add")
        if self.resident:
            target = self.scope.held(g.out, starts)
            kw.emit(Map(kw.node, view_of(target, sizes), tuple(sources), code))
            return
        slots = self.slots["result"]
        size = prod(self.shapes["result"])
        pipe = self.pipe("result", g.dtypes[g.out], size, slots, "vector", self.taker)
        made = Held(kw.fill(pipe, "vector"), dense(sizes))
        kw.emit(Map(kw.node, view_of(made, sizes), tuple(sources), code))
        self.send(made, g.out, starts, sizes, "vector")

    def send(
        self, held: Held, tensor: str, starts: Starts, sizes: tuple[int, ...], by: str
    ) -> None:
        """Store a finished slot to DRAM, and before that let an update read the gradient in it."""
        kw, pipe = self.kw, pipe_of(held)
        kw.filled(pipe, by)
        if self.updated and tensor == self.g.out:
            kw.take(pipe, "vector")
            write_update(kw, self.scope, tensor, held, starts, sizes, self.slots["result"])
            if not is_result(self.scope, tensor):
                kw.done(pipe, "vector")
                return
            kw.pair("vector", "store", "updated")
        else:
            kw.take(pipe, "store")
        where = self.scope.in_dram(tensor, starts)
        kw.emit(Store(kw.node, tensor, where, (1,) * len(starts), view_of(held, sizes)))
        kw.done(pipe, "store")


def pipe_of(held: Held) -> Pipe:
    """The pipe that a block lies in."""
    if not isinstance(held.ticket, Ticket):
        raise TypeError("a region is no pipe")
    return held.ticket.pipe
