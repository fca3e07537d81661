"""Nodes that only move: transpose, slice, pad and concat.

From DRAM to DRAM they go by way of a slot of the buffer, untouched by the vector unit; as soon as
one side stays in the buffer, the vector unit copies between the two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

from ccnn.compiler.codegen.emit import KernelWriter, Pipe, view
from ccnn.compiler.codegen.place import Held
from ccnn.compiler.codegen.scope import Scope, dense, view_of
from ccnn.compiler.codegen.tiles import Place, Sweep, choose_tile
from ccnn.passes.graph import Node
from ccnn.targets.program import Affine, Dim, Load, Map, Store

Starts = tuple[Affine, ...]

Read = Callable[[Starts], tuple[Starts, tuple[int, ...], Sequence[int], float]]
"""Start of a tile to: where the source is read and with which steps, which dim of the space each
dim of the source is, and the fill."""

Write = Callable[[Starts], tuple[Starts, tuple[int, ...]]]
"""Start of a tile to: where it goes in the target and with which steps."""


def _sweep(
    scope: Scope, kw: KernelWriter, tensor: str, space: Sequence[int]
) -> tuple[Sweep, tuple[int, ...]]:
    def fits(tile: tuple[int, ...]) -> bool:
        return 2 * prod(tile) * scope.width(tensor) + 256 <= scope.budget // 4

    tile = choose_tile(space, fits)
    return Sweep(kw, scope, space, tile), tile


def _copy(
    scope: Scope,
    kw: KernelWriter,
    name: str,
    source: str,
    target: str,
    space: Sequence[int],
    read: Read,
    write: Write,
) -> None:
    """Copy tile by tile from source to target."""
    sweep, tile = _sweep(scope, kw, target, space)
    stays = source in scope.regions, target in scope.regions
    giver = "vector" if stays[0] else "load"
    taker = "vector" if stays[1] else "store"
    pipe = None
    if not all(stays):
        slot = prod(tile)
        pipe = kw.pipe(name, "gbuf", scope.dtypes[target], slot, 2, giver, taker)
    strides = dense(tile)

    def body(place: Place, _: list[Held]) -> None:
        starts, steps, order, fill = read(place.starts)
        where, jumps = write(place.starts)
        if pipe is None:
            _inside(scope, kw, place, (source, starts, steps, order), (target, where, jumps))
            return
        ticket = kw.fill(pipe, giver)
        dims: list[Dim] = list(zip(place.extents, strides, strict=True))
        block = view(ticket, tuple(dims[a] for a in order))
        if stays[0]:
            held = scope.held(source, starts)
            reads = tuple(
                (place.extents[a], stride * step)
                for a, stride, step in zip(order, held.strides, steps, strict=True)
            )
            kw.emit(Map(kw.node, block, (held.view(reads),), ("s0",)))
        else:
            at = scope.in_dram(source, starts)
            kw.emit(Load(kw.node, block, source, at, steps, fill))
        kw.filled(pipe, giver)
        kw.take(pipe, taker)
        if stays[1]:
            held = scope.held(target, where)
            lands = tuple(
                (e, stride * jump)
                for e, stride, jump in zip(place.extents, held.strides, jumps, strict=True)
            )
            kw.emit(Map(kw.node, held.view(lands), (view(ticket, tuple(dims)),), ("s0",)))
        else:
            at = scope.in_dram(target, where)
            kw.emit(Store(kw.node, target, at, jumps, view(ticket, tuple(dims))))
        kw.done(pipe, taker)

    sweep.run([], taker, body)


def _inside(
    scope: Scope,
    kw: KernelWriter,
    place: Place,
    source: tuple[str, Starts, tuple[int, ...], Sequence[int]],
    target: tuple[str, Starts, tuple[int, ...]],
) -> None:
    """A tile from one region to another."""
    name, starts, steps, order = source
    held = scope.held(name, starts)
    reads: list[Dim] = [(e, 0) for e in place.extents]
    for axis, stride, step in zip(order, held.strides, steps, strict=True):
        reads[axis] = (place.extents[axis], stride * step)
    to, where, jumps = target
    made = scope.held(to, where)
    lands = tuple(
        (e, stride * jump)
        for e, stride, jump in zip(place.extents, made.strides, jumps, strict=True)
    )
    kw.emit(Map(kw.node, made.view(lands), (held.view(tuple(reads)),), ("s0",)))


def write_transpose(scope: Scope, kw: KernelWriter, node: Node) -> None:
    """Result dim i is input dim perm[i]."""
    perm = node.attr("perm")
    rank = len(perm)
    back = [perm.index(a) for a in range(rank)]
    ones = (1,) * rank
    _copy(
        scope,
        kw,
        "t",
        node.inputs[0],
        node.outputs[0],
        scope.graph[node.outputs[0]].shape,
        lambda at: (tuple(at[b] for b in back), ones, back, 0.0),
        lambda at: (at, ones),
    )


def write_slice(scope: Scope, kw: KernelWriter, node: Node) -> None:
    """Result[i] = input[start + i*step]."""
    starts, steps = node.attr("starts"), tuple(node.attr("steps"))
    rank = len(steps)
    _copy(
        scope,
        kw,
        "t",
        node.inputs[0],
        node.outputs[0],
        scope.graph[node.outputs[0]].shape,
        lambda at: (
            tuple(a * k + s for a, k, s in zip(at, steps, starts, strict=True)),
            steps,
            range(rank),
            0.0,
        ),
        lambda at: (at, (1,) * rank),
    )


def write_concat(scope: Scope, kw: KernelWriter, node: Node) -> None:
    """Each input lands behind the one before."""
    axis, offset = node.attr("axis"), 0
    for i, name in enumerate(node.inputs):
        shape = scope.graph[name].shape
        ones = (1,) * len(shape)

        def write(at: Starts, offset: int = offset, ones: tuple[int, ...] = ones):
            return tuple(s + offset if a == axis else s for a, s in enumerate(at)), ones

        def read(at: Starts, ones: tuple[int, ...] = ones):
            return at, ones, range(len(ones)), 0.0

        _copy(scope, kw, f"t{i}", name, node.outputs[0], shape, read, write)
        offset += shape[axis]


def write_back(scope: Scope, kw: KernelWriter, node: Node) -> None:
    """Copy the new value of a state tensor over the old one."""
    shape = scope.graph[node.inputs[0]].shape
    ones = (1,) * len(shape)
    _copy(
        scope,
        kw,
        "t",
        node.inputs[0],
        node.outputs[0],
        shape,
        lambda at: (at, ones, range(len(ones)), 0.0),
        lambda at: (at, ones),
    )


def write_pad(scope: Scope, kw: KernelWriter, node: Node) -> None:
    """Constants around (negative: cut away) and, with `interior`, zeros between the elements."""
    before, value = node.attr("before"), float(node.attr("value", 0.0))
    source, target = node.inputs[0], node.outputs[0]
    shape, rank = scope.graph[target].shape, len(before)
    ones = (1,) * rank
    interior = node.attr("interior", (0,) * rank)
    if not any(interior) and source not in scope.regions:  # a load fills what lies outside
        _copy(
            scope,
            kw,
            "t",
            source,
            target,
            shape,
            lambda at: (
                tuple(a - b for a, b in zip(at, before, strict=True)),
                ones,
                range(rank),
                value,
            ),
            lambda at: (at, ones),
        )
        return
    steps = tuple(i + 1 for i in interior)
    own = scope.graph[source].shape
    # What of the source is not cut away: the first and the last element that land in the target.
    first = tuple(max(0, -(b // k)) for b, k in zip(before, steps, strict=True))
    last = tuple(
        min(n - 1, (size - 1 - b) // k)
        for n, size, b, k in zip(own, shape, before, steps, strict=True)
    )
    kept = tuple(z - a + 1 for a, z in zip(first, last, strict=True))
    if kept != shape:
        _fill(scope, kw, "f", target, shape, value, (0,) * rank)
    if min(kept) < 1:
        return
    if value and any(interior):
        inside = tuple((n - 1) * k + 1 for n, k in zip(kept, steps, strict=True))
        corner = tuple(f * k + b for f, k, b in zip(first, steps, before, strict=True))
        _fill(scope, kw, "z", target, inside, 0.0, corner)

    def write(at: Starts) -> tuple[Starts, tuple[int, ...]]:
        axes = zip(at, first, steps, before, strict=True)
        return tuple(a * k + (f * k + b) for a, f, k, b in axes), steps

    def read(at: Starts) -> tuple[Starts, tuple[int, ...], Sequence[int], float]:
        return tuple(a + f for a, f in zip(at, first, strict=True)), ones, range(rank), 0.0

    _copy(scope, kw, "t", source, target, kept, read, write)


def _fill(
    scope: Scope,
    kw: KernelWriter,
    name: str,
    target: str,
    shape: Sequence[int],
    value: float,
    corner: Sequence[int],
) -> None:
    """Write one value over a block; the copy that follows is behind it in the same engine."""
    if target in scope.regions:
        held = scope.held(target, tuple(Affine(b) for b in corner))
        kw.emit(Map(kw.node, view_of(held, tuple(shape)), (), (value,)))
        return
    sweep, tile = _sweep(scope, kw, target, shape)
    pipe: Pipe = kw.pipe(name, "gbuf", scope.dtypes[target], prod(tile), 2, "vector", "store")
    strides = dense(tile)

    def body(place: Place, _: list[Held]) -> None:
        ticket = kw.fill(pipe, "vector")
        block = view(ticket, tuple(zip(place.extents, strides, strict=True)))
        kw.emit(Map(kw.node, block, (), (value,)))
        kw.filled(pipe, "vector")
        kw.take(pipe, "store")
        starts = tuple(s + b for s, b in zip(place.starts, corner, strict=True))
        at = scope.in_dram(target, starts)
        kw.emit(Store(kw.node, target, at, (1,) * len(starts), block))
        kw.done(pipe, "store")

    sweep.run([], "vector", body)
