"""Scalar expressions: what a `map` or `reduce` node computes for each element.

Written in infix: `max((a - b) * c, 0)`.  Operands a, b, c … are the node's inputs in order,
broadcast against each other as numpy does.  Comparisons give 1 or 0.  The same language serves
forward ops, their gradients, losses and optimizers, so one lowering serves them all.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ccnn.passes.graph import GraphError

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Expr:
    """A node of an expression: an operand (`kind='in'`), a number (`'num'`) or a function."""

    kind: str
    args: tuple[Expr, ...] = ()
    value: float = 0.0

    def __str__(self) -> str:
        return _print(self, 0)


def erf(x: np.ndarray) -> np.ndarray:
    """The error function, element by element, to the last bit of math.erf."""
    return np.asarray(np.frompyfunc(math.erf, 1, 1)(x), x.dtype)


FUNCTIONS: dict[str, tuple[int, Callable[..., np.ndarray]]] = {
    "add": (2, np.add),
    "sub": (2, np.subtract),
    "mul": (2, np.multiply),
    "div": (2, np.divide),
    "neg": (1, np.negative),
    "max": (2, np.maximum),
    "min": (2, np.minimum),
    "gt": (2, lambda x, y: (x > y).astype(np.result_type(x, y))),
    "ge": (2, lambda x, y: (x >= y).astype(np.result_type(x, y))),
    "lt": (2, lambda x, y: (x < y).astype(np.result_type(x, y))),
    "le": (2, lambda x, y: (x <= y).astype(np.result_type(x, y))),
    "eq": (2, lambda x, y: (x == y).astype(np.result_type(x, y))),
    "where": (3, lambda c, x, y: np.where(c != 0, x, y)),
    "abs": (1, np.abs),
    "sign": (1, np.sign),
    "floor": (1, np.floor),
    "sqrt": (1, np.sqrt),
    "exp": (1, np.exp),
    "log": (1, np.log),
    "sin": (1, np.sin),
    "cos": (1, np.cos),
    "tanh": (1, np.tanh),
    "sigmoid": (1, lambda x: 0.5 * np.tanh(0.5 * x) + 0.5),
    "softplus": (1, lambda x: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))),
    "erf": (1, erf),
    "pow": (2, np.power),
}
"""Every function of the language: number of operands and what it computes."""

_INFIX = {"add": ("+", 1), "sub": ("-", 1), "mul": ("*", 2), "div": ("/", 2)}
_COMPARE = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "eq": "=="}
_AST_BINARY = {ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "div"}
_AST_COMPARE = {ast.Gt: "gt", ast.GtE: "ge", ast.Lt: "lt", ast.LtE: "le", ast.Eq: "eq"}


def operand(index: int) -> Expr:
    """The operand for input number `index`."""
    return Expr("in", value=index)


def number(value: float) -> Expr:
    """A literal."""
    return Expr("num", value=float(value))


@lru_cache(maxsize=4096)
def parse_expr(text: str) -> Expr:
    """Read an expression; raises GraphError with the offending part when it is not one."""
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise GraphError(f"'{text}' is not an expression") from error
    return _from_ast(tree, text)


def _from_ast(tree: ast.AST, text: str) -> Expr:
    def sub(t: ast.AST) -> Expr:
        return _from_ast(t, text)

    match tree:
        case ast.Constant(value=int() | float() as value):
            return number(value)
        case ast.Name(id=name) if len(name) == 1 and name in LETTERS:
            return operand(LETTERS.index(name))
        case ast.Name(id="inf"):
            return number(math.inf)
        case ast.UnaryOp(op=ast.USub(), operand=value):
            inner = sub(value)
            return number(-inner.value) if inner.kind == "num" else Expr("neg", (inner,))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _AST_BINARY:
            return Expr(_AST_BINARY[type(op)], (sub(left), sub(right)))
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _AST_COMPARE:
            return Expr(_AST_COMPARE[type(op)], (sub(left), sub(right)))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in FUNCTIONS:
            if len(args) != FUNCTIONS[name][0]:
                raise GraphError(f"{name}() takes {FUNCTIONS[name][0]} operands in '{text}'")
            return Expr(name, tuple(sub(a) for a in args))
    raise GraphError(f"'{ast.unparse(tree)}' has no meaning in the expression '{text}'")


def _print(e: Expr, level: int) -> str:
    if e.kind == "in":
        return LETTERS[int(e.value)]
    if e.kind == "num":
        text = (
            repr(int(e.value))
            if float(e.value).is_integer() and abs(e.value) < 1e15
            else repr(e.value)
        )
        return f"({text})" if e.value < 0 and level else text
    if e.kind in _INFIX:
        sign, mine = _INFIX[e.kind]
        text = f"{_print(e.args[0], mine)} {sign} {_print(e.args[1], mine + 1)}"
        return f"({text})" if level > mine else text
    if e.kind in _COMPARE:
        return f"({_print(e.args[0], 1)} {_COMPARE[e.kind]} {_print(e.args[1], 1)})"
    if e.kind == "neg":
        return f"(-{_print(e.args[0], 3)})"
    return f"{e.kind}({', '.join(_print(a, 0) for a in e.args)})"


def evaluate(e: Expr, operands: Sequence[np.ndarray], dtype: np.dtype) -> np.ndarray:
    """The value of `e` with numpy, every step computed in `dtype`."""
    if e.kind == "in":
        return operands[int(e.value)].astype(dtype, copy=False)
    if e.kind == "num":
        return np.asarray(e.value, dtype)
    with np.errstate(all="ignore"):
        result = FUNCTIONS[e.kind][1](*(evaluate(a, operands, dtype) for a in e.args))
    return np.asarray(result, dtype)


def substitute(e: Expr, operands: Mapping[int, Expr]) -> Expr:
    """`e` with operands replaced by other expressions (those not named stay)."""
    if e.kind == "in":
        return operands.get(int(e.value), e)
    return Expr(e.kind, tuple(substitute(a, operands) for a in e.args), e.value)


def operands_of(e: Expr) -> frozenset[int]:
    """Which inputs `e` reads."""
    if e.kind == "in":
        return frozenset({int(e.value)})
    return frozenset().union(*(operands_of(a) for a in e.args)) if e.args else frozenset()


def operations(e: Expr) -> list[str]:
    """The functions that `e` applies, one entry each time, operands before their users."""
    return [k for a in e.args for k in operations(a)] + ([e.kind] if e.kind in FUNCTIONS else [])
