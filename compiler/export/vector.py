"""What the vector unit computes: map, reduce, moments and random as elementwise ONNX nodes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from ccnn.compiler.export.writer import BOOL, DOUBLE, INT64, UINT64, ExportError, Writer
from ccnn.passes.expr import Expr, operands_of, parse_expr
from ccnn.passes.graph import Node

_PLAIN = {
    "add": "Add",
    "sub": "Sub",
    "mul": "Mul",
    "div": "Div",
    "neg": "Neg",
    "max": "Max",
    "min": "Min",
    "abs": "Abs",
    "sign": "Sign",
    "floor": "Floor",
    "sqrt": "Sqrt",
    "exp": "Exp",
    "log": "Log",
    "tanh": "Tanh",
    "sigmoid": "Sigmoid",
    "softplus": "Softplus",
    "erf": "Erf",
    "sin": "Sin",
    "cos": "Cos",
    "pow": "Pow",
}
_COMPARE = {
    "gt": "Greater",
    "ge": "GreaterOrEqual",
    "lt": "Less",
    "le": "LessOrEqual",
    "eq": "Equal",
}


class _Expressions:
    """The expressions of one node; what two of them share is computed once."""

    def __init__(self, w: Writer, node: Node) -> None:
        self.w, self.node = w, node
        names = [w.named(i) for i in node.inputs]
        # Without a floating-point input the interpreter computes in double as well.
        floats = any(w.type(n) in (w.float, w.accum) for n in names)
        self.kind = w.accum if floats else DOUBLE
        self.names = [w.cast(n, self.kind) for n in names]
        self._known: dict[tuple[Expr, bool], str] = {}

    def value(self, e: Expr) -> str:
        """The number `e` stands for, as a tensor of the working type."""
        if e.kind == "in":
            return self.names[int(e.value)]
        if e.kind == "num":
            return self.w.constant(e.value, self.kind)
        return self._once(e, False, self._value)

    def truth(self, e: Expr) -> str:
        """Whether `e` is not 0, as a boolean tensor."""
        return self._once(e, True, self._truth)

    def _once(self, e: Expr, truth: bool, make: Callable[[Expr], str]) -> str:
        if (e, truth) not in self._known:
            self._known[e, truth] = make(e)
        return self._known[e, truth]

    def _value(self, e: Expr) -> str:
        if e.kind in _COMPARE:
            return self.w.cast(self.truth(e), self.kind)
        if e.kind == "where":
            chosen = [self.value(a) for a in e.args[1:]]
            return self.w.emit("Where", [self.truth(e.args[0]), *chosen], to=self.kind)
        if e.kind == "max" and any(a.kind == "num" and a.value == 0 for a in e.args):
            rest = [a for a in e.args if not (a.kind == "num" and a.value == 0)]
            if len(rest) == 1:
                return self.w.emit("Relu", [self.value(rest[0])])
        if e.kind not in _PLAIN:
            raise ExportError(
                f"node '{self.node.name}': the function '{e.kind}' has no ONNX operator"
            )
        return self.w.emit(_PLAIN[e.kind], [self.value(a) for a in e.args])

    def _truth(self, e: Expr) -> str:
        if e.kind in _COMPARE:
            return self.w.emit(_COMPARE[e.kind], [self.value(a) for a in e.args], to=BOOL)
        zero = self.w.constant(0.0, self.kind)
        return self.w.emit("Not", [self.w.emit("Equal", [self.value(e), zero], to=BOOL)])


def _values(w: Writer, node: Node) -> list[str]:
    """All expressions of a map or reduce, each in the inputs' broadcast shape."""
    shapes = [w.shape(i) for i in node.inputs]
    full = np.broadcast_shapes(*shapes)
    parts = _Expressions(w, node)
    found = []
    for text in node.attr("exprs"):
        e = parse_expr(text)
        value = parts.value(e)
        if np.broadcast_shapes(*(shapes[k] for k in operands_of(e))) != full:
            value = w.emit("Expand", [value, w.ints(full)])
        found.append(value)
    return found


def _finished(w: Writer, node: Node, values: Sequence[str]) -> list[str]:
    """Values in the types of the node's results."""
    kinds = [w.type_of(w.graph[o]) if o else w.accum for o in node.outputs]
    return [w.cast(v, k) for v, k in zip(values, kinds, strict=True)]


def write_map(w: Writer, node: Node) -> list[str]:
    """One chain of elementwise nodes an expression."""
    return _finished(w, node, _values(w, node))


def write_reduce(w: Writer, node: Node) -> list[str]:
    """The expressions, then ReduceSum, ReduceMax or ReduceMin."""
    values, axes = _values(w, node), node.attr("axes")
    if axes:
        kind = {"sum": "ReduceSum", "max": "ReduceMax", "min": "ReduceMin"}[node.attr("kind")]
        values = [w.emit(kind, [v, w.ints(axes)], keepdims=1) for v in values]
    return _finished(w, node, values)


def write_moments(w: Writer, node: Node) -> list[str]:
    """mean(x) and mean((x - mean(x))²): two sweeps, which lose nothing when |mean| >> std."""
    x = w.cast(w.named(node.inputs[0]), w.accum)
    if not node.attr("axes"):
        return [x, w.emit("Sub", [x, x])]
    axes = w.ints(node.attr("axes"))
    mean = w.emit("ReduceMean", [x, axes], keepdims=1)
    off = w.emit("Sub", [x, mean])
    return [mean, w.emit("ReduceMean", [w.emit("Mul", [off, off]), axes], keepdims=1)]


_GAMMA = 0x9E3779B97F4A7C15
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


def write_random(w: Writer, node: Node) -> list[str]:
    """The hash of (seed, step, position) that `Random` defines, in 64-bit integer nodes.

    Products and sums are taken as int64, which keeps the same low 64 bits; shifts and
    exclusive ors as uint64.
    """
    if not w.stepped:
        w.stepped = w.fresh("random/step")
        w.declare(w.stepped, np.zeros((), np.int64), INT64)
    shape = node.attr("shape")
    one, gamma = w.constant(1, INT64), _signed(w, _GAMMA)
    count = w.constant(math.prod(shape), INT64)
    seed = _mix(w, _signed(w, node.attr("seed") + _GAMMA))
    step = w.emit("Mul", [w.emit("Add", [w.stepped, one]), gamma])
    key = w.emit("Add", [_mix(w, w.emit("Add", [seed, step])), gamma])
    position = w.emit("Range", [w.constant(0, INT64), count, one])
    mixed = _mix(w, w.emit("Add", [w.emit("Mul", [position, gamma]), key]))
    bits = w.emit("BitShift", [w.cast(mixed, UINT64), w.constant(40, UINT64)], direction="RIGHT")
    drawn = w.emit("Mul", [w.cast(bits, w.accum), w.constant(2.0**-24, w.accum)])
    return [w.reshape(drawn, shape)]


def _signed(w: Writer, value: int) -> str:
    """A number modulo 2^64 as the int64 with the same bits."""
    return w.constant(np.uint64(value & (2**64 - 1)).astype(np.int64), INT64)


def _mix(w: Writer, z: str) -> str:
    for shift, factor in _MIX:
        z = w.emit("Mul", [_fold(w, z, shift), _signed(w, factor)])
    return _fold(w, z, 31)


def _fold(w: Writer, z: str, shift: int) -> str:
    """z ^ (z >> shift), as int64."""
    bits = w.cast(z, UINT64)
    shifted = w.emit("BitShift", [bits, w.constant(shift, UINT64)], direction="RIGHT")
    return w.cast(w.emit("BitwiseXor", [bits, shifted]), INT64)
