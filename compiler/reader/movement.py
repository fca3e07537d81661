"""Operators that move data: shapes, slices, pads, gathers, casts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ccnn.compiler.reader.context import Context, Known, Live
from ccnn.compiler.reader.elementwise import Translate
from ccnn.compiler.reader.norms import axes_of, axis_of
from ccnn.compiler.reader.problems import Refusal
from ccnn.compiler.reader.tensors import FLOATS, type_name

_HUGE = 1 << 31


def _option(c: Context, name: str, position: int) -> tuple[int, ...] | None:
    """Integers that older operator sets keep in an attribute and newer ones in an input."""
    if name in c.node.attrs:
        return c.node.ints(name)
    return c.ints(position) if c.node.has(position) else None


def _identity(c: Context) -> Known | Live:
    value = c.value(0)
    if isinstance(value, Known) and value.kind == "initializer":
        # Exporters store equal parameters once and give the others their names this way.
        return replace(value, name=c.node.output(0))
    return value


def _cast(c: Context) -> Known | Live:
    if c.node.op == "Cast" and (to := c.node.int("to")) not in FLOATS:
        if isinstance(c.value(0), Live) and c.builder.tensors[c.tensor(0)].dtype == "index":
            return c.value(0)
        raise Refusal(
            f"it casts data to {type_name(to)}",
            "integers computed from data are not supported: remove the cast from the model",
        )
    return c.value(0)


def _dropout(c: Context) -> Known | Live:
    ratio = c.node.float("ratio", 0.5) if "ratio" in c.node.attrs else 0.5
    if c.node.opset >= 12 and c.node.has(1):
        ratio = c.scalar(1)
    if not c.options.dropout or ratio == 0.0:
        if ratio:
            c.counts["dropout"] = c.counts.get("dropout", 0) + 1
        return c.value(0)
    if not 0.0 < ratio < 1.0:
        raise Refusal(f"its ratio is {ratio}", "a ratio lies between 0 and 1")
    seed = c.options.dropout_seed + c.counts.get("active_dropout", 0)
    c.counts["active_dropout"] = c.counts.get("active_dropout", 0) + 1
    return c.final("dropout", c.tensor(0), ratio=ratio, seed=seed)


def _reshape(c: Context) -> Known | Live:
    wanted = _option(c, "shape", 1)
    if wanted is None:
        raise Refusal("it has no shape")
    shape = c.shape(0)
    x = c.tensor(0)
    target = _target_batch(c, x, list(wanted))
    if not c.node.int("allowzero", 0):
        if any(d == 0 and k >= len(shape) for k, d in enumerate(target)):
            raise Refusal(f"its shape {target} keeps an axis that {list(shape)} does not have")
        target = [shape[k] if d == 0 else d for k, d in enumerate(target)]
    size = math.prod(shape)
    if target.count(-1) > 1 or any(d < -1 for d in target):
        raise Refusal(f"its shape {target} is ambiguous")
    if -1 in target:
        rest = math.prod(d for d in target if d != -1)
        if not rest or size % rest:
            raise _batch_refusal(c, f"{list(shape)} cannot be reshaped to {target}")
        target[target.index(-1)] = size // rest
    if math.prod(target) != size:
        raise _batch_refusal(c, f"{list(shape)} cannot be reshaped to {target}")
    return c.reshaped(x, tuple(target))


def _target_batch(c: Context, x: str, target: list[int]) -> list[int]:
    """The target shape with the file's batch replaced where that provably keeps samples apart.

    The batch is the slowest axis of the operand, and the target's first axis is the file's
    batch: both are then one sample after the other, so only that number changes.
    """
    known = c.batched | c.merged
    if c.old_batch is not None and x in known and target[:1] == [c.old_batch]:
        return [c.batch, *target[1:]]
    return target


def _batch_refusal(c: Context, why: str) -> Refusal:
    if c.old_batch is None:
        return Refusal(why, "the model's shapes contradict each other: export it again")
    return Refusal(
        f"{why} with batch {c.batch}: the file is made for batch {c.old_batch}",
        f"export with a symbolic batch (dynamic_axes={{'input': {{0: 'N'}}}}) or with batch "
        f"{c.batch}, or leave the batch out",
    )


def _flatten(c: Context) -> Known | Live:
    shape = c.shape(0)
    axis = c.node.int("axis", 1)
    if not -len(shape) <= axis <= len(shape):
        raise Refusal(f"axis {axis} is outside its input {list(shape)}")
    axis += len(shape) if axis < 0 else 0
    return c.reshaped(c.tensor(0), (math.prod(shape[:axis]), math.prod(shape[axis:])))


def _squeeze(c: Context) -> Known | Live:
    shape = c.shape(0)
    axes = _option(c, "axes", 1)
    if axes is None:
        axes = tuple(k for k, d in enumerate(shape) if d == 1)
    axes = axes_of(c, axes, len(shape))
    if any(shape[k] != 1 for k in axes):
        raise Refusal(f"it drops axes {list(axes)} of {list(shape)}, which are not all 1")
    return c.reshaped(c.tensor(0), tuple(d for k, d in enumerate(shape) if k not in axes))


def _unsqueeze(c: Context) -> Known | Live:
    shape = c.shape(0)
    axes = _option(c, "axes", 1)
    if axes is None:
        raise Refusal("it has no axes")
    axes = axes_of(c, axes, len(shape) + len(axes))
    rest = iter(shape)
    rank = len(shape) + len(axes)
    return c.reshaped(c.tensor(0), tuple(1 if k in axes else next(rest) for k in range(rank)))


def _transpose(c: Context) -> Known | Live:
    rank = len(c.shape(0))
    perm = c.node.ints("perm", tuple(reversed(range(rank))))
    if sorted(perm) != list(range(rank)):
        raise Refusal(f"perm={list(perm)} does not fit its input {list(c.shape(0))}")
    if perm == tuple(range(rank)):
        return Live(c.tensor(0))
    return c.final("transpose", c.tensor(0), perm=perm)


def _concat(c: Context) -> Known | Live:
    parts = [k for k in range(len(c.node.inputs)) if math.prod(c.shape(k))]
    if not parts:
        raise Refusal("all it joins is empty")
    axis = axis_of(c, c.node.int("axis"), len(c.shape(parts[0])))
    if len(parts) == 1:
        return Live(c.tensor(parts[0]))
    return c.final("concat", *(c.tensor(k) for k in parts), axis=axis)


def cut(
    c: Context, x: str, axis: int, start: int, size: int, step: int = 1, output: int | None = None
) -> str:
    """A slice along one axis; an ONNX output's number makes it that output."""
    shape = c.builder.shape(x)
    starts = [start if k == axis else 0 for k in range(len(shape))]
    steps = [step if k == axis else 1 for k in range(len(shape))]
    sizes = [size if k == axis else d for k, d in enumerate(shape)]
    attrs = {"starts": starts, "steps": steps, "sizes": sizes}
    if output is None:
        return c.emit("slice", x, **attrs)
    return c.final_all("slice", x, outputs=output, **attrs)[0].tensor


def _split(c: Context) -> list[Known | Live]:
    shape = c.shape(0)
    axis = axis_of(c, c.node.int("axis", 0), len(shape))
    sizes = _option(c, "split", 1)
    count = len(c.node.outputs)
    if sizes is None:
        parts = c.node.int("num_outputs", count)
        if parts < 1 or parts != count:
            raise Refusal(f"num_outputs={parts}, but it has {count} outputs")
        each = -(-shape[axis] // parts)
        sizes = (*(each,) * (parts - 1), shape[axis] - each * (parts - 1))
    if sum(sizes) != shape[axis] or len(sizes) != count or any(s < 1 for s in sizes):
        raise Refusal(f"it cuts axis {axis} of {list(shape)} into {list(sizes)}")
    starts = np.cumsum((0, *sizes))
    x = c.tensor(0)
    return [Live(cut(c, x, axis, int(starts[k]), sizes[k], output=k)) for k in range(count)]


def _slice(c: Context) -> Known | Live:
    shape = c.shape(0)
    starts, ends = _option(c, "starts", 1), _option(c, "ends", 2)
    if starts is None or ends is None or len(starts) != len(ends):
        raise Refusal("its starts and ends do not match")
    axes = _option(c, "axes", 3) or tuple(range(len(starts)))
    steps = _option(c, "steps", 4) or (1,) * len(starts)
    if not len(axes) == len(steps) == len(starts) <= len(shape):
        raise Refusal("its starts, axes and steps do not match")
    full = [[0, 1, d] for d in shape]
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        axis = axis_of(c, axis, len(shape))
        if not step:
            raise Refusal("its step is 0")
        size = shape[axis]
        if step < 0 and end <= -_HUGE:
            end = -size - 1
        first, stop, step = slice(start, None if end == -size - 1 else end, step).indices(size)
        full[axis] = [first, step, len(range(first, stop, step))]
    if [f[2] for f in full] == list(shape) and all(f[1] == 1 for f in full):
        return Live(c.tensor(0))
    return c.final(
        "slice", c.tensor(0), starts=[f[0] for f in full], steps=[f[1] for f in full],
        sizes=[f[2] for f in full],
    )  # fmt: skip


def _pad(c: Context) -> Known | Live:
    shape = c.shape(0)
    rank = len(shape)
    mode = c.node.text("mode", "constant")
    if mode not in ("constant", "reflect", "edge"):
        raise Refusal(f"mode='{mode}' is not supported", "use constant, reflect or edge")
    pads = _option(c, "pads", 1)
    axes = axes_kept = c.ints(3) if c.node.has(3) else tuple(range(rank))
    if pads is None or len(pads) != 2 * len(axes):
        raise Refusal(f"its pads do not fit its input {list(shape)}")
    before, after = [0] * rank, [0] * rank
    for k, axis in enumerate(axes_kept):
        axis = axis_of(c, axis, rank)
        before[axis], after[axis] = pads[k], pads[k + len(axes)]
    if not any(before) and not any(after):
        return Live(c.tensor(0))
    value = c.node.float("value", 0.0)
    if c.node.has(2):
        value = c.scalar(2)
    if not math.isfinite(value):
        raise Refusal(f"it pads with {value}", "let the pooling operator do the padding")
    value = value if mode == "constant" else 0.0
    return c.final("pad", c.tensor(0), before=before, after=after, mode=mode, value=value)


def _expand(c: Context) -> Known | Live:
    shape = c.shape(0)
    target = list(c.ints(1))
    old = c.old_batch
    if old is not None and old != 1 and target[:1] == [old]:
        value = c.value(0)
        if (
            not isinstance(value, Live)
            or value.tensor not in c.batched
            or len(shape) != len(target)
        ):
            raise _batch_refusal(c, f"{list(shape)} is expanded to {target}")
        target[0] = c.batch
    shape_out = np.broadcast_shapes(shape, tuple(target))
    if shape_out == shape:
        return Live(c.tensor(0))
    return c.final("expand", c.tensor(0), shape=shape_out)


def _tile(c: Context) -> Known | Live:
    shape, repeats = c.shape(0), c.ints(1)
    if len(repeats) != len(shape) or any(r < 1 for r in repeats):
        raise Refusal(f"repeats={list(repeats)} do not fit its input {list(shape)}")
    if all(r == 1 for r in repeats):
        return Live(c.tensor(0))
    split = [d for size in shape for d in (1, size)]
    spread = [d for r, size in zip(repeats, shape, strict=True) for d in (r, size)]
    y = c.emit("expand", c.emit("reshape", c.tensor(0), shape=split), shape=spread)
    return c.reshaped(y, tuple(r * d for r, d in zip(repeats, shape, strict=True)))


def _gather(c: Context) -> Known | Live:
    shape = c.shape(0)
    axis = axis_of(c, c.node.int("axis", 0), len(shape))
    if isinstance(c.value(1), Live):
        raise Refusal("its indices are data", "lookups by data (embeddings) are not supported")
    places = c.known(1)
    if places.dtype.kind not in "iu" or places.size > 1 << 20 or not places.size:
        raise Refusal("its indices are not a list of integers")
    flat = [int(v) for v in places.reshape(-1)]
    if c.old_batch is not None and axis == 0 and places.shape[:1] == (c.old_batch,):
        return _regather(c, shape, places.shape, flat)
    if any(not -shape[axis] <= v < shape[axis] for v in flat):
        raise Refusal(f"its indices {flat[:8]} are outside axis {axis} of {list(shape)}")
    flat = [v % shape[axis] for v in flat]
    result = (*shape[:axis], *places.shape, *shape[axis + 1 :])
    steps = {b - a for a, b in itertools.pairwise(flat)} or {1}
    if flat == list(range(shape[axis])):
        y = c.tensor(0)
    elif len(steps) == 1 and 0 not in steps:
        y = cut(c, c.tensor(0), axis, flat[0], len(flat), steps.pop())
    else:
        y = c.emit("gather", c.tensor(0), axis=axis, indices=tuple(flat))
    return c.reshaped(y, result)


def _regather(
    c: Context, shape: tuple[int, ...], places: tuple[int, ...], flat: list[int]
) -> Known | Live:
    """A gather that only reshapes what is one sample after the other, for another batch."""
    x, per_sample = c.tensor(0), math.prod(places[1:])
    whole = flat == list(range(len(flat))) and shape[0] == c.batch * per_sample
    if x not in c.batched | c.merged or not whole:
        raise _batch_refusal(c, f"it picks fixed positions out of {list(shape)}")
    return c.reshaped(x, (c.batch, *places[1:], *shape[1:]))


def _depth_to_space(c: Context) -> Known | Live:
    n, channels, h, w = _four(c)
    b = c.node.int("blocksize")
    mode = c.node.text("mode", "DCR")
    if b < 1 or channels % (b * b) or mode not in ("DCR", "CRD"):
        raise Refusal(f"blocksize={b}, mode='{mode}' do not fit {list(c.shape(0))}")
    deep = channels // (b * b)
    if mode == "DCR":
        y = c.emit("reshape", c.tensor(0), shape=(n, b, b, deep, h, w))
        y = c.emit("transpose", y, perm=(0, 3, 4, 1, 5, 2))
    else:
        y = c.emit("reshape", c.tensor(0), shape=(n, deep, b, b, h, w))
        y = c.emit("transpose", y, perm=(0, 1, 4, 2, 5, 3))
    return c.reshaped(y, (n, deep, h * b, w * b))


def _space_to_depth(c: Context) -> Known | Live:
    n, channels, h, w = _four(c)
    b, mode = c.node.int("blocksize"), c.node.text("mode", "DCR")
    if b < 1 or h % b or w % b or mode not in ("DCR", "CRD"):
        raise Refusal(f"blocksize={b}, mode='{mode}' do not fit {list(c.shape(0))}")
    y = c.emit("reshape", c.tensor(0), shape=(n, channels, h // b, b, w // b, b))
    y = c.emit("transpose", y, perm=(0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4))
    return c.reshaped(y, (n, channels * b * b, h // b, w // b))


def _four(c: Context) -> Sequence[int]:
    if len(c.shape(0)) != 4:
        raise Refusal(f"its input {list(c.shape(0))} is not [N, C, H, W]")
    return c.shape(0)


MOVEMENT: dict[str, Translate] = {
    "Identity": _identity,
    "Cast": _cast,
    "CastLike": _cast,
    "Dropout": _dropout,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Pad": _pad,
    "Expand": _expand,
    "Tile": _tile,
    "Gather": _gather,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
}
