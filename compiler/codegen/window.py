"""Kernels for windows: sums and maxima over windows, and their gradients.

Forward, a window is one strided view with the window's places as extra dims that are reduced.
Backward, each place of the window is a strided view of the input that receives its share.
"""

from __future__ import annotations

from math import prod

from ccnn.compiler.codegen.bring import bring, giver_of, overhangs
from ccnn.compiler.codegen.emit import KernelWriter, dims_of
from ccnn.compiler.codegen.place import Held
from ccnn.compiler.codegen.scope import Scope, dense
from ccnn.compiler.codegen.tiles import Place, Sweep, choose_tile
from ccnn.passes.graph import Node
from ccnn.targets.program import DTYPE_BYTES, ZERO, Affine, Code, Dim, Extent, Map, Reduce


class _Windows:
    """The geometry of a window op; all lists have the rank of the tensor."""

    def __init__(self, node: Node) -> None:
        a = node.attributes
        self.kernel, self.strides = a["kernel"], a["strides"]
        self.before, self.dilations = a["before"], a["dilations"]
        self.rank = len(self.kernel)

    def reach(self, axis: int, results: int) -> int:
        """Input places that this many results read."""
        span = (self.kernel[axis] - 1) * self.dilations[axis] + 1
        return (results - 1) * self.strides[axis] + span

    def input_tile(self, tile: tuple[int, ...]) -> tuple[int, ...]:
        """Input places that a tile of results reads."""
        return tuple(self.reach(a, t) for a, t in enumerate(tile))


def write_window(scope: Scope, kw: KernelWriter, node: Node) -> None:
    """window_sum and window_max (with the position of the first maximum as second result)."""
    w, x = _Windows(node), node.inputs[0]
    space = scope.graph[node.outputs[0]].shape
    maximum = node.op == "window_max"
    fill = float("-inf") if maximum else 0.0
    out_bytes = sum(scope.width(o) for o in node.outputs)
    origin = tuple(Affine(-b) for b in w.before)
    direct = x in scope.regions and not overhangs(scope, x, origin, w.input_tile(space), fill)

    def fits(tile: tuple[int, ...]) -> bool:
        read = 0 if direct else prod(w.input_tile(tile)) * scope.width(x)
        return 2 * (read + prod(tile) * out_bytes) + 256 <= scope.budget

    windowed = [a for a in range(w.rank) if w.kernel[a] > 1]
    free = [a for a in range(w.rank) if a not in windowed]
    tile = choose_tile(space, fits, order=free if x in scope.regions and not direct else ())
    whole = w.input_tile(tile)
    sweep = Sweep(kw, scope, space, tile)
    pipe = None
    if not direct:
        giver = giver_of(scope, x)
        pipe = kw.pipe("x", "gbuf", scope.dtypes[x], prod(whole), 2, giver, "vector")
    results = [sweep.out_pipe(f"y{i}", o, prod(tile)) for i, o in enumerate(node.outputs)]
    axes = tuple(range(w.rank, w.rank + len(windowed))) or (w.rank,)

    def body(place: Place, _: list[Held]) -> None:
        starts = tuple(s * w.strides[a] - w.before[a] for a, s in enumerate(place.starts))
        held = (
            bring(kw, scope, pipe, "vector", x, starts, whole, fill)
            if pipe
            else scope.held(x, starts)
        )
        steps = held.strides
        dims: list[Dim] = [(e, steps[a] * w.strides[a]) for a, e in enumerate(place.extents)]
        dims += [(Extent(w.kernel[a]), steps[a] * w.dilations[a]) for a in windowed]
        if not windowed:
            dims.append((Extent(1), 0))
        source = held.view(tuple(dims))
        kinds = ("max", "argmax") if maximum else ("sum",)
        for kind, out, name in zip(kinds, results, node.outputs, strict=True):
            made = sweep.result(out, name, space, w.rank, place)
            flat = tuple(zip(place.extents, made.strides, strict=True))
            target = made.view((*flat, *((Extent(dims[a][0].size), 0) for a in axes)))
            kw.emit(Reduce(kw.node, kind, axes, target, (source,), ("s0",)))
            sweep.store(out, made, name, space, w.rank, place)
        if pipe:
            kw.done(pipe, "vector")

    sweep.run([], "vector", body)


class _Backward:
    """Which results' gradients reach a tile of the input, along each axis.

    A tile starts at a multiple of the stride, so the first result is affine in the tile number.
    """

    def __init__(self, w: _Windows, tile: tuple[int, ...]) -> None:
        self.first, self.margin = [], []
        count, padded = [], []
        for a, t in enumerate(tile):
            stride, span = w.strides[a], (w.kernel[a] - 1) * w.dilations[a]
            low = (w.before[a] - span) // stride
            high = (t - 1 + w.before[a]) // stride
            count.append(high - low + 1)
            self.first.append(low)
            # the padded tile begins where the first window begins
            self.margin.append(w.before[a] - low * stride)
            padded.append(max((count[-1] - 1) * stride + span + 1, self.margin[-1] + t))
        self.count, self.padded = tuple(count), tuple(padded)


def write_window_gradient(scope: Scope, kw: KernelWriter, node: Node) -> None:
    """window_sum_grad and window_max_grad: every place of the window adds its share."""
    _Gradient(scope, kw, node).write()


class _Gradient:
    def __init__(self, scope: Scope, kw: KernelWriter, node: Node) -> None:
        self.scope, self.kw, self.node, self.w = scope, kw, node, _Windows(node)
        self.out = node.outputs[0]
        self.space = scope.graph[self.out].shape
        self.maximum = node.op == "window_max_grad"
        self.names = list(node.inputs[: 2 if self.maximum else 1])
        accum = DTYPE_BYTES[scope.accum]
        w = self.w

        def fits(tile: tuple[int, ...]) -> bool:
            b = _Backward(w, tile)
            read = prod(b.count) * sum(scope.width(n) for n in self.names) * 2
            made = prod(tile) * scope.width(self.out) * 2
            return read + prod(b.padded) * accum + made + 256 <= scope.budget

        staying = any(n in scope.regions for n in self.names)
        free = [a for a in range(w.rank) if w.kernel[a] == 1 and w.strides[a] == 1]
        self.tile = choose_tile(
            self.space, fits, multiples=w.strides, order=free if staying else ()
        )
        self.b = _Backward(w, self.tile)
        self.sweep = Sweep(kw, scope, self.space, self.tile)
        self.reads = [
            kw.pipe(
                f"x{i}",
                "gbuf",
                scope.dtypes[n],
                prod(self.b.count),
                2,
                giver_of(scope, n),
                "vector",
            )
            for i, n in enumerate(self.names)
        ]
        self.sums = kw.pipe("sums", "gbuf", scope.accum, prod(self.b.padded), 1, "vector", "vector")
        self.result = self.sweep.out_pipe("y", self.out, prod(self.tile))

    def write(self) -> None:
        self.sweep.run([], "vector", self.body)

    def add_places(self, held: Held, sources: list[Held]) -> None:
        """Each place of the window adds its share; the loops over them are hardware loops."""
        w, kw, steps, count = self.w, self.kw, held.strides, self.b.count

        def descend(axis: int, offset: Affine, position: Affine) -> None:
            if axis < w.rank:
                with kw.loop(w.kernel[axis]) as place:
                    descend(
                        axis + 1,
                        offset + place * (w.dilations[axis] * steps[axis]),
                        position * w.kernel[axis] + place,
                    )
                return
            dims = tuple((Extent(n), steps[a] * w.strides[a]) for a, n in enumerate(count))
            target = held.view(dims, offset)
            shares = tuple(s.view(dims_of(count, count)) for s in sources)
            code: Code = ("s0", "s1", "add")
            scalars: tuple[Affine, ...] = ()
            if self.maximum:
                code, scalars = ("s0", "s1", "s2", "k0", "eq", "mul", "add"), (position,)
            kw.emit(Map(kw.node, target, (target, *shares), code, scalars))

        descend(0, ZERO, ZERO)

    def body(self, place: Place, _: list[Held]) -> None:
        kw, w, b = self.kw, self.w, self.b
        starts = tuple(
            Affine(s.const // w.strides[a], tuple((v, k // w.strides[a]) for v, k in s.terms))
            + b.first[a]
            for a, s in enumerate(place.starts)
        )
        sources = [
            bring(kw, self.scope, pipe, "vector", name, starts, b.count)
            for pipe, name in zip(self.reads, self.names, strict=True)
        ]
        held = Held(kw.fill(self.sums, "vector"), dense(b.padded))
        flat = (prod(b.padded),)
        kw.emit(Map(kw.node, held.view(dims_of(flat, flat)), (), (0.0,)))
        self.add_places(held, sources)
        for pipe in self.reads:
            kw.done(pipe, "vector")
        made = self.sweep.result(self.result, self.out, self.space, w.rank, place)
        corner = Affine(sum(m * s for m, s in zip(b.margin, held.strides, strict=True)))
        inside = held.view(tuple(zip(place.extents, held.strides, strict=True)), corner)
        target = made.view(tuple(zip(place.extents, made.strides, strict=True)))
        kw.emit(Map(kw.node, target, (inside,), ("s0",)))
        kw.filled(self.sums, "vector")
        kw.take(self.sums, "vector")
        kw.done(self.sums, "vector")
        self.sweep.store(self.result, made, self.out, self.space, w.rank, place)
