"""Kernels for windows: sums and maxima over windows, and their gradients.

Forward, a window is one strided view with the window's places as extra dims that are reduced.
Backward, the input is taken apart by the stride: what is left is gathered from strided views of the
results' gradients, sums along one axis after the other.
"""

from __future__ import annotations

from itertools import product
from math import prod

from ccnn.compiler.codegen.bring import bring, giver_of, overhangs
from ccnn.compiler.codegen.emit import KernelWriter
from ccnn.compiler.codegen.place import Held
from ccnn.compiler.codegen.scope import Scope, dense
from ccnn.compiler.codegen.tiles import Place, Sweep, choose_tile
from ccnn.passes.graph import Node
from ccnn.targets.program import DTYPE_BYTES, Affine, Dim, Extent, Map, Reduce


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
    """Which results reach a tile of the input along each axis.

    A tile starts at a multiple of the stride, so the first result is affine in the tile number.
    Input places that leave the same rest when divided by the stride are a *phase*: place j of one
    is reached by result j + shift through each place of the window that its phase can be at.
    """

    def __init__(self, w: _Windows, tile: tuple[int, ...]) -> None:
        first, count = [], []
        for a, t in enumerate(tile):
            stride, span = w.strides[a], (w.kernel[a] - 1) * w.dilations[a]
            low = (w.before[a] - span) // stride
            first.append(low)
            count.append((t - 1 + w.before[a]) // stride - low + 1)
        self.w, self.tile = w, tile
        self.first, self.count = tuple(first), tuple(count)

    def reaching(self, axis: int, phase: int) -> list[tuple[int, int]]:
        """(place of the window, shift) for a phase, the shift counted from the first result."""
        w = self.w
        far = [phase + w.before[axis] - k * w.dilations[axis] for k in range(w.kernel[axis])]
        stride = w.strides[axis]
        return [(k, d // stride - self.first[axis]) for k, d in enumerate(far) if d % stride == 0]

    def phases(self, axis: int) -> range:
        """The phases that a tile has places of."""
        return range(min(self.w.strides[axis], self.tile[axis]))


def write_window_gradient(scope: Scope, kw: KernelWriter, node: Node) -> None:
    """window_sum_grad and window_max_grad: each place gathers from the windows it lies in."""
    _Gradient(scope, kw, node).write()


class _Gradient:
    def __init__(self, scope: Scope, kw: KernelWriter, node: Node) -> None:
        self.scope, self.kw, self.node, self.w = scope, kw, node, _Windows(node)
        self.out = node.outputs[0]
        self.space = scope.graph[self.out].shape
        self.maximum = node.op == "window_max_grad"
        self.names = list(node.inputs[: 2 if self.maximum else 1])
        w = self.w
        self.axes = [a for a in range(w.rank) if w.kernel[a] > 1 or w.strides[a] > 1]

        def fits(tile: tuple[int, ...]) -> bool:
            b = _Backward(w, tile)
            read = prod(b.count) * sum(scope.width(n) * self.slots(n) for n in self.names)
            made = 0 if self.out in scope.regions else prod(tile) * scope.width(self.out) * 2
            parts = sum(prod(s) for s in self.between(b)) * DTYPE_BYTES[scope.accum]
            return read + parts + made + 256 <= scope.budget

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
                self.slots(n),
                giver_of(scope, n),
                "vector",
            )
            for i, n in enumerate(self.names)
        ]
        self.parts = [
            kw.pipe(f"part{i}", "gbuf", scope.accum, prod(shape), 1, "vector", "vector")
            for i, shape in enumerate(self.between(self.b))
        ]
        self.result = self.sweep.out_pipe("y", self.out, prod(self.tile))
        self.aside = None
        if self.result is None and any(
            0 < self.space[a] % self.tile[a] < w.strides[a] for a in self.axes
        ):  # in the last tile some phases have no places: whole tiles are made and the rest dropped
            dtype = scope.dtypes[self.out]
            self.aside = kw.pipe("aside", "gbuf", dtype, prod(self.tile), 1, "vector", "vector")

    def slots(self, name: str) -> int:
        """Of an operand's pipe: what the vector unit copies for itself it does not do ahead."""
        return 1 if name in self.scope.regions else 2

    def between(self, b: _Backward) -> list[tuple[int, ...]]:
        """Shapes of what is there when sums have been taken along some of the axes only."""
        axes = [] if self.maximum else self.axes
        return [
            tuple(b.tile[a] if a in axes[:done] else n for a, n in enumerate(b.count))
            for done in range(1, len(axes))
        ]

    def write(self) -> None:
        self.sweep.run([], "vector", self.body)

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
        made = self.sweep.result(self.result, self.out, self.space, w.rank, place)
        target = Held(kw.fill(self.aside, "vector"), dense(self.tile)) if self.aside else made
        # a slot takes a whole tile, a region only what lies inside
        inside = self.result is None and not self.aside
        extents = place.extents if inside else tuple(Extent(t) for t in self.tile)
        self.gather_all(Place(place.starts, extents), sources, target)
        for pipe in self.reads:
            kw.done(pipe, "vector")
        if self.aside:
            kw.filled(self.aside, "vector")
            kw.take(self.aside, "vector")
            pairs = (tuple(zip(place.extents, h.strides, strict=True)) for h in (made, target))
            to, come = (h.view(d) for h, d in zip((made, target), pairs, strict=True))
            kw.emit(Map(kw.node, to, (come,), ("s0",)))
            kw.done(self.aside, "vector")
        self.sweep.store(self.result, made, self.out, self.space, w.rank, place)

    def gather_all(self, place: Place, sources: list[Held], made: Held) -> None:
        """A tile: maxima at once, sums along one axis after the other."""
        if self.maximum or not self.axes:
            self.gather(place, sources, made, self.axes)
            return
        kw, source, shapes = self.kw, sources[0], self.between(self.b)
        for done, axis in enumerate(self.axes):
            if done == len(shapes):
                self.gather(place, [source], made, [axis])
            else:
                pipe, sizes = self.parts[done], shapes[done]
                target = Held(kw.fill(pipe, "vector"), dense(sizes))
                whole = Place(place.starts, tuple(Extent(n) for n in sizes))
                self.gather(whole, [source], target, [axis])
                kw.filled(pipe, "vector")
                kw.take(pipe, "vector")
                source = target
        for pipe in self.parts:
            kw.done(pipe, "vector")

    def gather(self, place: Place, sources: list[Held], made: Held, axes: list[int]) -> None:
        """Each phase along these axes takes its share from all results that reach it."""
        b, w = self.b, self.w
        for phases in product(*(b.phases(a) for a in axes)):
            dims = list(zip(place.extents, made.strides, strict=True))
            corner = 0
            for a, phase in zip(axes, phases, strict=True):
                corner += phase * made.strides[a]
                dims[a] = self.every(place, a, phase), made.strides[a] * w.strides[a]
            reads, code = [], []
            for taps in product(*(b.reaching(a, p) for a, p in zip(axes, phases, strict=True))):
                at = dict(zip(axes, taps, strict=True))
                for held in sources:
                    offset = sum(shift * held.strides[a] for a, (_, shift) in at.items())
                    steps = zip((e for e, _ in dims), held.strides, strict=True)
                    reads.append(held.view(tuple(steps), Affine(offset)))
                share = [f"s{len(reads) - len(sources)}"]
                if self.maximum:
                    position = 0
                    for a in range(w.rank):
                        position = position * w.kernel[a] + at.get(a, (0, 0))[0]
                    share += [f"s{len(reads) - 1}", float(position), "eq", "mul"]
                code += [*share, "add"] if code else share
            target = made.view(tuple(dims), Affine(corner))
            self.kw.emit(Map(self.kw.node, target, tuple(reads), tuple(code) or (0.0,)))

    def every(self, place: Place, axis: int, phase: int) -> Extent:
        """How many places of the tile are in a phase."""
        stride, extent = self.w.strides[axis], place.extents[axis]
        if extent.limit is None:
            return Extent(-(-(extent.size - phase) // stride))
        start = place.starts[axis]
        behind = Affine(0, tuple((v, -k // stride) for v, k in start.terms))
        total = -(-(self.space[axis] - phase - start.const) // stride)
        return Extent(-(-(extent.size - phase) // stride), behind + total)
