"""Activation functions; how their formulas are spelled is told in elementwise.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from ccnn.passes.expr import Expr, erf, parse_expr
from ccnn.passes.graph import Node, Tensor
from ccnn.passes.ops.base import Result
from ccnn.passes.ops.common import fail
from ccnn.passes.ops.elementwise import Elementwise


class Relu(Elementwise):
    """max(x, 0); its derivative at 0 is 0."""

    name = "relu"
    formula = "max(a, 0)"
    derivatives = ("where(y > 0, d, 0)",)
    plain = staticmethod(lambda x: np.where(x > 0, x, 0))


class LeakyRelu(Elementwise):
    """x where positive, alpha x elsewhere."""

    name = "leaky_relu"
    attributes: ClassVar[dict[str, Any]] = {"alpha": 0.01}
    formula = "where(a > 0, a, a * {alpha})"
    derivatives = ("where(y > 0, d, d * {alpha})",)
    plain = staticmethod(lambda x, alpha: np.where(x < 0, alpha * x, x))

    def slopes(self, node: Node) -> list[Expr | None]:
        if node.attr("alpha", 0.01) >= 0:
            return super().slopes(node)
        return [self.fill("where(a > 0, d, d * {alpha})", node)]  # y > 0 tells nothing here


class Elu(Elementwise):
    """x where positive, alpha (e^x - 1) elsewhere."""

    name = "elu"
    attributes: ClassVar[dict[str, Any]] = {"alpha": 1.0}
    formula = "where(a > 0, a, {alpha} * (exp(a) - 1))"
    derivatives = ("where(y > 0, d, d * (y + {alpha}))",)
    plain = staticmethod(lambda x, alpha: np.where(x > 0, x, alpha * np.expm1(x)))

    def slopes(self, node: Node) -> list[Expr | None]:
        if node.attr("alpha", 1.0) >= 0:
            return super().slopes(node)
        return [self.fill("where(a > 0, d, d * {alpha} * exp(a))", node)]


class Selu(Elementwise):
    """gamma x where positive, gamma alpha (e^x - 1) elsewhere."""

    name = "selu"
    attributes: ClassVar[dict[str, Any]] = {
        "alpha": 1.6732632423543772,
        "gamma": 1.0507009873554805,
    }
    formula = "{gamma} * where(a > 0, a, {alpha} * (exp(a) - 1))"
    derivatives = ("d * {gamma} * where(a > 0, 1, {alpha} * exp(a))",)
    plain = staticmethod(lambda x, alpha, gamma: gamma * np.where(x > 0, x, alpha * np.expm1(x)))


class Celu(Elementwise):
    """x where positive, alpha (e^(x/alpha) - 1) elsewhere."""

    name = "celu"
    attributes: ClassVar[dict[str, Any]] = {"alpha": 1.0}
    formula = "where(a > 0, a, {alpha} * (exp(a / {alpha}) - 1))"
    derivatives = ("where(a > 0, d, d * exp(a / {alpha}))",)
    plain = staticmethod(
        lambda x, alpha: np.maximum(x, 0) + np.minimum(0, alpha * np.expm1(x / alpha))
    )


class Sigmoid(Elementwise):
    """1 / (1 + e^-x)."""

    name = "sigmoid"
    formula = "sigmoid(a)"
    derivatives = ("d * y * (1 - y)",)
    plain = staticmethod(lambda x: 1 / (1 + np.exp(-x)))


class Tanh(Elementwise):
    """The hyperbolic tangent."""

    name = "tanh"
    formula = "tanh(a)"
    derivatives = ("d * (1 - y * y)",)
    plain = staticmethod(np.tanh)


class HardSigmoid(Elementwise):
    """alpha x + beta, held between 0 and 1."""

    name = "hard_sigmoid"
    attributes: ClassVar[dict[str, Any]] = {"alpha": 0.2, "beta": 0.5}
    formula = "max(0, min(1, a * {alpha} + {beta}))"
    derivatives = ("where((y > 0) * (y < 1), d * {alpha}, 0)",)
    plain = staticmethod(lambda x, alpha, beta: np.clip(alpha * x + beta, 0, 1))


class HardSwish(Elementwise):
    """x times x/6 + 1/2 held between 0 and 1."""

    name = "hard_swish"
    formula = "a * max(0, min(1, a * 0.16666666666666666 + 0.5))"
    derivatives = ("where(a <= -3, 0, where(a < 3, d * (a * 0.3333333333333333 + 0.5), d))",)
    plain = staticmethod(lambda x: x * np.clip(x / 6 + 0.5, 0, 1))


class Softplus(Elementwise):
    """log(1 + e^x)."""

    name = "softplus"
    formula = "softplus(a)"
    derivatives = ("d * sigmoid(a)",)
    plain = staticmethod(lambda x: np.logaddexp(x, 0))


class Softsign(Elementwise):
    """x / (1 + |x|)."""

    name = "softsign"
    formula = "a / (1 + abs(a))"
    derivatives = ("d / ((1 + abs(a)) * (1 + abs(a)))",)
    plain = staticmethod(lambda x: x / (1 + np.abs(x)))


_ROOT_HALF, _ROOT_2_PI = repr(math.sqrt(0.5)), repr(math.sqrt(2 / math.pi))
_DENSITY = f"{1 / math.sqrt(2 * math.pi)!r} * exp(a * a * -0.5)"
_CUBIC = f"tanh({_ROOT_2_PI} * (a + 0.044715 * a * a * a))"


class Gelu(Elementwise):
    """x Φ(x), exactly (approximate='none') or by its tanh approximation (Hendrycks, eq. 2)."""

    name = "gelu"
    formula = f"0.5 * a * (1 + erf(a * {_ROOT_HALF}))"
    derivatives = (f"d * (0.5 * (1 + erf(a * {_ROOT_HALF})) + a * {_DENSITY})",)
    attributes: ClassVar[dict[str, Any]] = {"approximate": "none"}

    @staticmethod
    def plain(x: np.ndarray, approximate: str) -> np.ndarray:
        """The Gaussian distribution function times x."""
        if approximate == "none":
            return x * (1 + erf(x / math.sqrt(2))) / 2
        return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Result]:
        if node.attr("approximate", "none") not in ("none", "tanh"):
            fail(node, f"approximate = {node.attr('approximate')!r} is neither 'none' nor 'tanh'")
        return super().infer(node, inputs)

    def fill(self, text: str, node: Node) -> Expr:
        if node.attr("approximate", "none") == "none":
            return parse_expr(text)
        if text == self.formula:
            return parse_expr(f"0.5 * a * (1 + {_CUBIC})")
        inner = f"{_ROOT_2_PI} * (1 + 0.134145 * a * a)"
        return parse_expr(
            f"d * (0.5 * (1 + {_CUBIC}) + 0.5 * a * (1 - {_CUBIC} * {_CUBIC}) * {inner})"
        )


class Erf(Elementwise):
    """The error function."""

    name = "erf"
    formula = "erf(a)"
    derivatives = (f"d * {2 / math.sqrt(math.pi)!r} * exp(-(a * a))",)
    plain = staticmethod(lambda x: np.vectorize(math.erf, otypes=[x.dtype])(x))


class Sin(Elementwise):
    """The sine."""

    name = "sin"
    formula = "sin(a)"
    derivatives = ("d * cos(a)",)
    plain = staticmethod(np.sin)


class Cos(Elementwise):
    """The cosine."""

    name = "cos"
    formula = "cos(a)"
    derivatives = ("-d * sin(a)",)
    plain = staticmethod(np.cos)


class Mish(Elementwise):
    """x tanh(log(1 + e^x))."""

    name = "mish"
    formula = "a * tanh(softplus(a))"
    derivatives = (
        "d * (tanh(softplus(a)) + a * sigmoid(a) * (1 - tanh(softplus(a)) * tanh(softplus(a))))",
    )
    plain = staticmethod(lambda x: x * np.tanh(np.logaddexp(x, 0)))


class Silu(Elementwise):
    """x / (1 + e^-x)."""

    name = "silu"
    formula = "a * sigmoid(a)"
    derivatives = ("d * sigmoid(a) * (1 + a * (1 - sigmoid(a)))",)
    plain = staticmethod(lambda x: x / (1 + np.exp(-x)))


class Clip(Elementwise):
    """x held between min and max; the derivative is 0 on the bounds, as for ReLU6.

    So the result tells the derivative and the input need not be kept.
    """

    name = "clip"
    attributes: ClassVar[dict[str, Any]] = {"min": -math.inf, "max": math.inf}
    formula = "min(max(a, {min}), {max})"
    derivatives = ("where((y > {min}) * (y < {max}), d, 0)",)
    plain = staticmethod(lambda x, min, max: np.clip(x, min, max))

    def expression(self, node: Node) -> Expr:
        text = "a"
        if not math.isinf(node.attr("min", -math.inf)):
            text = f"max({text}, {float(node.attr('min'))!r})"
        if not math.isinf(node.attr("max", math.inf)):
            text = f"min({text}, {float(node.attr('max'))!r})"
        return parse_expr(text)

    def slopes(self, node: Node) -> list[Expr | None]:
        low, high = node.attr("min", -math.inf), node.attr("max", math.inf)
        if math.isinf(low) and math.isinf(high):
            return [parse_expr("d")]
        if math.isinf(low):
            return [parse_expr(f"where(y < {float(high)!r}, d, 0)")]
        if math.isinf(high):
            return [parse_expr(f"where(y > {float(low)!r}, d, 0)")]
        return super().slopes(node)


class Prelu(Elementwise):
    """x where positive, slope x elsewhere; the slope is trained."""

    name = "prelu"
    formula = "where(a > 0, a, a * b)"
    derivatives = ("where(a > 0, d, d * b)", "where(a > 0, 0, d * a)")
    plain = staticmethod(lambda x, slope: np.maximum(x, 0) + slope * np.minimum(x, 0))


ACTIVATIONS: tuple[Elementwise, ...] = (
    Relu(),
    LeakyRelu(),
    Elu(),
    Selu(),
    Celu(),
    Sigmoid(),
    Tanh(),
    HardSigmoid(),
    HardSwish(),
    Softplus(),
    Softsign(),
    Gelu(),
    Erf(),
    Sin(),
    Cos(),
    Mish(),
    Silu(),
    Clip(),
    Prelu(),
)
