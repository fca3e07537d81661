"""The meaning of the DRAM, buffer and array instructions, as closures."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ccnn.targets.program import (
    Affine,
    Drain,
    Exec,
    ExecOS,
    Load,
    LoadH,
    LoadV,
    Placed,
    Shift,
    Store,
    View,
)
from ccnn.targets.simulator.access import (
    Array,
    Context,
    compile_patch,
    compile_sizes,
    compile_tile,
    compile_view,
    read_tile,
    round_to,
)
from ccnn.targets.simulator.affine import (
    Scope,
    affine_range,
    compile_affine,
    compile_extent,
    compile_many,
    fixed_extent,
)
from ccnn.targets.simulator.errors import SimulationError
from ccnn.targets.simulator.memory import DTYPES, narrow, raw_dtype, widen

Step = Callable[[], None]


def element_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The row-major strides of a tensor, in elements."""
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= n
    return tuple(reversed(strides))


def inside(start: int, step: int, count: int, size: int) -> tuple[int, int]:
    """The range [low, high) of i in [0, count) for which start + step * i lies in [0, size)."""
    if step < 0:
        low, high = inside(start + step * (count - 1), -step, count, size)
        return (count - high, count - low) if high > low else (0, 0)
    if step == 0:
        return (0, count) if 0 <= start < size else (0, 0)
    low = max(0, -(start // step))
    high = min(count, -((start - size) // step))
    return (low, high) if high > low else (0, 0)


def _tensor_box(
    ctx: Context, i: Load | Store, view: View, scope: Scope
) -> tuple[Placed, Array | None, Callable]:
    """(tensor, view of the box when it never leaves the tensor, general box finder)."""
    tensor = ctx.memory.placed(i.tensor)
    what = ctx.place(i)
    if not len(view.dims) == len(i.start) == len(i.step) == len(tensor.shape):
        raise SimulationError(
            f"{what}: {len(view.dims)} dims, {len(i.start)} starts and {len(i.step)} steps for "
            f"tensor {tensor.name} of rank {len(tensor.shape)}; they must be as many"
        )
    raw, data = raw_dtype(tensor.dtype), ctx.memory.bytes_of(tensor)
    strides = element_strides(tensor.shape)
    byte_strides = tuple(s * t * raw.itemsize for s, t in zip(i.step, strides, strict=True))
    starts = compile_many([compile_affine(a, scope, ctx.env) for a in i.start])
    sizes = compile_sizes(view.dims, scope, ctx.env)
    steps, shape = i.step, tensor.shape

    def find() -> tuple[np.ndarray | None, tuple[slice, ...] | None]:
        """The part inside the tensor, and which part of the view it is (None: all of it)."""
        offset, counts, where, whole = 0, [], [], True
        for s, step, n, size, t in zip(starts(), steps, sizes(), shape, strides, strict=True):
            low, high = inside(s, step, n, size)
            if high <= low:
                return None, None
            whole = whole and high - low == n
            offset += (s + step * low) * t
            counts.append(high - low)
            where.append(slice(low, high))
        box = np.ndarray(tuple(counts), raw, data, offset * raw.itemsize, byte_strides)
        return box, None if whole else tuple(where)

    fixed = [fixed_extent(e, scope) for e, _ in view.dims]
    counts = tuple(n for n in fixed if n is not None)
    never_outside = len(counts) == len(fixed)
    total = Affine()
    for a, step, n, size, t in zip(i.start, steps, counts, shape, strides, strict=False):
        low, high = affine_range(a, scope)
        reach = step * (n - 1)
        never_outside &= low + min(reach, 0) >= 0 and high + max(reach, 0) < size
        total = total + a * (t * raw.itemsize)
    if not never_outside:
        return tensor, None, find
    first = compile_affine(total, scope, ctx.env)
    return tensor, lambda: np.ndarray(counts, raw, data, first(), byte_strides), find


def load(ctx: Context, i: Load, scope: Scope) -> Step:
    """LD: DRAM to GBUF."""
    dst = compile_view(ctx, i.dst, scope, ctx.place(i), compact=False)
    tensor, box, find = _tensor_box(ctx, i, i.dst, scope)
    target, source, accum = ctx.gbuf(i.dst.buffer).buffer.dtype, tensor.dtype, ctx.accum

    def convert(raw: np.ndarray) -> np.ndarray:
        return raw if source == target else narrow(raw.view(DTYPES[source]), target)

    fill = narrow(np.asarray(i.fill, accum), target)
    if box is not None and source == target:

        def copy() -> None:
            dst()[...] = box()

        return copy

    def run() -> None:
        part, where = find()
        into = dst()
        if part is None:
            into[...] = fill
        elif where is None:
            into[...] = convert(part)
        else:
            into[...] = fill
            into[where] = convert(part)

    return run


def store(ctx: Context, i: Store, scope: Scope) -> Step:
    """ST: GBUF to DRAM."""
    src = compile_view(ctx, i.src, scope, ctx.place(i), compact=False)
    tensor, box, find = _tensor_box(ctx, i, i.src, scope)
    source, target = ctx.gbuf(i.src.buffer).buffer.dtype, tensor.dtype
    if box is not None and source == target:

        def copy() -> None:
            box()[...] = src()

        return copy

    def run() -> None:
        part, where = find()
        if part is None:
            return
        values = src() if where is None else src()[where]
        part[...] = values if source == target else narrow(values.view(DTYPES[source]), target)

    return run


def load_lbuf(ctx: Context, i: LoadV | LoadH, scope: Scope) -> Step:
    """LdLBUF_V and LdLBUF_H: a matrix window of GBUF to a slot, kept in the accumulation type."""
    patch = compile_patch(ctx, i.src, scope, ctx.place(i))
    source = ctx.gbuf(i.src.buffer).buffer.dtype
    into, number = compile_tile(ctx, i.dst, "lbuf_v" if isinstance(i, LoadV) else "lbuf_h", scope)
    tiles, target, accum, size = into.tiles, into.buffer.dtype, ctx.accum, into.buffer.size
    what = ctx.place(i)

    def run() -> None:
        raw = patch().read()
        if raw.size > size:
            raise SimulationError(
                f"{what}: {raw.shape[0]} x {raw.shape[1]} words do not fit a slot of "
                f"{size} of buffer {i.dst.buffer}"
            )
        values = round_to(raw, source, target, accum)
        # A slot never changes once written, so Shift and Exec may share it; a view of GBUF would.
        tiles[number()] = np.array(values) if values.base is not None else values

    return run


def shift(ctx: Context, i: Shift, scope: Scope) -> Step:
    """ShiftV: a slot of LBUF_V to the weight registers."""
    source, read = compile_tile(ctx, i.src, "lbuf_v", scope)
    target, write = compile_tile(ctx, i.dst, "pe", scope)
    k, n = compile_extent(i.k, scope, ctx.env), compile_extent(i.n, scope, ctx.env)
    what, name = ctx.place(i), i.src.buffer

    def run() -> None:
        target.tiles[write()] = read_tile(source.tiles[read()], k(), n(), what, name)

    return run


def execute_wave(ctx: Context, i: Exec, scope: Scope) -> Step:
    """ExecGEMM and ExecOS: one wave through the array, accumulated in the accumulation type."""
    stays = isinstance(i, ExecOS)
    h, h_slot = compile_tile(ctx, i.moving, "lbuf_h", scope)
    pe, pe_slot = compile_tile(ctx, i.stationary, "lbuf_v" if stays else "pe", scope)
    acc, acc_slot = compile_tile(ctx, i.acc, "acc", scope)
    sizes = compile_many([compile_extent(e, scope, ctx.env) for e in (i.m, i.k, i.n)])
    accumulate = compile_affine(i.accumulate, scope, ctx.env)
    what = ctx.place(i)

    def run() -> None:
        m, k, n = sizes()
        rows = (k, m) if stays else (m, k)
        moving = read_tile(h.tiles[h_slot()], *rows, what, i.moving.buffer)
        moving = moving.T if stays else moving
        product = moving.dot(read_tile(pe.tiles[pe_slot()], k, n, what, i.stationary.buffer))
        slot = acc_slot()
        if accumulate() > 0:
            into = read_tile(acc.tiles[slot], m, n, what, i.acc.buffer)
            into += product
        else:
            acc.tiles[slot] = product

    return run


def drain(ctx: Context, i: Drain, scope: Scope) -> Step:
    """StLBUF: a slot of the accumulators (+ bias) (+ what is there) to GBUF."""
    acc, slot = compile_tile(ctx, i.acc, "acc", scope)
    what, accum = ctx.place(i), ctx.accum
    patch = compile_patch(ctx, i.dst, scope, what)
    target = ctx.gbuf(i.dst.buffer).buffer.dtype
    accumulate = compile_affine(i.accumulate, scope, ctx.env)
    bias = None if i.bias is None else compile_patch(ctx, i.bias, scope, what, one_row=True)
    bias_type = "" if i.bias is None else ctx.gbuf(i.bias.buffer).buffer.dtype

    def run() -> None:
        into = patch()
        m, n = into.shape
        values = read_tile(acc.tiles[slot()], m, n, what, i.acc.buffer)
        if bias is not None:
            row = bias()
            if row.shape[1] != n:
                raise SimulationError(f"{what}: {row.shape[1]} biases for {n} columns")
            values = values + widen(row.read(), bias_type, accum)
        if accumulate() > 0:
            values = values + widen(into.read(), target, accum)
        into.write(narrow(values, target))

    return run
