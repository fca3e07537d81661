"""Arithmetic, element by element; how the formulas are spelled is told in elementwise.py."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ccnn.passes.expr import Expr, evaluate, operands_of, parse_expr
from ccnn.passes.graph import Node, Tensor
from ccnn.passes.ops.base import Result
from ccnn.passes.ops.common import broadcast, common_dtype, fail, given, take
from ccnn.passes.ops.elementwise import Elementwise


class Sqrt(Elementwise):
    """The square root."""

    name = "sqrt"
    formula = "sqrt(a)"
    derivatives = ("d * 0.5 / y",)
    plain = staticmethod(np.sqrt)


class Exp(Elementwise):
    """e^x."""

    name = "exp"
    formula = "exp(a)"
    derivatives = ("d * y",)
    plain = staticmethod(np.exp)


class Log(Elementwise):
    """The natural logarithm."""

    name = "log"
    formula = "log(a)"
    derivatives = ("d / a",)
    plain = staticmethod(np.log)


class Neg(Elementwise):
    """-x."""

    name = "neg"
    formula = "-a"
    derivatives = ("-d",)
    plain = staticmethod(np.negative)


class Abs(Elementwise):
    """|x|; its derivative at 0 is 0."""

    name = "abs"
    formula = "abs(a)"
    derivatives = ("d * sign(a)",)
    plain = staticmethod(np.abs)


class Reciprocal(Elementwise):
    """1 / x."""

    name = "reciprocal"
    formula = "1 / a"
    derivatives = ("-(d * y * y)",)
    plain = staticmethod(np.reciprocal)


class Sign(Elementwise):
    """-1, 0 or 1."""

    name = "sign"
    formula = "sign(a)"
    derivatives = (None,)
    plain = staticmethod(np.sign)


class Floor(Elementwise):
    """The largest integer not above x."""

    name = "floor"
    formula = "floor(a)"
    derivatives = (None,)
    plain = staticmethod(np.floor)


class Add(Elementwise):
    """a + b."""

    name = "add"
    formula = "a + b"
    derivatives = ("d", "d")
    plain = staticmethod(np.add)


class Sub(Elementwise):
    """a - b."""

    name = "sub"
    formula = "a - b"
    derivatives = ("d", "-d")
    plain = staticmethod(np.subtract)


class Mul(Elementwise):
    """a b."""

    name = "mul"
    formula = "a * b"
    derivatives = ("d * b", "d * a")
    plain = staticmethod(np.multiply)


class Div(Elementwise):
    """a / b."""

    name = "div"
    formula = "a / b"
    derivatives = ("d / b", "-(d * y / b)")
    plain = staticmethod(np.divide)


class Pow(Elementwise):
    """a to the b; the exponent's gradient is 0 where the base is not positive."""

    name = "pow"
    formula = "pow(a, b)"
    derivatives = (
        "where(b == 0, 0, d * b * pow(a, b - 1))",
        "where(a > 0, d * y * log(a), 0)",
    )
    plain = staticmethod(np.power)


class Min(Elementwise):
    """The smaller; the gradient is halved between equals."""

    name = "min"
    formula = "min(a, b)"
    derivatives = ("d * ((a < b) + 0.5 * (a == b))", "d * ((b < a) + 0.5 * (a == b))")
    plain = staticmethod(np.minimum)


class Max(Elementwise):
    """The larger; the gradient is halved between equals."""

    name = "max"
    formula = "max(a, b)"
    derivatives = ("d * ((a > b) + 0.5 * (a == b))", "d * ((b > a) + 0.5 * (a == b))")
    plain = staticmethod(np.maximum)


class Where(Elementwise):
    """The second input where the first is not zero, else the third."""

    name = "where"
    formula = "where(a, b, c)"
    derivatives = (None, "where(a, d, 0)", "where(a, 0, d)")
    plain = staticmethod(lambda c, x, y: np.where(c != 0, x, y))


class Detached(Elementwise):
    """The formula `expr` of the inputs, such as a > b; nothing flows back through it."""

    name = "detached"

    def expression(self, node: Node) -> Expr:
        return parse_expr(node.attr("expr"))

    def slopes(self, node: Node) -> list[Expr | None]:
        return [None] * len(node.inputs)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Result]:
        tensors = given(take(node, inputs, len(inputs)))
        if any(k >= len(tensors) for k in operands_of(self.expression(node))):
            fail(node, f"{node.attr('expr')!r} has more operands than the {len(tensors)} given")
        return [(broadcast(node, [t.shape for t in tensors]), common_dtype(tensors))]

    def reference(self, node: Node, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        arrays = [np.asarray(i) for i in inputs]
        value = evaluate(self.expression(node), arrays, np.result_type(*arrays))
        return [np.broadcast_to(value, np.broadcast_shapes(*(a.shape for a in arrays)))]


ARITHMETIC: tuple[Elementwise, ...] = (
    Sqrt(),
    Exp(),
    Log(),
    Neg(),
    Abs(),
    Reciprocal(),
    Sign(),
    Floor(),
    Add(),
    Sub(),
    Mul(),
    Div(),
    Pow(),
    Min(),
    Max(),
    Where(),
    Detached(),
)
