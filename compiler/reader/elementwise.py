"""Element-by-element operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ccnn.compiler.reader.context import Context, Known, Live, Value
from ccnn.compiler.reader.problems import Refusal

Translate = Callable[[Context], Value | Sequence[Value]]
"""What reads an operator: the value of its first output, or of all its outputs."""


def _unary(op: str, **defaults: float) -> Translate:
    """An operator with one input whose float attributes carry the same names in the graph."""

    def run(c: Context) -> Live:
        attrs = {k: c.node.float(k, v) for k, v in defaults.items()}
        return c.final(op, c.tensor(0), **attrs)

    return run


def _binary(op: str) -> Translate:
    def run(c: Context) -> Live:
        return c.final(op, c.tensor(0), c.tensor(1))

    return run


def _mul(c: Context) -> Known | Live:
    shape = np.broadcast_shapes(c.shape(0), c.shape(1))
    for k in (0, 1):  # a random layer that is left out is a factor of ones
        one, other = c.value(k), c.value(1 - k)
        if (
            isinstance(one, Known) and one.kind != "initializer" and np.all(one.array == 1)
            and isinstance(other, Live) and c.shape(1 - k) == shape
        ):  # fmt: skip
            return other
    return c.final("mul", c.tensor(0), c.tensor(1))


def _variadic(op: str, average: bool = False) -> Translate:
    def run(c: Context) -> Live | Known:
        count = len(c.node.inputs)
        if not count:
            raise Refusal("it has no inputs")
        total = c.tensor(0)
        for k in range(1, count):
            last = k == count - 1 and not average
            total = (c.final(op, total, c.tensor(k)).tensor if last
                     else c.emit(op, total, c.tensor(k)))  # fmt: skip
        if average:
            return c.final("mul", total, c.constant(1.0 / count))
        return Live(total)

    return run


def _clip(c: Context) -> Live | Known:
    attrs: dict[str, float] = {}
    for position, name in ((1, "min"), (2, "max")):
        if name in c.node.attrs:
            attrs[name] = c.node.float(name)
        elif c.node.has(position):
            attrs[name] = c.scalar(position)
    if any(np.isnan(v) for v in attrs.values()):
        raise Refusal("a bound is NaN")
    # Operator sets before 11 spell "no bound" as the largest float.
    attrs = {k: v for k, v in attrs.items() if abs(v) < float(np.finfo(np.float32).max)}
    if not attrs:
        return c.value(0)
    return c.final("clip", c.tensor(0), **attrs)


def _gelu(c: Context) -> Live:
    kind = c.node.text("approximate", "none")
    if kind not in ("none", "tanh"):
        raise Refusal(f"approximate='{kind}' is unknown", "use 'none' or 'tanh'")
    return c.final("gelu", c.tensor(0), approximate=kind)


def _swish(c: Context) -> Live:
    alpha = c.node.float("alpha", 1.0)
    x = c.tensor(0)
    if alpha == 1.0:
        return c.final("silu", x)
    return c.final("mul", x, c.emit("sigmoid", c.emit("mul", x, c.constant(alpha))))


def _thresholded_relu(c: Context) -> Live:
    # x * [x > alpha]; the mask comes from sign, whose gradient is zero everywhere.
    x = c.tensor(0)
    above = c.emit("sub", x, c.constant(c.node.float("alpha", 1.0)))
    return c.final("mul", x, c.emit("relu", c.emit("sign", above)))


def _shrink(c: Context) -> Live:
    """x pulled in by `bias` where it is beyond `lambd`, 0 between."""
    bias, lambd = c.node.float("bias", 0.0), c.node.float("lambd", 0.5)
    x = c.tensor(0)
    sides = ("a > {0!r}", "a < -({0!r})")
    above, below = (c.emit("detached", x, expr=side.format(lambd)) for side in sides)
    kept = c.emit("mul", x, c.emit("add", above, below))
    return c.final("add", kept, c.emit("mul", c.emit("sub", below, above), c.constant(bias)))


def _tan(c: Context) -> Live:
    return c.final("div", c.emit("sin", c.tensor(0)), c.emit("cos", c.tensor(0)))


def _ceil(c: Context) -> Live:
    return c.final("neg", c.emit("floor", c.emit("neg", c.tensor(0))))


def _prelu(c: Context) -> Live:
    return c.final("prelu", c.tensor(0), c.weight(1))


def _where(c: Context) -> Live:
    condition = c.value(0)
    if isinstance(condition, Known):
        chosen = c.constant(condition.array != 0)
    else:
        chosen = c.tensor_of(condition)
    return c.final("where", chosen, c.tensor(1), c.tensor(2))


def _condition(expression: str) -> Translate:
    """A condition on data, as 1 where it holds and 0 elsewhere; nothing flows back through it."""

    def translate(c: Context) -> Live:
        inputs = (c.tensor(i) for i in range(len(c.node.inputs)))
        return c.final("detached", *inputs, expr=expression)

    return translate


ELEMENTWISE: dict[str, Translate] = {
    "Relu": _unary("relu"),
    "LeakyRelu": _unary("leaky_relu", alpha=0.01),
    "Elu": _unary("elu", alpha=1.0),
    "Selu": _unary("selu", alpha=1.6732632423543772, gamma=1.0507009873554805),
    "Celu": _unary("celu", alpha=1.0),
    "Sigmoid": _unary("sigmoid"),
    "Tanh": _unary("tanh"),
    "HardSigmoid": _unary("hard_sigmoid", alpha=0.2, beta=0.5),
    "HardSwish": _unary("hard_swish"),
    "Softplus": _unary("softplus"),
    "Softsign": _unary("softsign"),
    "Erf": _unary("erf"),
    "Mish": _unary("mish"),
    "Sqrt": _unary("sqrt"),
    "Exp": _unary("exp"),
    "Log": _unary("log"),
    "Neg": _unary("neg"),
    "Abs": _unary("abs"),
    "Reciprocal": _unary("reciprocal"),
    "Sign": _unary("sign"),
    "Floor": _unary("floor"),
    "Ceil": _ceil,
    "Sin": _unary("sin"),
    "Cos": _unary("cos"),
    "Tan": _tan,
    "Shrink": _shrink,
    "Gelu": _gelu,
    "Swish": _swish,
    "ThresholdedRelu": _thresholded_relu,
    "Clip": _clip,
    "PRelu": _prelu,
    "Add": _binary("add"),
    "Sub": _binary("sub"),
    "Mul": _mul,
    "Div": _binary("div"),
    "Pow": _binary("pow"),
    "Min": _variadic("min"),
    "Max": _variadic("max"),
    "Sum": _variadic("add"),
    "Mean": _variadic("add", average=True),
    "Where": _where,
    "Greater": _condition("a > b"),
    "GreaterOrEqual": _condition("a >= b"),
    "Less": _condition("a < b"),
    "LessOrEqual": _condition("a <= b"),
    "Equal": _condition("a == b"),
    "And": _condition("a * b"),
    "Or": _condition("max(a, b)"),
    "Xor": _condition("a + b - 2 * a * b"),
    "Not": _condition("1 - a"),
}
