"""What the ops share: checks of their inputs, and emission of `map` and `reduce` nodes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NoReturn

import numpy as np

from ccnn.passes.expr import Expr, number, operand, operands_of, parse_expr, substitute
from ccnn.passes.fold import fold
from ccnn.passes.graph import Builder, GraphError, Node, Tensor


def fail(node: Node, why: str) -> NoReturn:
    """Raise a GraphError that names the node."""
    raise GraphError(f"node '{node.name}' ({node.op}): {why}")


def take(
    node: Node, inputs: Sequence[Tensor | None], low: int, high: int | None = None
) -> list[Tensor | None]:
    """The inputs, padded with None to `high`; the first `low` of them must be there."""
    high = low if high is None else high
    if not low <= len(inputs) <= high:
        span = str(low) if low == high else f"{low} to {high}"
        fail(node, f"takes {span} inputs, got {len(inputs)}")
    if any(t is None for t in inputs[:low]):
        fail(node, f"its first {low} inputs may not be left out")
    return [*inputs, *[None] * (high - len(inputs))]


def two(node: Node, inputs: Sequence[Tensor | None]) -> tuple[tuple[Tensor, Tensor], Tensor | None]:
    """Two inputs and an optional third (a bias)."""
    first, second, third = take(node, inputs, 2, 3)
    if first is None or second is None:
        fail(node, "its first 2 inputs may not be left out")
    return (first, second), third


def given(inputs: Sequence[Tensor | None]) -> list[Tensor]:
    """The inputs that are there."""
    return [t for t in inputs if t is not None]


def ints(node: Node, name: str, length: int | None = None, low: int | None = None) -> tuple:
    """A tuple-of-integers attribute; raises GraphError when it is missing or does not fit."""
    value = node.attr(name)
    if not isinstance(value, tuple) or not all(type(v) is int for v in value):
        fail(node, f"attribute '{name}' must be a tuple of integers, it is {value!r}")
    if length is not None and len(value) != length:
        fail(node, f"attribute '{name}' needs {length} numbers, it has {len(value)}")
    if low is not None and any(v < low for v in value):
        fail(node, f"attribute '{name}' = {value} has an entry below {low}")
    return value


def axis_of(node: Node, rank: int, name: str = "axis") -> int:
    """An axis attribute, checked against the rank."""
    axis = node.attr(name)
    if type(axis) is not int or not 0 <= axis < rank:
        fail(node, f"attribute '{name}' = {axis!r} is not an axis of a tensor of rank {rank}")
    return axis


def axes_of(node: Node, rank: int) -> tuple[int, ...]:
    """The `axes` attribute, checked against the rank."""
    axes = ints(node, "axes")
    if any(not 0 <= a < rank for a in axes) or len(set(axes)) != len(axes):
        fail(node, f"axes {axes} do not fit a tensor of rank {rank}")
    return axes


def broadcast(node: Node, shapes: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The shape these shapes broadcast to; raises GraphError when they do not."""
    try:
        return tuple(np.broadcast_shapes(*(tuple(s) for s in shapes)))
    except ValueError:
        listed = ", ".join(str(tuple(s)) for s in shapes)
        fail(node, f"the shapes {listed} do not broadcast against each other")


def common_dtype(inputs: Sequence[Tensor | None]) -> str:
    """'accum' when an input is, else 'float': the dtype of an arithmetic result."""
    return "accum" if any(t.dtype == "accum" for t in given(inputs)) else "float"


def channel_shape(size: int, rank: int) -> tuple[int, ...]:
    """[1, C, 1, …]: how a per-channel vector stands beside a tensor of this rank."""
    return (1, size, *[1] * (rank - 2))


def reshaped(b: Builder, x: str, shape: Sequence[int]) -> str:
    """`x` seen with another shape; `x` itself when it has it already, a constant stays one."""
    tensor = b.tensors[x]
    if tensor.shape == tuple(shape):
        return x
    if tensor.role == "constant" and x in b.data:
        return b.constant(np.reshape(b.data[x], tuple(shape)), x, tensor.dtype)
    return b.emit("reshape", [x], shape=tuple(shape))


def emit_map(
    b: Builder, inputs: Sequence[str], exprs: Sequence[str | Expr], dtypes: Sequence[str]
) -> tuple[str, ...]:
    """Append a `map`: operand a of the expressions is inputs[0], and so on.

    One-element constants become literals, repeated inputs one operand, and unused inputs go,
    unless the result's shape depends on them.
    """
    names, parsed = _tidy(b, inputs, exprs)
    return b.emit_all("map", names, exprs=tuple(str(e) for e in parsed), dtypes=tuple(dtypes))


def emit_reduce(
    b: Builder,
    kind: str,
    inputs: Sequence[str],
    exprs: Sequence[str | Expr],
    axes: Sequence[int],
    dtypes: Sequence[str],
) -> tuple[str, ...]:
    """Append a `reduce` (kind sum, max or min) of expressions; operands as in `emit_map`."""
    names, parsed = _tidy(b, inputs, exprs)
    return b.emit_all(
        "reduce",
        names,
        kind=kind,
        exprs=tuple(str(e) for e in parsed),
        axes=tuple(axes),
        dtypes=tuple(dtypes),
    )


def _tidy(
    b: Builder, inputs: Sequence[str], exprs: Sequence[str | Expr]
) -> tuple[list[str], list[Expr]]:
    parsed = [parse_expr(e) if isinstance(e, str) else e for e in exprs]
    literal = {k: number(v) for k, n in enumerate(inputs) if (v := _scalar(b, n)) is not None}
    folded = [fold(substitute(e, literal)) for e in parsed]
    used = frozenset().union(*(operands_of(e) for e in folded))
    full = np.broadcast_shapes(*(b.shape(n) for n in inputs))
    kept = list(dict.fromkeys(n for k, n in enumerate(inputs) if k in used))
    for name in inputs:  # an operand that only lends its shape must stay
        if np.broadcast_shapes(*(b.shape(n) for n in kept)) == full and kept:
            break
        kept = list(dict.fromkeys([*kept, name]))
    place = {k: operand(kept.index(n)) for k, n in enumerate(inputs) if n in kept}
    return kept, [substitute(e, place) for e in folded]


def _scalar(b: Builder, name: str) -> float | None:
    tensor = b.tensors[name]
    if tensor.role != "constant" or tensor.size != 1 or name not in b.data:
        return None
    value = float(np.asarray(b.data[name]).reshape(-1)[0])
    return None if math.isnan(value) else value


def sum_to(b: Builder, inputs: Sequence[str], expr: str | Expr, like: Tensor) -> str:
    """The gradient of a broadcast operand: `expr` over `inputs`, summed to the shape of `like`.

    A plain map when nothing was repeated; axes of one element may still have been added.
    """
    full = np.broadcast_shapes(*(b.shape(n) for n in inputs))
    axes = broadcast_axes(like.shape, full)
    if not axes:
        return reshaped(b, emit_map(b, inputs, [expr], [like.dtype])[0], like.shape)
    total = emit_reduce(b, "sum", inputs, [expr], axes, [like.dtype])[0]
    return reshaped(b, total, like.shape)


def broadcast_axes(shape: Sequence[int], full: Sequence[int]) -> tuple[int, ...]:
    """The axes of `full` along which a tensor of `shape` is repeated."""
    lead = len(full) - len(shape)
    return tuple(
        k
        for k, d in enumerate(full)
        if (k < lead and d != 1) or (k >= lead and shape[k - lead] != d)
    )


def add_up(b: Builder, terms: Sequence[str], dtype: str) -> str:
    """The sum of tensors of one shape, in one sweep."""
    if len(terms) == 1:
        return terms[0]
    letters = " + ".join("abcdefghijklmnopqrstuvwxyz"[k] for k in range(len(terms)))
    return emit_map(b, terms, [letters], [dtype])[0]
