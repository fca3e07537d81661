"""How operands in program text are read; how they are spelled is told in targets/text.py."""

from __future__ import annotations

import json
import re
from functools import lru_cache

from ccnn.targets.program import ZERO, Affine, Dim, Extent, Matrix, Slot, View

_NAME = r'("(?:[^"\\]|\\.)*"|[A-Za-z_][\w./:-]*)'
_EXTENT = r"(min\(\d+,[^()]+\)|-?\d+)"
_TERM = re.compile(r"([+-]?)(?:(\d+)\*)?([A-Za-z_]\w*)|([+-]?\d+)", re.ASCII)
_MIN = re.compile(r"min\((-?\d+),([^()]+)\)")
_DIM = re.compile(_EXTENT + r":(-?\d+)(?:,|$)")
_SLOT = re.compile(_NAME + r"(?:\[([^\]]+)\])?", re.ASCII)
_VIEW = re.compile(_NAME + r"(?:\[([^\]]+)\])?\{([^|}]*)\}(?:@([^<]+))?", re.ASCII)
_MATRIX = re.compile(
    _NAME + r"(?:\[([^\]]+)\])?\{([^|}]*)\|([^}]*)\}(?:@([^<]+))?"
    r"<([^:,()]+):" + _EXTENT + r",([^:,()]+):" + _EXTENT + ">",
    re.ASCII,
)
_BOX = re.compile(_NAME + r"\(([^()]*)\)(?:\*\(([^()]*)\))?", re.ASCII)
_TYPED = re.compile(_NAME + r"\[([^\]]*)\]", re.ASCII)


class BadLine(Exception):
    """A problem of the present line; the place is added above."""


@lru_cache(maxsize=65536)
def read_name(text: str) -> str:
    """A name, plain or as a JSON string."""
    if not text.startswith('"'):
        if not re.fullmatch(_NAME, text, re.ASCII):
            raise BadLine(f"'{text}' is not a name; odd names are written as JSON strings")
        return text
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadLine(f"{text} is not a JSON string") from error
    return value


@lru_cache(maxsize=65536)
def read_affine(text: str) -> Affine:
    """An address such as `3*i0+i1-4`."""
    const, terms, position = 0, {}, 0
    while position < len(text):
        found = _TERM.match(text, position)
        if found is None or (position and found[0][0] not in "+-"):
            raise BadLine(f"'{text}' is not an address such as 3*i0+i1-4")
        sign, factor, var, number = found.groups()
        if var:
            coefficient = int(factor or 1) * (-1 if sign == "-" else 1)
            terms[var] = terms.get(var, 0) + coefficient
        else:
            const += int(number)
        position = found.end()
    if not text:
        raise BadLine("an address is empty; write 0")
    return Affine(const, tuple(sorted((v, c) for v, c in terms.items() if c)))


def read_affines(text: str) -> tuple[Affine, ...]:
    """Addresses separated by commas."""
    return tuple([read_affine(part) for part in text.split(",")]) if text else ()


@lru_cache(maxsize=65536)
def read_extent(text: str) -> Extent:
    """`8` or `min(8,30-8*i0)`."""
    found = _MIN.fullmatch(text)
    if found:
        return Extent(int(found[1]), read_affine(found[2]))
    return Extent(read_integer(text))


def read_integer(text: str) -> int:
    """A whole number."""
    try:
        return int(text)
    except ValueError as error:
        raise BadLine(f"'{text[:40]}' is not a whole number") from error


def read_float(text: str) -> float:
    """A number."""
    try:
        return float(text)
    except ValueError as error:
        raise BadLine(f"'{text[:40]}' is not a number") from error


def read_integers(text: str) -> tuple[int, ...]:
    """Whole numbers separated by commas."""
    return tuple([read_integer(part) for part in text.split(",")]) if text else ()


@lru_cache(maxsize=65536)
def read_dims(text: str) -> tuple[Dim, ...]:
    """Dims such as `8:16,4:1`."""
    dims, position = [], 0
    while position < len(text):
        found = _DIM.match(text, position)
        if found is None:
            raise BadLine(f"'{text}' is not a list of dims such as 8:16,min(4,10-4*i0):1")
        dims.append((read_extent(found[1]), int(found[2])))
        position = found.end()
    return tuple(dims)


def read_optional(text: str | None) -> Affine:
    """An address, zero when it is left out."""
    return ZERO if text is None else read_affine(text)


@lru_cache(maxsize=65536)
def read_slot(text: str) -> Slot:
    """A slot such as `acc[i0]`."""
    found = _SLOT.fullmatch(text)
    if found is None:
        raise BadLine(f"'{text}' is not a slot such as acc[i0]")
    return Slot(read_name(found[1]), read_optional(found[2]))


@lru_cache(maxsize=65536)
def read_view(text: str) -> View:
    """A view such as `x[i0]{8:16,4:1}@3*i1`."""
    found = _VIEW.fullmatch(text)
    if found is None:
        raise BadLine(f"'{text}' is not a view such as x[i0]{{8:16,4:1}}@3*i1")
    name, slot, dims, offset = found.groups()
    return View(read_name(name), read_dims(dims), read_optional(offset), read_optional(slot))


@lru_cache(maxsize=65536)
def read_matrix(text: str) -> Matrix:
    """A matrix such as `x[i0]{8:16|4:1}@3*i1<0:8,0:4>`."""
    found = _MATRIX.fullmatch(text)
    if found is None:
        raise BadLine(f"'{text}' is not a matrix such as x[i0]{{8:16|4:1}}@3*i1<0:8,0:4>")
    name, slot, rows, cols, offset, row, row_count, col, col_count = found.groups()
    return Matrix(
        read_name(name), read_dims(rows), read_dims(cols), read_affine(row), read_extent(row_count),
        read_affine(col), read_extent(col_count), read_optional(offset), read_optional(slot),
    )  # fmt: skip


@lru_cache(maxsize=65536)
def read_box(text: str) -> tuple[str, tuple[Affine, ...], tuple[int, ...]]:
    """A place in a tensor such as `x(i0,4*i1)*(1,2)`: name, start, step."""
    found = _BOX.fullmatch(text)
    if found is None:
        raise BadLine(f"'{text}' is not a place in a tensor such as x(i0,4*i1,0)")
    start = read_affines(found[2])
    step = (1,) * len(start) if found[3] is None else read_integers(found[3])
    return read_name(found[1]), start, step


def read_typed(text: str) -> tuple[str, tuple[int, ...]]:
    """A dtype with sizes such as `f32[2,3]`."""
    found = _TYPED.fullmatch(text)
    if found is None:
        raise BadLine(f"'{text}' is not a dtype with sizes such as f32[2,3]")
    return read_name(found[1]), read_integers(found[2])
