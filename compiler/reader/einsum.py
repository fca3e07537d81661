"""Einsum as sums, transposes, reshapes and matrix products.

Two operands at a time: what only one of them has and nobody reads later is summed first; what is
left is a batch of products of [batch, M, K] by [batch, K, N], K being the letters that end there.
"""

from __future__ import annotations

import math
import string
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from ccnn.compiler.reader.context import Context, Live
from ccnn.compiler.reader.elementwise import Translate
from ccnn.compiler.reader.problems import Refusal

_FIX = "write it as matmul, transpose and reshape"


@dataclass(frozen=True)
class _Operand:
    tensor: str
    letters: str


def _parsed(c: Context) -> tuple[list[str], str]:
    """The letters of each operand and of the result, an ellipsis as letters of its own."""
    text = c.node.text("equation").replace(" ", "")
    left, arrow, right = text.partition("->")
    terms = left.split(",")
    if len(terms) != len(c.node.inputs):
        raise Refusal(f"the equation '{text}' has {len(terms)} operands", _FIX)
    free = [x for x in string.ascii_letters if x not in text]
    dots = ""
    for k, term in enumerate(terms):
        if "..." in term:
            extra = len(c.shape(k)) - len(term.replace("...", ""))
            wide = "".join(free[: max(extra, 0)])
            if dots and dots != wide:
                raise Refusal(f"the ellipses of '{text}' stand for different axes", _FIX)
            dots = dots or wide
    terms = [t.replace("...", dots) for t in terms]
    if not arrow:
        counts = Counter("".join(terms))
        right = dots + "".join(sorted(x for x in counts if counts[x] == 1 and x not in dots))
    right = right.replace("...", dots)
    for k, term in enumerate(terms):
        if len(term) != len(c.shape(k)) or not term.isalpha():
            raise Refusal(f"the equation '{text}' does not fit its input {list(c.shape(k))}", _FIX)
    if any(len(set(t)) < len(t) for t in (*terms, right)):
        raise Refusal(f"the equation '{text}' takes a diagonal", _FIX)
    if not set(right) <= set("".join(terms)):
        raise Refusal(f"the equation '{text}' makes up an axis", _FIX)
    return terms, right


def _sizes(c: Context, terms: list[str]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for k, term in enumerate(terms):
        for letter, size in zip(term, c.shape(k), strict=True):
            if sizes.setdefault(letter, size) != size:
                raise Refusal(f"the axis {letter} has the sizes {sizes[letter]} and {size}")
    return sizes


def _summed(c: Context, x: _Operand, kept: Collection[str]) -> _Operand:
    axes = tuple(k for k, letter in enumerate(x.letters) if letter not in kept)
    if not axes:
        return x
    tensor = c.emit("reduce_sum", x.tensor, axes=axes, keepdims=False)
    return _Operand(tensor, "".join(y for y in x.letters if y in kept))


def _ordered(c: Context, x: _Operand, letters: str) -> str:
    if x.letters == letters:
        return x.tensor
    return c.emit("transpose", x.tensor, perm=tuple(x.letters.index(y) for y in letters))


def _product(
    c: Context, a: _Operand, b: _Operand, later: Collection[str], sizes: dict[str, int]
) -> _Operand:
    a, b = _summed(c, a, {*b.letters, *later}), _summed(c, b, {*a.letters, *later})
    shared = [x for x in a.letters if x in b.letters]
    batch = "".join(x for x in shared if x in later)
    inner = "".join(x for x in shared if x not in later)
    rows = "".join(x for x in a.letters if x not in shared)
    columns = "".join(x for x in b.letters if x not in shared)

    def packed(x: _Operand, *parts: str) -> str:
        shape = tuple(math.prod(sizes[y] for y in part) for part in parts)
        return c.emit("reshape", _ordered(c, x, "".join(parts)), shape=shape)

    y = c.emit(
        "matmul", packed(a, batch, rows, inner), packed(b, batch, inner, columns),
        trans_a=False, trans_b=False,
    )  # fmt: skip
    letters = batch + rows + columns
    return _Operand(c.emit("reshape", y, shape=tuple(sizes[x] for x in letters)), letters)


def _einsum(c: Context) -> Live:
    terms, right = _parsed(c)
    sizes = _sizes(c, terms)
    operands = [_Operand(c.weight(k), t) for k, t in enumerate(terms)]
    result = operands.pop(0)
    while operands:
        other = operands.pop(0)
        result = _product(c, result, other, {*right, *"".join(x.letters for x in operands)}, sizes)
    result = _summed(c, result, right)
    return c.final("transpose", result.tensor, perm=tuple(result.letters.index(x) for x in right))


EINSUM: dict[str, Translate] = {"Einsum": _einsum}
