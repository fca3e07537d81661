"""Vector-unit nodes: map, reduce and random."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from ccnn.compiler.codegen.emit import KernelWriter
from ccnn.compiler.codegen.place import Held
from ccnn.compiler.codegen.scope import Scope, dense
from ccnn.compiler.codegen.tiles import (
    Place,
    Source,
    Sweep,
    aligned,
    choose_tile,
    operand_tile,
)
from ccnn.passes.expr import Expr, operands_of, parse_expr
from ccnn.passes.graph import Node
from ccnn.targets.program import (
    DTYPE_BYTES,
    ZERO,
    Affine,
    Code,
    Extent,
    Map,
    Random,
    Reduce,
)


def postfix(e: Expr) -> Code:
    """An expression as the vector unit's postfix code; input i is source operand i."""
    if e.kind == "in":
        return (f"s{int(e.value)}",)
    if e.kind == "num":
        return (float(e.value),)
    return (*(token for a in e.args for token in postfix(a)), e.kind)


def only_used(e: Sequence[Expr]) -> dict[int, int]:
    """Input number to its place among the inputs that the code really reads."""
    used = sorted(frozenset().union(*(operands_of(x) for x in e)))
    return {number: place for place, number in enumerate(used)}


def renumber(code: Code, places: dict[int, int]) -> Code:
    """The code with its operands at these places."""
    return tuple(
        f"s{places[int(t[1:])]}" if isinstance(t, str) and t[0] == "s" and t[1:].isdigit() else t
        for t in code
    )


def tile_bytes(scope: Scope, names: Sequence[str], tile: Sequence[int], slots: int = 2) -> int:
    """Bytes of the pipes for tiles of these tensors; what stays in the buffer takes none."""
    return sum(
        -(
            -prod(operand_tile(aligned(scope.graph[n].shape, len(tile)), tile))
            * scope.width(n)
            * slots
            // 64
        )
        * 64
        for n in names
        if n not in scope.regions
    )


def _loop_order(sources: Sequence[Source], space: Sequence[int]) -> list[int]:
    """Dims from the outermost loop in: first those that move most of what repeats elsewhere.

    An operand that repeats along a dim is then not loaded again for each tile of that dim.
    """
    whole = prod(space)
    repeating = [s.shape for s in sources if prod(s.shape) < whole]

    def moved(axis: int) -> int:
        return sum(prod(shape) for shape in repeating if shape[axis] > 1)

    return sorted(range(len(space)), key=moved, reverse=True)


def write_map(scope: Scope, kw: KernelWriter, node: Node) -> None:
    """Each result = its expression over the broadcast inputs, tile by tile."""
    exprs = [parse_expr(t) for t in node.attr("exprs", ("a",))]  # `expand` is a map that copies
    places = only_used(exprs)
    names = [node.inputs[i] for i in places]
    out = scope.graph[node.outputs[0]].shape
    space = out or (1,)
    tile = choose_tile(
        space, lambda t: tile_bytes(scope, [*names, *node.outputs], t) <= scope.budget
    )
    shapes = [Source(n, aligned(scope.graph[n].shape, len(space)), 0, None) for n in names]
    sweep = Sweep(kw, scope, space, tile, _loop_order(shapes, space))
    sources = [sweep.source(f"x{i}", n) for i, n in enumerate(names)]
    results = [sweep.out_pipe(f"y{i}", o, prod(tile)) for i, o in enumerate(node.outputs)]

    def body(place: Place, held: list[Held]) -> None:
        reads = tuple(sweep.operand(s, h, place) for s, h in zip(sources, held, strict=True))
        for pipe, name, e in zip(results, node.outputs, exprs, strict=True):
            made = sweep.result(pipe, name, space, len(out), place)
            target = made.view(tuple(zip(place.extents, made.strides, strict=True)))
            kw.emit(Map(kw.node, target, reads, renumber(postfix(e), places)))
            sweep.store(pipe, made, name, space, len(out), place)

    sweep.run(sources, "vector", body)


def kept_shape(space: Sequence[int], axes: Sequence[int]) -> tuple[int, ...]:
    """The space with the reduced axes of size one."""
    return tuple(1 if a in axes else d for a, d in enumerate(space))


def write_reduce(scope: Scope, kw: KernelWriter, node: Node) -> None:
    """Map, then reduce over axes; partial results stay in the global buffer."""
    _Reduction(scope, kw, node).write()


class _Reduction:
    """Writes one `reduce` node."""

    def __init__(self, scope: Scope, kw: KernelWriter, node: Node) -> None:
        self.scope, self.kw, self.node = scope, kw, node
        self.exprs = [parse_expr(t) for t in node.attr("exprs")]
        self.places = only_used(self.exprs)
        names = [node.inputs[i] for i in self.places]
        shapes = [scope.graph[i].shape for i in node.inputs]
        space = np.broadcast_shapes(*shapes) or (1,)
        self.axes = axes = tuple(node.attr("axes"))
        self.kept = kept_shape(space, axes)
        outer = [a for a in range(len(space)) if a not in axes]

        def fits(tile: tuple[int, ...]) -> bool:
            held = prod(operand_tile(self.kept, tile))
            results = len(self.exprs) * held * (2 * 8 + DTYPE_BYTES[scope.accum])
            return tile_bytes(scope, names, tile) + results + 256 <= scope.budget

        # rows and planes stay whole as long as they can: fewer partial sums to add up
        tile = choose_tile(space, fits)
        self.sweep = Sweep(kw, scope, space, tile, [*outer, *axes])
        self.sources = [self.sweep.source(f"x{i}", n) for i, n in enumerate(names)]
        self.own = operand_tile(self.kept, tile)
        self.outer = len(outer)
        self.rank = len(scope.graph[node.outputs[0]].shape)
        self.held: dict[int, Held] = {}

    def write(self) -> None:
        hooks = {self.outer: (self.open, self.close)}
        self.sweep.run(self.sources, "vector", self.body, hooks)

    def summed(self, name: str) -> bool:
        """True when the result gathers over the iterations of a group, in a region."""
        return name in self.scope.sums

    def open(self, place: Place) -> None:
        for i, name in enumerate(self.node.outputs):
            if self.summed(name):
                starts, _ = self.sweep.own(self.kept, len(self.kept), place)
                strides = dense(self.kept)
                offset = ZERO
                for start, stride in zip(starts, strides, strict=True):
                    offset = offset + start * stride
                self.held[i] = Held(self.scope.sums[name], strides, offset)
                continue
            size = prod(self.own)
            pipe = self.kw.pipe(f"a{i}", "gbuf", self.scope.accum, size, 1, "vector", "vector")
            self.held[i] = Held(self.kw.fill(pipe, "vector"), dense(self.own))

    def body(self, place: Place, held: list[Held]) -> None:
        sweep, node = self.sweep, self.node
        reads = tuple(sweep.operand(s, h, place) for s, h in zip(self.sources, held, strict=True))
        first = ZERO
        for a in self.axes:
            first = first + place.starts[a]
        split = any(sweep.trips(a) > 1 for a in self.axes)
        for i, (e, name) in enumerate(zip(self.exprs, node.outputs, strict=True)):
            target = self.held[i].view(
                tuple(
                    (extent, 0 if a in self.axes else stride)
                    for a, (extent, stride) in enumerate(
                        zip(place.extents, self.held[i].strides, strict=True)
                    )
                )
            )
            adds = first if split else ZERO
            if self.summed(name) and not self.scope.fresh:
                adds = Affine(1)
            code = renumber(postfix(e), self.places)
            kind = node.attr("kind")
            self.kw.emit(Reduce(self.kw.node, kind, self.axes, target, reads, code, (), adds))

    def close(self, place: Place) -> None:
        kw, sweep = self.kw, self.sweep
        extents = [Extent(1) if a in self.axes else e for a, e in enumerate(place.extents)]
        for i, name in enumerate(self.node.outputs):
            if self.summed(name) and not self.scope.final:
                continue
            pipe = sweep.out_pipe(f"y{i}", name, prod(self.own))
            if not self.summed(name):
                sums = self.held[i].ticket.pipe  # type: ignore[union-attr]
                kw.filled(sums, "vector")
                kw.take(sums, "vector")
            made = sweep.result(pipe, name, self.kept, self.rank, place)
            target = made.view(tuple(zip(extents, made.strides, strict=True)))
            source = self.held[i].view(tuple(zip(extents, self.held[i].strides, strict=True)))
            kw.emit(Map(kw.node, target, (source,), ("s0",)))
            if not self.summed(name):
                kw.done(self.held[i].ticket.pipe, "vector")  # type: ignore[union-attr]
            sweep.store(pipe, made, name, self.kept, self.rank, place)


def write_random(scope: Scope, kw: KernelWriter, node: Node) -> None:
    """Uniform numbers: element i of the result is the i-th of the stream `seed`."""
    out = node.outputs[0]
    shape = scope.graph[out].shape or (1,)
    rank = len(scope.graph[out].shape)
    # row-major positions follow each other only in blocks that are cut outermost first
    tile = choose_tile(shape, lambda t: tile_bytes(scope, [out], t) <= scope.budget)
    sweep = Sweep(kw, scope, shape, tile)
    pipe = sweep.out_pipe("y0", out, prod(tile))

    def body(place: Place, _: list[Held]) -> None:
        made = sweep.result(pipe, out, shape, rank, place)
        starts = scope.in_dram(out, place.starts) if rank else place.starts
        start = ZERO
        for at, stride in zip(starts, dense(shape), strict=True):
            start = start + at * stride
        target = made.view(tuple(zip(place.extents, made.strides, strict=True)))
        kw.emit(Random(kw.node, target, int(node.attr("seed")), start))
        sweep.store(pipe, made, out, shape, rank, place)

    sweep.run([], "vector", body)
