"""The program as text: assembly that a person can read and edit, and that parses back.

What a line looks like is said by the templates; this file says how operands are spelled:

    affine   3*i0+i1-4
    extent   8  or  min(8,30-8*i0)
    view     x[i0]{8:16,4:1}@3*i1          slot i0, dims extent:stride, offset; [0] and @0 left out
    matrix   x[i0]{8:16|4:1}@3*i1<0:8,0:4> row dims | column dims, start:count of rows, of columns
    names    plain when made of letters, digits and _ . / : -, else as a JSON string
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import jinja2

from ccnn.targets.errors import ProgramError
from ccnn.targets.program import (
    ZERO,
    Affine,
    Code,
    Dim,
    Extent,
    Item,
    Kernel,
    Loop,
    Matrix,
    Program,
    Slot,
    Sync,
    View,
)
from ccnn.targets.text_parser import DEEPEST, VERSION, parse_program

__all__ = ["ProgramError", "instruction_text", "parse_program", "print_program"]

_PLAIN = re.compile(r"[A-Za-z_][\w./:-]*", re.ASCII)
_MODE = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")
_VARIABLE = re.compile(r"[A-Za-z_]\w*", re.ASCII)


@lru_cache(maxsize=65536)
def _name(text: str) -> str:
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


def _affine(a: Affine) -> str:
    if not a.terms:
        return str(a.const)
    text = ""
    for var, coefficient in a.terms:
        if coefficient == 1:
            text += f"+{var}"
        elif coefficient == -1:
            text += f"-{var}"
        else:
            text += f"{coefficient:+d}*{var}"
    if a.const > 0 and text[0] == "-":
        return f"{a.const}{text}"
    if a.const:
        text += f"{a.const:+d}"
    return text.removeprefix("+")


def _affines(values: tuple[Affine, ...]) -> str:
    return ",".join([_affine(a) for a in values])


def _extent(e: Extent) -> str:
    return str(e.size) if e.limit is None else f"min({e.size},{_affine(e.limit)})"


def _dims(dims: tuple[Dim, ...]) -> str:
    return ",".join([f"{_extent(extent)}:{stride}" for extent, stride in dims])


def _place(buffer: str, slot: Affine) -> str:
    return _name(buffer) if slot == ZERO else f"{_name(buffer)}[{_affine(slot)}]"


def _offset(offset: Affine) -> str:
    return "" if offset == ZERO else f"@{_affine(offset)}"


def _slot(s: Slot) -> str:
    return _place(s.buffer, s.slot)


def _view(v: View) -> str:
    return f"{_place(v.buffer, v.slot)}{{{_dims(v.dims)}}}{_offset(v.offset)}"


def _views(views: tuple[View, ...]) -> str:
    return "".join([f" {_view(v)}" for v in views])


def _matrix(m: Matrix) -> str:
    window = (
        f"<{_affine(m.row_start)}:{_extent(m.row_count)},"
        f"{_affine(m.col_start)}:{_extent(m.col_count)}>"
    )
    place, offset = _place(m.buffer, m.slot), _offset(m.offset)
    return f"{place}{{{_dims(m.rows)}|{_dims(m.cols)}}}{offset}{window}"


def _number(value: float) -> str:
    whole = value.is_integer() and abs(value) < 1e15 and repr(value) != "-0.0"
    return repr(int(value)) if whole else repr(value)


def _code(code: Code) -> str:
    return "".join([f" {w if isinstance(w, str) else _number(float(w))}" for w in code])


def _add(accumulate: Affine) -> str:
    return "" if accumulate == ZERO else f" add={_affine(accumulate)}"


def _steps(step: tuple[int, ...]) -> str:
    return "" if all(s == 1 for s in step) else f"*({','.join(map(str, step))})"


@lru_cache(maxsize=1)
def _templates() -> tuple[Any, Any, dict[str, Any]]:
    """Header and kernel templates, and the macro of each line of a body."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ccnn.targets"),
        autoescape=False,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    spell = {"name": _name, "affine": _affine, "affines": _affines, "extent": _extent}
    spell |= {"slot": _slot, "view": _view, "views": _views, "matrix": _matrix}
    spell |= {"number": _number, "code": _code, "add": _add, "steps": _steps, "version": VERSION}
    environment.globals.update(spell)
    module = environment.get_template("instructions.j2").module
    macros = {key: value for key, value in vars(module).items() if not key.startswith("_")}
    return environment.get_template("header.j2"), environment.get_template("kernel.j2"), macros


def instruction_text(item: Item) -> str:
    """One instruction, sync or loop head as its line of text, without indentation."""
    macros = _templates()[2]
    if isinstance(item, Sync):
        return macros["sync"](item)
    if isinstance(item, Loop):
        if not _VARIABLE.fullmatch(item.var):
            raise ProgramError(f"loop variable {item.var!r}: use letters, digits and _")
        return macros["loop"](item)
    text = macros[item.opcode](item)
    if not item.mode:
        return text
    if not _MODE.fullmatch(item.mode):
        raise ProgramError(f"mode {item.mode!r}: use letters, digits, _ and -")
    return f"{item.opcode}.{item.mode}{text.removeprefix(item.opcode)}"


def _lines(body: tuple[Item, ...], depth: int) -> Iterator[str]:
    if depth > DEEPEST:
        raise ProgramError(f"loops are nested deeper than {DEEPEST}; split the kernel")
    indent = "  " * depth
    for item in body:
        yield indent + instruction_text(item)
        if isinstance(item, Loop):
            yield from _lines(item.body, depth + 1)
            yield indent + "}"


def _kernel(k: Kernel) -> str:
    head = _templates()[1].render(k=k)
    return head + "\n".join([*_lines(k.body, 1), "}", ""])


def print_program(program: Program) -> str:
    """The program as text; `parse_program` gives an equal program back."""
    return _templates()[0].render(p=program) + "".join([_kernel(k) for k in program.kernels])
