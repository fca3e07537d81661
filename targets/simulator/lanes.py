"""The meaning of the vector instructions, as closures.

Every step is computed in the accumulation type and rounded once, when written.  Sums over axes
are numpy's pairwise sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from ccnn.targets.program import Code, Map, Random, Reduce, View
from ccnn.targets.simulator.access import Context, compile_sizes, compile_view
from ccnn.targets.simulator.affine import Scope, compile_affine
from ccnn.targets.simulator.errors import SimulationError
from ccnn.targets.simulator.memory import narrow, widen
from ccnn.targets.simulator.moves import Step
from ccnn.targets.simulator.uniform import uniform
from ccnn.targets.vector import check_code, evaluate

COMBINE: dict[str, np.ufunc] = {"sum": np.add, "max": np.maximum, "min": np.minimum}
"""What each accumulating kind of VRED combines with."""


Part = tuple[int, slice]
"""An axis, and which of its places."""


def _compute(
    ctx: Context, i: Map | Reduce, code: Code, scope: Scope
) -> Callable[[Part | None], np.ndarray]:
    """A closure for the value of `code`, of all or a part, broadcastable to what is swept of it."""
    what, accum = ctx.place(i), ctx.accum
    problem = check_code(code, len(i.srcs), len(i.scalars))
    if problem is not None:
        raise SimulationError(f"{what}: {problem}")
    views = [compile_view(ctx, v, scope, what, compact=True) for v in i.srcs]
    sources = [(g, ctx.gbuf(v.buffer).buffer.dtype) for g, v in zip(views, i.srcs, strict=True)]
    scalars = [compile_affine(a, scope, ctx.env) for a in i.scalars]

    def value(part: Part | None = None) -> np.ndarray:
        operands = [widen(_part_of(get(), part), dtype, accum) for get, dtype in sources]
        return evaluate(code, operands, [s() for s in scalars], accum)

    return value


def _part_of(operand: np.ndarray, part: Part | None) -> np.ndarray:
    if part is None or operand.shape[part[0]] == 1:
        return operand
    return operand[(slice(None),) * part[0] + (part[1],)]


def map_lanes(ctx: Context, i: Map, scope: Scope) -> Step:
    """VMAP: code, element by element."""
    dst = compile_view(ctx, i.dst, scope, ctx.place(i), compact=False)
    target = ctx.gbuf(i.dst.buffer).buffer.dtype
    value = _compute(ctx, i, i.code, scope)
    what = ctx.place(i)

    def run() -> None:
        result, into = narrow(value(None), target), dst()
        try:
            into[...] = result
        except ValueError as error:
            raise SimulationError(
                f"{what}: sources of shape {result.shape} do not fit a destination {into.shape}"
            ) from error

    return run


def _kept(view: View, axes: tuple[int, ...]) -> View:
    """The destination with one element along each reduced axis."""
    dims = tuple((type(e)(1), 0) if d in axes else (e, s) for d, (e, s) in enumerate(view.dims))
    return View(view.buffer, dims, view.offset, view.slot)


def reduce_lanes(ctx: Context, i: Reduce, scope: Scope) -> Step:
    """VRED: code over the swept space, then sum, max, min or argmax over axes."""
    what, accum, kind = ctx.place(i), ctx.accum, i.kind
    if kind not in COMBINE and kind != "argmax":
        raise SimulationError(f"{what}: no such kind of reduction: {kind}")
    dst = compile_view(ctx, _kept(i.dst, i.axes), scope, what, compact=False)
    target = ctx.gbuf(i.dst.buffer).buffer.dtype
    value = _compute(ctx, i, i.code, scope)
    swept = i.srcs[0].dims if i.srcs else i.dst.dims
    sizes = compile_sizes(swept, scope, ctx.env)
    accumulate = compile_affine(i.accumulate, scope, ctx.env)
    axes, rank = tuple(sorted(i.axes)), len(swept)
    kept = tuple(d for d in range(rank) if d not in axes)

    def positions(space: np.ndarray) -> np.ndarray:
        """The place of the first maximum within the reduced axes, these kept as size 1."""
        last = space.transpose(*kept, *axes)
        count = math.prod(last.shape[len(kept) :])
        best = last.reshape(*last.shape[: len(kept)], count).argmax(axis=-1)
        return np.expand_dims(best, axes)

    def reduced(part: Part | None, shape: tuple[int, ...]) -> np.ndarray:
        space = np.broadcast_to(value(part), shape)
        if kind == "argmax":
            return positions(space)
        if kind == "sum":
            return tree_sum(space, axes, kept, accum)
        return COMBINE[kind].reduce(space, axis=axes, dtype=accum, keepdims=True)

    def run() -> None:
        into = dst()
        parts = list(_parts(sizes(), kept))
        found, (first, _) = [reduced(*each) for each in parts], parts[0]
        result = np.concatenate(found, first[0]) if first else found[0]
        if kind != "argmax" and accumulate() > 0:
            result = COMBINE[kind](widen(into, target, accum), result)
        into[...] = narrow(result, target)

    return run


_AT_ONCE = 2**22
"""Elements that a reduction computes at a time, which keeps the memory it takes small."""


def _parts(
    shape: tuple[int, ...], kept: tuple[int, ...]
) -> Iterator[tuple[Part | None, tuple[int, ...]]]:
    """The parts of a swept space that are reduced one by one, and the shape of each: cut along the
    first axis that is kept, on which no result depends on another."""
    volume = math.prod(shape)
    axis = next((a for a in kept if shape[a] > 1), None)
    if volume <= _AT_ONCE or axis is None:
        yield None, shape
        return
    size = shape[axis]
    step = max(1, size * _AT_ONCE // volume)
    for first in range(0, size, step):
        last = min(size, first + step)
        yield (axis, slice(first, last)), (*shape[:axis], last - first, *shape[axis + 1 :])


_SHORT = 8
"""numpy adds so few elements one by one along any axis."""


def tree_sum(
    space: np.ndarray, axes: tuple[int, ...], kept: tuple[int, ...], accum: np.dtype
) -> np.ndarray:
    """The sum over axes, these kept as size 1, as an adder tree takes it: in pairs of pairs.

    numpy adds in pairs along a last, contiguous axis only; over outer axes it adds one by one,
    and rounding grows with the number of rows.
    """
    count = math.prod(space.shape[a] for a in axes)
    if count <= _SHORT:
        return np.add.reduce(space, axis=axes, dtype=accum, keepdims=True)
    rows = space.transpose(*kept, *axes).reshape(*(space.shape[k] for k in kept), count)
    total = np.add.reduce(np.ascontiguousarray(rows, accum), axis=-1, dtype=accum)
    return np.expand_dims(total, axes)


def random_lanes(ctx: Context, i: Random, scope: Scope) -> Step:
    """VRAND: uniform numbers in [0, 1)."""
    dst = compile_view(ctx, i.dst, scope, ctx.place(i), compact=False)
    target = ctx.gbuf(i.dst.buffer).buffer.dtype
    start = compile_affine(i.start, scope, ctx.env)

    def run() -> None:
        into = dst()
        numbers = uniform(i.seed, ctx.step, start(), into.size).astype(ctx.accum)
        into[...] = narrow(numbers, target).reshape(into.shape)

    return run
