"""Tiling of vector and copy kernels: boxes over one index space, operands loaded where they move.

All kernels of this kind sweep an index space (the result's shape, or what is reduced).  An operand
has, for each dimension of the space, either the same extent or 1 (it repeats).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod

from ccnn.compiler.codegen.emit import KernelWriter, Pipe, view
from ccnn.compiler.codegen.place import Held
from ccnn.compiler.codegen.scope import Scope, dense
from ccnn.targets.program import ZERO, Affine, Dim, Extent, Load, Store, View


def choose_tile(
    space: Sequence[int],
    fits: Callable[[tuple[int, ...]], bool],
    multiples: Sequence[int] = (),
    order: Sequence[int] = (),
) -> tuple[int, ...]:
    """The largest box that fits, cutting dims in `order` (default: outermost first).

    A dim is cut into equal parts, as few as needed; the part is rounded up to a multiple where
    one is given.  Ends at a box that does not fit only when nothing is left to cut.
    """
    tile = list(space)
    multiples = multiples or [1] * len(tile)
    for axis in order or range(len(tile)):
        if fits(tuple(tile)):
            break
        low, high = 1, -(-space[axis] // multiples[axis])
        while low < high:  # the largest number of multiples that fits
            middle = (low + high + 1) // 2
            tile[axis] = min(space[axis], middle * multiples[axis])
            low, high = (middle, high) if fits(tuple(tile)) else (low, middle - 1)
        parts = -(-space[axis] // min(space[axis], low * multiples[axis]))
        even = -(-space[axis] // parts)
        tile[axis] = min(space[axis], -(-even // multiples[axis]) * multiples[axis])
    return tuple(tile)


@dataclass(frozen=True)
class Place:
    """Where the present tile is: start and (possibly clipped) extent of each dim."""

    starts: tuple[Affine, ...]
    extents: tuple[Extent, ...]


@dataclass(frozen=True)
class Source:
    """An operand to read: its tensor, its shape padded in front with ones to the rank of the
    space, its own rank, and the pipe it comes through (None when it stays in the buffer)."""

    tensor: str
    shape: tuple[int, ...]
    rank: int
    pipe: Pipe | None


def aligned(shape: Sequence[int], rank: int) -> tuple[int, ...]:
    """A shape padded in front with ones."""
    return (1,) * (rank - len(shape)) + tuple(shape)


def operand_tile(shape: Sequence[int], tile: Sequence[int]) -> tuple[int, ...]:
    """The part of a tile that an operand of this (aligned) shape has."""
    return tuple(1 if d == 1 else t for d, t in zip(shape, tile, strict=True))


def spread(extents: Sequence[Extent], tile: Sequence[int]) -> tuple[Dim, ...]:
    """Dims over the whole space for an operand with its own tile: stride 0 where it repeats."""
    return tuple(
        (extent, stride if size > 1 or extent.size == 1 else 0)
        for extent, size, stride in zip(extents, tile, dense(tuple(tile)), strict=True)
    )


class Sweep:
    """Writes the loops over a space and brings each operand in where it moves."""

    def __init__(
        self,
        kw: KernelWriter,
        scope: Scope,
        space: Sequence[int],
        tile: Sequence[int],
        order: Sequence[int] = (),
    ) -> None:
        """`order` lists the dims from the outermost loop in (default: as they are)."""
        self.kw, self.scope = kw, scope
        self.space, self.tile = tuple(space), tuple(tile)
        self.order = tuple(order) or tuple(range(len(space)))

    def trips(self, axis: int) -> int:
        """Tiles along a dim."""
        return -(-self.space[axis] // self.tile[axis])

    def depth(self, shape: Sequence[int]) -> int:
        """How many loops are outside the load of an operand of this aligned shape."""
        return max(
            (
                i + 1
                for i, axis in enumerate(self.order)
                if shape[axis] > 1 and self.trips(axis) > 1
            ),
            default=0,
        )

    def source(self, name: str, tensor: str, engine: str = "vector") -> Source:
        """Declare an operand that `engine` reads."""
        own = self.scope.graph[tensor].shape
        shape = aligned(own, len(self.space))
        if tensor in self.scope.regions:
            return Source(tensor, shape, len(own), None)
        size = prod(operand_tile(shape, self.tile))
        slots = 2 if self.depth(shape) else 1
        dtype = self.scope.dtypes[tensor]
        pipe = self.kw.pipe(name, "gbuf", dtype, size, slots, "load", engine)
        return Source(tensor, shape, len(own), pipe)

    def run(
        self,
        sources: Sequence[Source],
        engine: str,
        body: Callable[[Place, list[Held]], None],
        hooks: dict[int, tuple[Callable[[Place], None], Callable[[Place], None]]] | None = None,
    ) -> None:
        """Call body for each tile with where the sources lie; `engine` is what reads them.

        hooks: loop depth to a pair called before and after what is inside that depth.
        """
        held: dict[int, Held] = {}
        rank = len(self.space)

        def descend(depth: int, starts: list[Affine], extents: list[Extent]) -> None:
            place = Place(tuple(starts), tuple(extents))
            mine = [i for i, s in enumerate(sources) if self.depth(s.shape) == depth]
            for i in mine:
                held[i] = self.bring(sources[i], place, engine)
            if hooks and depth in hooks:
                hooks[depth][0](place)
            if depth == rank:
                body(place, [held[i] for i in range(len(sources))])
            else:
                axis = self.order[depth]
                total, size = self.space[axis], self.tile[axis]
                with self.kw.loop(self.trips(axis)) as index:
                    start = index * size
                    limit = None if total % size == 0 else Affine(total) - start
                    now, sizes = list(starts), list(extents)
                    now[axis], sizes[axis] = start, Extent(size, limit)
                    descend(depth + 1, now, sizes)
            if hooks and depth in hooks:
                hooks[depth][1](place)
            for i in mine:
                pipe = sources[i].pipe
                if pipe:
                    self.kw.done(pipe, engine)

        whole = [Extent(t) for t in self.tile]
        descend(0, [ZERO] * rank, whole)

    def own(
        self, shape: Sequence[int], rank: int, place: Place
    ) -> tuple[tuple[Affine, ...], tuple[Extent, ...]]:
        """Start and extents of a tile in a tensor of this (aligned) shape and own rank."""
        kept = range(len(self.space) - rank, len(self.space))
        starts = tuple(place.starts[a] if shape[a] > 1 else ZERO for a in kept)
        return starts, tuple(place.extents[a] if shape[a] > 1 else Extent(1) for a in kept)

    def bring(self, source: Source, place: Place, engine: str) -> Held:
        """The tile of one operand: where it stays, or freshly loaded."""
        kw = self.kw
        starts, extents = self.own(source.shape, source.rank, place)
        if source.pipe is None:
            held = self.scope.held(source.tensor, starts)
            pad = (0,) * (len(self.space) - source.rank)
            return replace(held, strides=(*pad, *held.strides))
        ticket = kw.fill(source.pipe, "load")
        strides = dense(operand_tile(source.shape, self.tile))
        kept = strides[len(strides) - source.rank :]
        target = view(ticket, tuple(zip(extents, kept, strict=True)))
        where = self.scope.in_dram(source.tensor, starts)
        kw.emit(Load(kw.node, target, source.tensor, where, (1,) * source.rank))
        kw.filled(source.pipe, "load")
        kw.take(source.pipe, engine)
        return Held(ticket, strides)

    def operand(self, source: Source, held: Held, place: Place) -> View:
        """The operand as an instruction reads it over the whole tile."""
        return held.view(
            tuple(
                (extent, stride if size > 1 or whole == 1 else 0)
                for extent, stride, size, whole in zip(
                    place.extents, held.strides, source.shape, self.space, strict=True
                )
            )
        )

    def result(
        self, pipe: Pipe | None, tensor: str, shape: Sequence[int], rank: int, place: Place
    ) -> Held:
        """Where a tile of a result goes: a fresh slot, or its place in the region that keeps it."""
        if pipe is None:
            starts, _ = self.own(shape, rank, place)
            held = self.scope.held(tensor, starts)
            pad = (0,) * (len(self.space) - rank)
            return replace(held, strides=(*pad, *held.strides))
        return Held(self.kw.fill(pipe, "vector"), dense(operand_tile(shape, self.tile)))

    def out_pipe(self, name: str, tensor: str, size: int) -> Pipe | None:
        """The pipe a result leaves through; None when it stays in the buffer."""
        if tensor in self.scope.regions:
            return None
        return self.kw.pipe(name, "gbuf", self.scope.dtypes[tensor], size, 2, "vector", "store")

    def store(
        self,
        pipe: Pipe | None,
        held: Held,
        tensor: str,
        shape: Sequence[int],
        rank: int,
        place: Place,
    ) -> None:
        """The result is written: send it to DRAM, unless it stays."""
        if pipe is None:
            return
        kw = self.kw
        starts, extents = self.own(shape, rank, place)
        kw.filled(pipe, "vector")
        kw.take(pipe, "store")
        kept = held.strides[len(held.strides) - rank :]
        source = held.view(tuple(zip(extents, kept, strict=True)))
        where = self.scope.in_dram(tensor, starts)
        kw.emit(Store(kw.node, tensor, where, (1,) * rank, source))
        kw.done(pipe, "store")
