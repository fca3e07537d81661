"""Convolutions, matrix products and pooling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ccnn.compiler.reader.context import Context, Known, Live
from ccnn.compiler.reader.elementwise import Translate
from ccnn.compiler.reader.problems import Refusal


@dataclass(frozen=True)
class Window:
    """Window geometry of the spatial axes; padding before and after, and what ceil_mode adds."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    extra: tuple[int, ...]


def read_window(c: Context, kernel: Sequence[int], sizes: Sequence[int]) -> Window:
    """Strides, dilations and padding (explicit, auto_pad and ceil_mode) of a windowed operator."""
    n = len(sizes)
    kernel = tuple(kernel)
    strides = c.node.ints("strides", (1,) * n)
    dilations = c.node.ints("dilations", (1,) * n)
    for name, values in (("kernel_shape", kernel), ("strides", strides), ("dilations", dilations)):
        if len(values) != n or any(v < 1 for v in values):
            raise Refusal(f"{name}={list(values)} should be {n} positive numbers")
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    before, after = read_pads(c, spans, strides, sizes)
    extra = (0,) * n
    if c.node.int("ceil_mode", 0):
        extra = tuple(map(_ceil_extra, sizes, spans, strides, before, after))
    return Window(kernel, strides, dilations, before, after, extra)


def _ceil_extra(size: int, span: int, stride: int, before: int, after: int) -> int:
    """Padding that makes room for a last, partial window that starts inside input or left pad."""
    room = size + before + after - span
    windows = -(-room // stride) + 1
    if (windows - 1) * stride >= size + before:
        windows -= 1
    return max(0, (windows - 1) * stride + span - (size + before + after))


def read_pads(
    c: Context, spans: Sequence[int], strides: Sequence[int], sizes: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Padding before and after each spatial axis, from `pads` or `auto_pad`."""
    n = len(sizes)
    mode = c.node.text("auto_pad", "NOTSET")
    if mode in ("NOTSET", ""):
        pads = c.node.ints("pads", (0,) * (2 * n))
        if len(pads) != 2 * n:
            raise Refusal(f"pads={list(pads)} should have {2 * n} entries")
        if any(p < 0 for p in pads):
            raise Refusal(f"pads={list(pads)} are negative", "crop with a Slice instead")
        return pads[:n], pads[n:]
    if mode == "VALID":
        return (0,) * n, (0,) * n
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        raise Refusal(f"auto_pad='{mode}' is unknown")
    totals = [
        max((-(-size // s) - 1) * s + span - size, 0)
        for size, s, span in zip(sizes, strides, spans, strict=True)
    ]
    small = tuple(t // 2 for t in totals)
    large = tuple(t - t // 2 for t in totals)
    return (small, large) if mode == "SAME_UPPER" else (large, small)


def _spatial(c: Context, least: int = 1, most: int = 9) -> tuple[int, ...]:
    shape = c.shape(0)
    if not least <= len(shape) - 2 <= most:
        raise Refusal(
            f"its input {list(shape)} has {max(len(shape) - 2, 0)} spatial axes; "
            f"{least} to {most} are supported",
            "3-D networks are not supported" if len(shape) > 4 else "check the model's input shape",
        )
    return shape[2:]


def _lift(c: Context, tensor: str) -> str:
    """A 1-D operand [A,B,L] as [A,B,1,L]."""
    a, b, length = c.builder.shape(tensor)
    return c.emit("reshape", tensor, shape=(a, b, 1, length))


def _two(values: Sequence[int], fill: int) -> tuple[int, ...]:
    return tuple(values) if len(values) == 2 else (fill, *values)


def _kernel_of(c: Context, sizes: Sequence[int]) -> tuple[int, ...]:
    w = c.shape(1)
    if len(w) != len(sizes) + 2:
        raise Refusal(f"its weight {list(w)} does not fit its input {list(c.shape(0))}")
    if "kernel_shape" in c.node.attrs and c.node.ints("kernel_shape") != w[2:]:
        raise Refusal(
            f"kernel_shape={list(c.node.ints('kernel_shape'))} contradicts its weight {list(w)}"
        )
    return w[2:]


def _conv_operands(c: Context, flat: bool) -> list[str]:
    x, w = c.tensor(0), c.weight(1)
    return [_lift(c, x), _lift(c, w), c.bias(2)] if flat else [x, w, c.bias(2)]


def _conv(c: Context) -> Live:
    sizes = _spatial(c, 1, 2)
    win = read_window(c, _kernel_of(c, sizes), sizes)
    flat = len(sizes) == 1
    attrs = {
        "strides": _two(win.strides, 1),
        "pads": (*_two(win.before, 0), *_two(win.after, 0)),
        "dilations": _two(win.dilations, 1),
        "group": c.node.int("group", 1),
    }
    return _finish_conv(c, "conv", flat, attrs)


def _finish_conv(c: Context, op: str, flat: bool, attrs: dict) -> Live:
    operands = _conv_operands(c, flat)
    if not flat:
        return c.final(op, *operands, **attrs)
    y = c.emit(op, *operands, **attrs)
    n, k, _, length = c.builder.shape(y)
    return c.reshaped(y, (n, k, length))


def _conv_transpose(c: Context) -> Live:
    sizes = _spatial(c, 1, 2)
    kernel = _kernel_of(c, sizes)
    n = len(sizes)
    strides = c.node.ints("strides", (1,) * n)
    dilations = c.node.ints("dilations", (1,) * n)
    adjust = list(c.node.ints("output_padding", (0,) * n))
    if not len(strides) == len(dilations) == len(adjust) == n:
        raise Refusal(f"strides, dilations and output_padding should have {n} entries")
    mode = c.node.text("auto_pad", "NOTSET")
    wanted = c.node.ints("output_shape", ())[-n:]
    if not wanted and mode in ("SAME_UPPER", "SAME_LOWER"):
        wanted = tuple(size * s for size, s in zip(sizes, strides, strict=True))
    if wanted:
        before, after = [], []
        for a, size in enumerate(sizes):
            full = strides[a] * (size - 1) + adjust[a] + (kernel[a] - 1) * dilations[a] + 1
            total = full - wanted[a]
            if total < 0:  # more than the windows reach: rows of bias at the end
                adjust[a] -= total
                total = 0
            half, rest = total // 2, total - total // 2
            before.append(half if mode == "SAME_UPPER" else rest)
            after.append(rest if mode == "SAME_UPPER" else half)
    else:
        spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
        before, after = map(list, read_pads(c, spans, strides, sizes))
    attrs = {
        "strides": _two(strides, 1), "pads": (*_two(before, 0), *_two(after, 0)),
        "dilations": _two(dilations, 1), "group": c.node.int("group", 1),
        "output_padding": _two(adjust, 0),
    }  # fmt: skip
    return _finish_conv(c, "conv_transpose", n == 1, attrs)


def _gemm(c: Context) -> Live:
    if len(c.shape(0)) != 2 or len(c.shape(1)) != 2:
        raise Refusal(f"it multiplies {list(c.shape(0))} by {list(c.shape(1))}, not two matrices")
    alpha, beta = c.node.float("alpha", 1.0), c.node.float("beta", 1.0)
    trans_a, trans_b = bool(c.node.int("transA", 0)), bool(c.node.int("transB", 0))
    a, b = c.weight(0), c.weight(1)
    width = c.builder.shape(b)[0 if trans_b else 1]
    bias = c.bias(2) if beta else ""
    attrs = {"trans_a": trans_a, "trans_b": trans_b}
    plain = alpha == 1.0 and (not bias or beta == 1.0)
    if plain and (not bias or c.builder.shape(bias) == (width,)):
        return c.final("matmul", a, b, bias, **attrs)
    y = c.emit("matmul", a, b, **attrs)
    if alpha != 1.0:
        y = c.emit("mul", y, c.constant(alpha))
    if not bias:
        return c.final("reshape", y, shape=c.builder.shape(y))
    if beta != 1.0:
        bias = c.emit("mul", bias, c.constant(beta))
    return c.final("add", y, bias)


def _matmul(c: Context) -> Live:
    a, b = c.weight(0), c.weight(1)
    shape_a, shape_b = c.builder.shape(a), c.builder.shape(b)
    if not shape_a or not shape_b:
        raise Refusal("it multiplies by a scalar")
    if len(shape_a) == 1:
        a = c.emit("reshape", a, shape=(1, *shape_a))
    if len(shape_b) == 1:
        b = c.emit("reshape", b, shape=(*shape_b, 1))
    full_a, full_b = c.builder.shape(a), c.builder.shape(b)
    if len(full_b) > 2 and full_a[:-2] != full_b[:-2]:
        lead = _broadcast(full_a[:-2], full_b[:-2])
        a = c.emit("expand", a, shape=(*lead, *full_a[-2:])) if full_a[:-2] != lead else a
        b = c.emit("expand", b, shape=(*lead, *full_b[-2:])) if full_b[:-2] != lead else b
    if len(shape_a) > 1 and len(shape_b) > 1:
        return c.final("matmul", a, b, trans_a=False, trans_b=False)
    y = c.emit("matmul", a, b, trans_a=False, trans_b=False)
    shape = list(c.builder.shape(y))
    if len(shape_b) == 1:
        del shape[-1]
    if len(shape_a) == 1:
        del shape[-1 if len(shape_b) == 1 else -2]
    return c.reshaped(y, tuple(shape))


def _broadcast(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    n = max(len(a), len(b))
    a, b = (1,) * (n - len(a)) + a, (1,) * (n - len(b)) + b
    if any(x != y and 1 not in (x, y) for x, y in zip(a, b, strict=True)):
        raise Refusal(f"its batch axes {list(a)} and {list(b)} do not match")
    return tuple(max(x, y) for x, y in zip(a, b, strict=True))


def _max_pool(c: Context) -> Live:
    sizes = _spatial(c)
    win = read_window(c, c.node.ints("kernel_shape"), sizes)
    after = tuple(p + e for p, e in zip(win.after, win.extra, strict=True))
    return c.final(
        "max_pool", c.tensor(0), kernel=win.kernel, strides=win.strides,
        pads=(*win.before, *after), dilations=win.dilations,
    )  # fmt: skip


def _average(c: Context, x: str, include: bool, last: bool) -> str:
    win = read_window(c, c.node.ints("kernel_shape"), c.builder.shape(x)[2:])
    make = (lambda *a, **k: c.final(*a, **k).tensor) if last else c.emit
    return make(
        "avg_pool", x, kernel=win.kernel, strides=win.strides, pads=(*win.before, *win.after),
        dilations=win.dilations, ceil_extra=win.extra, count_include_pad=include,
    )  # fmt: skip


def _avg_pool(c: Context) -> Live:
    _spatial(c)
    return Live(_average(c, c.tensor(0), bool(c.node.int("count_include_pad", 0)), last=True))


def _lp_pool(c: Context) -> Live:
    _spatial(c)
    p = c.node.int("p", 2)
    if p not in (1, 2):
        raise Refusal(f"p={p} is not supported", "use p=1 or p=2")
    if c.node.int("ceil_mode", 0):
        raise Refusal("ceil_mode is not supported here", "set ceil_mode=False")
    x = c.tensor(0)
    powers = c.emit("mul", x, x) if p == 2 else c.emit("abs", x)
    mean = _average(c, powers, True, last=False)
    places = c.constant(float(math.prod(c.node.ints("kernel_shape"))))
    if p == 1:
        return c.final("mul", mean, places)
    return c.final("sqrt", c.emit("mul", mean, places))


def _global(op: str) -> Translate:
    def run(c: Context) -> Live | Known:
        axes = tuple(range(2, 2 + len(_spatial(c))))
        kind = op
        if op == "reduce_lp":
            p = c.node.int("p", 2)
            if p not in (1, 2):
                raise Refusal(f"p={p} is not supported", "use p=1 or p=2")
            kind = f"reduce_l{p}"
        return c.final(kind, c.tensor(0), axes=axes, keepdims=True)

    return run


WINDOWS: dict[str, Translate] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "MaxPool": _max_pool,
    "AveragePool": _avg_pool,
    "LpPool": _lp_pool,
    "GlobalAveragePool": _global("reduce_mean"),
    "GlobalMaxPool": _global("reduce_max"),
    "GlobalLpPool": _global("reduce_lp"),
}
