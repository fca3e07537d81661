"""The functions of the vector unit: what instruction `code` may say, means and costs.

Code is postfix: 's0' pushes source operand 0, 'k0' scalar 0, a number itself; a function takes
its operands from the stack and pushes its result.  Every step is computed in the accumulation
type.  A lane spends one slot on a simple function and four on one that is evaluated by
iteration or table (our assumption, the same for all machines).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ccnn.targets.program import Code


class VectorError(Exception):
    """Code that the vector unit cannot run."""


@dataclass(frozen=True)
class Function:
    """A function of the vector unit: operands taken, lane slots an element, meaning in numpy."""

    arity: int
    slots: int
    compute: Callable[..., np.ndarray]


def _compare(ufunc: np.ufunc) -> Callable[..., np.ndarray]:
    return lambda x, y: ufunc(x, y).astype(np.result_type(x, y))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * np.tanh(0.5 * x) + 0.5


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def _erf(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.frompyfunc(math.erf, 1, 1)(x)).astype(x.dtype)


FUNCTIONS: dict[str, Function] = {
    "add": Function(2, 1, np.add),
    "sub": Function(2, 1, np.subtract),
    "mul": Function(2, 1, np.multiply),
    "div": Function(2, 4, np.divide),
    "neg": Function(1, 1, np.negative),
    "max": Function(2, 1, np.maximum),
    "min": Function(2, 1, np.minimum),
    "gt": Function(2, 1, _compare(np.greater)),
    "ge": Function(2, 1, _compare(np.greater_equal)),
    "lt": Function(2, 1, _compare(np.less)),
    "le": Function(2, 1, _compare(np.less_equal)),
    "eq": Function(2, 1, _compare(np.equal)),
    "where": Function(3, 1, lambda c, x, y: np.where(c != 0, x, y)),
    "abs": Function(1, 1, np.abs),
    "sign": Function(1, 1, np.sign),
    "floor": Function(1, 1, np.floor),
    "sqrt": Function(1, 4, np.sqrt),
    "exp": Function(1, 4, np.exp),
    "log": Function(1, 4, np.log),
    "sin": Function(1, 4, np.sin),
    "cos": Function(1, 4, np.cos),
    "tanh": Function(1, 4, np.tanh),
    "sigmoid": Function(1, 4, _sigmoid),
    "softplus": Function(1, 4, _softplus),
    "erf": Function(1, 4, _erf),
    "pow": Function(2, 4, np.power),
}
"""Every function, by the name used in code."""


def operand_index(word: str) -> tuple[str, int] | None:
    """('s', 3) for 's3', ('k', 0) for 'k0', None for anything else."""
    if len(word) > 1 and word[0] in "sk" and word[1:].isascii() and word[1:].isdigit():
        return word[0], int(word[1:])
    return None


@lru_cache(maxsize=4096)
def check_code(code: Code, sources: int, scalars: int) -> str | None:
    """What is wrong with `code` for so many operands and scalars; None when it can run."""
    depth = 0
    for position, word in enumerate(code):
        if not isinstance(word, str):
            depth += 1
            continue
        operand = operand_index(word)
        if operand is not None:
            limit = sources if operand[0] == "s" else scalars
            if operand[1] >= limit:
                return f"'{word}' at position {position}: there are only {limit} of these"
            depth += 1
        elif word in FUNCTIONS:
            if depth < FUNCTIONS[word].arity:
                return f"'{word}' at position {position} finds {depth} operands on the stack"
            depth += 1 - FUNCTIONS[word].arity
        else:
            return f"'{word}' at position {position} is no function of the vector unit"
    return None if depth == 1 else f"code leaves {depth} values on the stack instead of 1"


@lru_cache(maxsize=4096)
def slots(code: Code) -> int:
    """Lane slots that one element of `code` takes; code without a function takes none."""
    functions = (FUNCTIONS.get(word) for word in code if isinstance(word, str))
    return sum(function.slots for function in functions if function is not None)


def evaluate(
    code: Code,
    operands: Sequence[np.ndarray],
    scalars: Sequence[float],
    dtype: np.dtype,
) -> np.ndarray:
    """The value of `code`, every step in `dtype`; raises VectorError when it cannot run."""
    problem = check_code(code, len(operands), len(scalars))
    if problem is not None:
        raise VectorError(problem)
    stack: list[np.ndarray] = []
    with np.errstate(all="ignore"):
        for word in code:
            operand = operand_index(word) if isinstance(word, str) else None
            if not isinstance(word, str):
                stack.append(np.asarray(word, dtype))
            elif operand is None:
                function = FUNCTIONS[word]
                first = len(stack) - function.arity
                stack[first:] = [np.asarray(function.compute(*stack[first:]), dtype)]
            elif operand[0] == "s":
                stack.append(operands[operand[1]].astype(dtype, copy=False))
            else:
                stack.append(np.asarray(scalars[operand[1]], dtype))
    return stack[0]
