"""Folding of scalar expressions: literal arithmetic done once, neutral elements dropped.

x*1 = x, x/1 = x, x+0 = x, x-0 = x, pow(x, 1) = x.  x*0 stays: it is NaN where x is not finite.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ccnn.passes.expr import Expr, evaluate, number

_ONE, _ZERO = number(1), number(0)


def fold(e: Expr) -> Expr:
    """`e` with literal parts computed and neutral operations removed."""
    if e.kind in ("in", "num"):
        return e
    args = tuple(fold(a) for a in e.args)
    if all(a.kind == "num" for a in args):
        value = float(evaluate(Expr(e.kind, args), (), np.dtype(np.float64)))
        if not np.isnan(value):
            return number(value)
    rule = _NEUTRAL.get(e.kind)
    return (rule(*args) if rule else None) or Expr(e.kind, args)


def _add(x: Expr, y: Expr) -> Expr | None:
    return y if x == _ZERO else x if y == _ZERO else None


def _sub(x: Expr, y: Expr) -> Expr | None:
    return x if y == _ZERO else None


def _mul(x: Expr, y: Expr) -> Expr | None:
    return y if x == _ONE else x if y == _ONE else None


def _by_one(x: Expr, y: Expr) -> Expr | None:
    return x if y == _ONE else None


def _where(c: Expr, x: Expr, y: Expr) -> Expr | None:
    if c.kind == "num":
        return x if c.value != 0 else y
    return x if x == y else None


def _neg(x: Expr) -> Expr | None:
    return x.args[0] if x.kind == "neg" else None


_NEUTRAL: dict[str, Callable[..., Expr | None]] = {
    "add": _add,
    "sub": _sub,
    "mul": _mul,
    "div": _by_one,
    "pow": _by_one,
    "where": _where,
    "neg": _neg,
}
