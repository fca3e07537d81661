"""Program text back to a Program; how it is spelled is told in targets/text.py."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from ccnn.targets.errors import ProgramError
from ccnn.targets.program import (
    ENGINES,
    Affine,
    Buffer,
    Code,
    Drain,
    Exec,
    ExecOS,
    Instruction,
    Item,
    Kernel,
    Load,
    LoadH,
    LoadV,
    Loop,
    Map,
    NodeRef,
    Placed,
    Program,
    Random,
    Reduce,
    Shift,
    Store,
    Sync,
    Token,
    View,
)
from ccnn.targets.text_operands import (
    BadLine,
    read_affine,
    read_affines,
    read_box,
    read_extent,
    read_float,
    read_integer,
    read_integers,
    read_matrix,
    read_name,
    read_optional,
    read_slot,
    read_typed,
    read_view,
)

VERSION = 1
"""Version of the text that is written and read."""

_HEADER = ("program", "machine", "dtype", "accum", "dram")

DEEPEST = 64
"""Loops inside each other that are accepted."""

_MODE = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")
_WORDS = re.compile(r'(?:"(?:[^"\\]|\\.)*"|[^\s"])+')


def _keyed(words: list[str], key: str) -> str | None:
    """The value of a last word `key=value`, taken off the list; None when it is not there."""
    if words and words[-1].startswith(key + "="):
        return words.pop()[len(key) + 1 :]
    return None


def _needed(words: list[str], key: str) -> str:
    value = _keyed(words, key)
    if value is None:
        raise BadLine(f"'{key}=' is missing or stands in the wrong place")
    return value


def _shape(words: list[str], form: str) -> list[str]:
    """Check words against a form such as '_view <- _view'; give those at the underscores."""
    pattern = form.split()
    if len(words) != len(pattern) or any(
        p[0] != "_" and p != w for p, w in zip(pattern, words, strict=True)
    ):
        raise BadLine(f"the operands should read '{form.replace('_', '')}'")
    return [w for p, w in zip(pattern, words, strict=True) if p[0] == "_"]


def _load(words: list[str], node: int) -> Instruction:
    fill = read_float(_keyed(words, "fill") or "0")
    dst, source = _shape(words, "_view <- _tensor(starts)")
    tensor, start, step = read_box(source)
    return Load(node, read_view(dst), tensor, start, step, fill)


def _store(words: list[str], node: int) -> Instruction:
    target, src = _shape(words, "_tensor(starts) <- _view")
    tensor, start, step = read_box(target)
    return Store(node, tensor, start, step, read_view(src))


def _load_v(words: list[str], node: int) -> Instruction:
    dst, src = _shape(words, "_slot <- _matrix")
    return LoadV(node, read_slot(dst), read_matrix(src))


def _load_h(words: list[str], node: int) -> Instruction:
    dst, src = _shape(words, "_slot <- _matrix")
    return LoadH(node, read_slot(dst), read_matrix(src))


def _shift(words: list[str], node: int) -> Instruction:
    n, k = read_extent(_needed(words, "n")), read_extent(_needed(words, "k"))
    dst, src = _shape(words, "_slot <- _slot")
    return Shift(node, read_slot(dst), read_slot(src), k, n)


def _exec(words: list[str], node: int) -> Instruction:
    add = read_optional(_keyed(words, "add"))
    n, k, m = (read_extent(_needed(words, key)) for key in "nkm")
    acc, moving, stationary = _shape(words, "_acc <- _moving * _stationary")
    return Exec(node, read_slot(acc), read_slot(moving), read_slot(stationary), m, k, n, add)


def _exec_os(words: list[str], node: int) -> Instruction:
    return ExecOS(**vars(_exec(words, node)))


def _drain(words: list[str], node: int) -> Instruction:
    bias = _keyed(words, "bias")
    add = read_optional(_keyed(words, "add"))
    dst, acc = _shape(words, "_matrix <- _acc")
    return Drain(
        node, read_matrix(dst), read_slot(acc), add, None if bias is None else read_matrix(bias)
    )


def _word(text: str) -> str | float:
    number = text[0] in "0123456789+-." or text in ("inf", "nan")
    return read_float(text) if number else text


def _vector(words: list[str]) -> tuple[View, tuple[View, ...], Code, tuple[Affine, ...]]:
    """dst <- srcs | code | scalars"""
    parts: list[list[str]] = [[]]
    for word in words:
        if word == "|":
            parts.append([])
        else:
            parts[-1].append(word)
    operands = parts[0]
    if not 2 <= len(parts) <= 3 or len(operands) < 2 or operands[1] != "<-":
        raise BadLine("the operands should read 'view <- views | code | scalars'")
    if len(parts) == 3 and len(parts[2]) != 1:
        raise BadLine("the scalars should be one list such as i0,4*i1")
    srcs = tuple([read_view(w) for w in operands[2:]])
    scalars = read_affines(parts[2][0]) if len(parts) == 3 else ()
    return read_view(operands[0]), srcs, tuple([_word(w) for w in parts[1]]), scalars


def _map(words: list[str], node: int) -> Instruction:
    return Map(node, *_vector(words))


def _reduce(words: list[str], node: int) -> Instruction:
    add = read_optional(_keyed(words, "add"))
    if len(words) < 2 or not re.fullmatch(r"axes=\[[\d,-]*\]", words[1]):
        raise BadLine("the operands should read 'kind axes=[0,1] view <- views | code'")
    axes = read_integers(words[1][6:-1])
    return Reduce(node, read_name(words[0]), axes, *_vector(words[2:]), add)


def _random(words: list[str], node: int) -> Instruction:
    start, seed = read_affine(_needed(words, "start")), read_integer(_needed(words, "seed"))
    (dst,) = _shape(words, "_view")
    return Random(node, read_view(dst), seed, start)


_READERS: dict[str, Callable[[list[str], int], Instruction]] = {
    "LD": _load, "ST": _store, "LdLBUF_V": _load_v, "LdLBUF_H": _load_h, "ShiftV": _shift,
    "ExecGEMM": _exec, "ExecOS": _exec_os, "StLBUF": _drain, "VMAP": _map, "VRED": _reduce,
    "VRAND": _random,
}  # fmt: skip


@dataclass
class _Open:
    """A kernel or loop whose closing brace has not come yet."""

    words: list[str]
    line: int
    items: list[Item] = field(default_factory=list)
    buffers: list[Buffer] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)


class _Reader:
    """What has been read so far."""

    def __init__(self) -> None:
        self.head: dict[str, str] = {}
        self.tensors: list[Placed] = []
        self.nodes: list[NodeRef] = []
        self.kernels: list[Kernel] = []
        self.open: list[_Open] = []

    def take(self, words: list[str], number: int) -> None:
        """Read one line."""
        first = words[0]
        if first.partition(".")[0] in _READERS or first in ("wait", "signal", "release"):
            if not self.open:
                raise BadLine("an instruction outside of a kernel")
            self.open[-1].items.append(_line(words))
        elif first in ("loop", "kernel"):
            self._begin(words, number)
        elif first == "}":
            self._end()
        elif first in ("buffer", "token"):
            self._declare(words)
        elif first == "tensor":
            name, typed, role, address = _shape(words[1:], "_name _dtype[shape] _role _@address")
            dtype, shape = read_typed(typed)
            place = read_integer(address.removeprefix("@"))
            self.tensors.append(Placed(read_name(name), shape, dtype, read_name(role), place))
        elif first == "node":
            origin, phase, op = (read_name(_needed(words, k)) for k in ("origin", "phase", "op"))
            (name,) = _shape(words[1:], "_name")
            self.nodes.append(NodeRef(read_name(name), op, origin, phase))
        elif first in _HEADER and len(words) == 2:
            if first in self.head:
                raise BadLine(f"'{first}' is given twice")
            self.head[first] = words[1] if first == "dram" else read_name(words[1])
        else:
            raise BadLine(f"'{first}' begins no line; write an opcode, wait, loop …")

    def _begin(self, words: list[str], number: int) -> None:
        if words[-1] != "{" or len(words) != (3 if words[0] == "kernel" else 4):
            raise BadLine("should read 'kernel NAME {' or 'loop i0 16 {'")
        if (words[0] == "kernel") == bool(self.open):
            raise BadLine("a kernel stands outside of kernels, a loop inside of one")
        if self.open:
            read_integer(words[2])
        if len(self.open) > DEEPEST:
            raise BadLine(f"loops are nested deeper than {DEEPEST}")
        self.open.append(_Open(words, number))

    def _end(self) -> None:
        if not self.open:
            raise BadLine("a brace closes nothing")
        done = self.open.pop()
        if done.words[0] == "loop":
            trip = read_integer(done.words[2])
            self.open[-1].items.append(Loop(read_name(done.words[1]), trip, tuple(done.items)))
            return
        self.kernels.append(
            Kernel(
                read_name(done.words[1]), tuple(done.buffers), tuple(done.tokens), tuple(done.items)
            )
        )

    def _declare(self, words: list[str]) -> None:
        if len(self.open) != 1 or self.open[0].items:
            raise BadLine("buffers and tokens stand at the beginning of a kernel")
        if words[0] == "token":
            name, initial = _shape(words[1:], "_name _initial")
            self.open[0].tokens.append(Token(read_name(name), read_integer(initial)))
            return
        form = "_name _space _dtype[size] _depth=1 _@address"
        found = words[6:] == ["found"]
        name, space, typed, depth, address = _shape(words[1 : 6 if found else None], form)
        dtype, sizes = read_typed(typed)
        if len(sizes) != 1:
            raise BadLine("a buffer has one size: the elements of a slot")
        self.open[0].buffers.append(
            Buffer(
                read_name(name), read_name(space), dtype, sizes[0],
                read_integer(depth.removeprefix("depth=")), read_integer(address.removeprefix("@")),
                found,
            )
        )  # fmt: skip

    def finish(self) -> Program:
        """The program, when all of it was there."""
        if self.open:
            raise BadLine(f"the text ends inside the block that line {self.open[-1].line} opens")
        missing = [
            k for k in ("program", "machine", "dtype", "accum", "dram") if k not in self.head
        ]
        if missing:
            raise BadLine(f"the header lacks a line '{missing[0]} …'")
        h = self.head
        return Program(
            h["program"], h["machine"], h["dtype"], h["accum"], read_integer(h["dram"]),
            tuple(self.tensors), tuple(self.nodes), tuple(self.kernels),
        )  # fmt: skip


def _line(words: list[str]) -> Instruction | Sync:
    opcode, dot, mode = words[0].partition(".")
    if opcode in _READERS:
        if not words[-1].startswith("#"):
            raise BadLine("an instruction ends in its node, such as #3")
        read = _READERS[opcode](words[1:-1], read_integer(words[-1][1:]))
        if not dot:
            return read
        if not _MODE.fullmatch(mode):
            raise BadLine(f"'{words[0][:60]}' names no mode; write the opcode, or ExecGEMM.VSW")
        return replace(read, mode=mode)
    engine, token = _shape(words[1:], "_engine _token")
    if engine not in ENGINES:
        raise BadLine(f"'{engine}' is no engine; engines are {', '.join(ENGINES)}")
    return Sync(engine, words[0], read_name(token))


def parse_program(text: str) -> Program:
    """Program text to Program; raises ProgramError with the line and what stands around it."""
    reader = _Reader()
    lines = text.split("\n")
    number = 0
    try:
        for number, line in enumerate(lines, 1):
            words = _WORDS.findall(line) if '"' in line else line.split()
            if words and not words[0].startswith("//"):
                reader.take(words, number)
        return reader.finish()
    except (BadLine, ValueError) as error:
        raise ProgramError(f"line {number}: {error}\n{_around(lines, number)}") from error


def _around(lines: list[str], number: int) -> str:
    """The line and two on each side, the line marked."""
    shown = range(max(1, number - 2), min(len(lines), number + 2) + 1)
    rows = (f"{'>' if n == number else ' '}{n:>6} | {lines[n - 1][:160]}" for n in shown)
    return "\n".join(rows)
