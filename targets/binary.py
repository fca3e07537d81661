"""The program as bytes: compact, checked, and equal again when decoded.

Layout: magic, version, CRC-32 of the rest, then the pools (strings, numbers, affines, views,
matrices, slots, code; each operand is stored once and named by its index), the header, the kernels.
Integers are zigzag varints.  Nothing read is trusted: sizes, indices and depths are checked.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from ccnn.targets.errors import ProgramError
from ccnn.targets.program import (
    Affine,
    Buffer,
    Code,
    Dim,
    Drain,
    Exec,
    ExecOS,
    Extent,
    Instruction,
    Item,
    Kernel,
    Load,
    LoadH,
    LoadV,
    Loop,
    Map,
    Matrix,
    NodeRef,
    Placed,
    Program,
    Random,
    Reduce,
    Shift,
    Slot,
    Store,
    Sync,
    Token,
    View,
)

__all__ = ["ProgramError", "decode", "encode"]

_MAGIC = b"CCNNPROG"
_VERSION = 1
_DEEPEST = 64
_LARGEST = 1 << 127
_KINDS = ("wait", "signal", "release")
_POOLS = ("strings", "numbers", "affines", "slots", "views", "matrices", "codes")
_OPCODES: tuple[type[Instruction], ...] = (
    Load, Store, LoadV, LoadH, Shift, Exec, Drain, Map, Reduce, Random, ExecOS,
)  # fmt: skip
_SYNC = len(_OPCODES)
_LOOP = _SYNC + 1
_MODE = _LOOP + 1
"""Before an instruction that names a mode."""

T = TypeVar("T")


def _varint(value: int) -> bytes:
    """Zigzag, seven bits a byte, the lowest first."""
    if not -_LARGEST < value < _LARGEST:
        raise ProgramError(f"the number {str(value)[:40]} is too large for the binary form")
    value = value << 1 if value >= 0 else (-value << 1) - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


_SMALL = {value: _varint(value) for value in range(-4096, 8192)}


def _integer(value: int) -> bytes:
    return _SMALL.get(value) or _varint(value)


def _integers(values: tuple[int, ...]) -> bytes:
    return _integer(len(values)) + b"".join([_integer(v) for v in values])


class _Writer:
    """Collects the pools while the kernels are written."""

    def __init__(self) -> None:
        self.pools: dict[str, dict[bytes, int]] = {name: {} for name in _POOLS}
        self.node = 0

    def _pooled(self, pool: str, data: bytes) -> bytes:
        entries = self.pools[pool]
        return _integer(entries.setdefault(data, len(entries)))

    def string(self, text: str) -> bytes:
        data = text.encode("utf-8", "surrogatepass")
        return self._pooled("strings", _integer(len(data)) + data)

    def number(self, value: float) -> bytes:
        return self._pooled("numbers", struct.pack("<d", value))

    def affine(self, a: Affine) -> bytes:
        terms = b"".join([self.string(v) + _integer(c) for v, c in a.terms])
        return self._pooled("affines", _integer(a.const) + _integer(len(a.terms)) + terms)

    def affines(self, values: tuple[Affine, ...]) -> bytes:
        return _integer(len(values)) + b"".join([self.affine(a) for a in values])

    def extent(self, e: Extent) -> bytes:
        if e.limit is None:
            return _integer(e.size) + b"\0"
        return _integer(e.size) + b"\1" + self.affine(e.limit)

    def dims(self, dims: tuple[Dim, ...]) -> bytes:
        return _integer(len(dims)) + b"".join([self.extent(e) + _integer(s) for e, s in dims])

    def slot(self, s: Slot) -> bytes:
        return self._pooled("slots", self.string(s.buffer) + self.affine(s.slot))

    def view(self, v: View) -> bytes:
        place = self.string(v.buffer) + self.affine(v.slot) + self.affine(v.offset)
        return self._pooled("views", place + self.dims(v.dims))

    def views(self, views: tuple[View, ...]) -> bytes:
        return _integer(len(views)) + b"".join([self.view(v) for v in views])

    def matrix(self, m: Matrix) -> bytes:
        place = self.string(m.buffer) + self.affine(m.slot) + self.affine(m.offset)
        window = self.affine(m.row_start) + self.extent(m.row_count)
        window += self.affine(m.col_start) + self.extent(m.col_count)
        return self._pooled("matrices", place + self.dims(m.rows) + self.dims(m.cols) + window)

    def code(self, code: Code) -> bytes:
        words = [
            b"\0" + self.string(w) if isinstance(w, str) else b"\1" + self.number(w) for w in code
        ]
        return self._pooled("codes", _integer(len(code)) + b"".join(words))

    def body(self, body: tuple[Item, ...], depth: int) -> bytes:
        if depth > _DEEPEST:
            raise ProgramError(f"loops are nested deeper than {_DEEPEST}; split the kernel")
        return _integer(len(body)) + b"".join([self.item(item, depth) for item in body])

    def item(self, item: Item, depth: int) -> bytes:
        if isinstance(item, Sync):
            names = self.string(item.engine) + self.string(item.token)
            return bytes((_SYNC, _KINDS.index(item.kind))) + names
        if isinstance(item, Loop):
            head = bytes((_LOOP,)) + self.string(item.var) + _integer(item.trip)
            return head + self.body(item.body, depth + 1)
        step = item.node - self.node
        self.node = item.node
        mode = bytes((_MODE,)) + self.string(item.mode) if item.mode else b""
        return mode + bytes((_OPCODES.index(type(item)),)) + _integer(step) + self.operands(item)

    def operands(self, item: Instruction) -> bytes:
        match item:
            case Load():
                box = self.affines(item.start) + _integers(item.step) + self.number(item.fill)
                return self.view(item.dst) + self.string(item.tensor) + box
            case Store():
                box = self.string(item.tensor) + self.affines(item.start) + _integers(item.step)
                return box + self.view(item.src)
            case LoadV() | LoadH():
                return self.slot(item.dst) + self.matrix(item.src)
            case Shift():
                slots = self.slot(item.dst) + self.slot(item.src)
                return slots + self.extent(item.k) + self.extent(item.n)
            case Exec():
                slots = self.slot(item.acc) + self.slot(item.moving) + self.slot(item.stationary)
                sizes = self.extent(item.m) + self.extent(item.k) + self.extent(item.n)
                return slots + sizes + self.affine(item.accumulate)
            case Drain():
                bias = b"\0" if item.bias is None else b"\1" + self.matrix(item.bias)
                head = self.matrix(item.dst) + self.slot(item.acc)
                return head + self.affine(item.accumulate) + bias
            case Map():
                return self.vector(item)
            case Reduce():
                head = self.string(item.kind) + _integers(item.axes)
                return head + self.vector(item) + self.affine(item.accumulate)
            case Random():
                return self.view(item.dst) + _integer(item.seed) + self.affine(item.start)
        raise ProgramError(f"{type(item).__name__} has no binary form")

    def vector(self, item: Map | Reduce) -> bytes:
        operands = self.view(item.dst) + self.views(item.srcs)
        return operands + self.code(item.code) + self.affines(item.scalars)


def encode(program: Program) -> bytes:
    """The program as bytes; raises ProgramError for numbers beyond 127 bits."""
    w, p = _Writer(), program
    out = [w.string(p.name), w.string(p.machine), w.string(p.dtype), w.string(p.accum)]
    out += [_integer(p.dram_bytes), _integer(len(p.tensors))]
    for t in p.tensors:
        out += [w.string(t.name), _integers(t.shape), w.string(t.dtype), w.string(t.role)]
        out.append(_integer(t.address))
    out.append(_integer(len(p.nodes)))
    for n in p.nodes:
        out += [w.string(n.name), w.string(n.op), w.string(n.origin), w.string(n.phase)]
    out.append(_integer(len(p.kernels)))
    for k in p.kernels:
        out += [w.string(k.name), _integer(len(k.buffers))]
        for b in k.buffers:
            out += [w.string(b.name), w.string(b.space), w.string(b.dtype)]
            out += [_integer(b.size), _integer(b.depth), _integer(b.address)]
        out.append(_integer(len(k.tokens)))
        out += [w.string(t.name) + _integer(t.initial) for t in k.tokens]
        out.append(w.body(k.body, 0))
    pools = [_integer(len(pool)) + b"".join(pool) for pool in w.pools.values()]
    payload = b"".join(pools + out)
    return _MAGIC + bytes((_VERSION,)) + struct.pack("<I", zlib.crc32(payload)) + payload


class _Reader:
    """Reads values off the payload; every read checks that there is something to read."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0
        self.node = 0
        self.pools: dict[str, list] = {name: [] for name in _POOLS}

    def bad(self, problem: str) -> ProgramError:
        return ProgramError(
            f"program bytes are damaged near byte {self.position}: {problem}; make them anew"
        )

    def byte(self) -> int:
        if self.position >= len(self.data):
            raise self.bad("they end too early")
        self.position += 1
        return self.data[self.position - 1]

    def raw(self, count: int) -> bytes:
        if not 0 <= count <= len(self.data) - self.position:
            raise self.bad("they end too early")
        self.position += count
        return self.data[self.position - count : self.position]

    def integer(self) -> int:
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return -(value + 1 >> 1) if value & 1 else value >> 1
            shift += 7
            if shift > 133:
                raise self.bad("a number has too many digits")

    def many(self, read: Callable[[], T]) -> tuple[T, ...]:
        """A count and so many things, of at least a byte each."""
        count = self.integer()
        if not 0 <= count <= len(self.data) - self.position:
            raise self.bad(f"{count} entries cannot follow")
        return tuple([read() for _ in range(count)])

    def integers(self) -> tuple[int, ...]:
        return self.many(self.integer)

    def choice(self, options: tuple[T, ...]) -> T:
        index = self.byte()
        if index >= len(options):
            raise self.bad(f"{index} is no valid code here")
        return options[index]

    def _pooled(self, pool: str) -> object:
        index, entries = self.integer(), self.pools[pool]
        if not 0 <= index < len(entries):
            raise self.bad(f"entry {index} of the {pool} does not exist")
        return entries[index]

    def string(self) -> str:
        return self._pooled("strings")  # type: ignore[return-value]

    def number(self) -> float:
        return self._pooled("numbers")  # type: ignore[return-value]

    def affine(self) -> Affine:
        return self._pooled("affines")  # type: ignore[return-value]

    def slot(self) -> Slot:
        return self._pooled("slots")  # type: ignore[return-value]

    def view(self) -> View:
        return self._pooled("views")  # type: ignore[return-value]

    def matrix(self) -> Matrix:
        return self._pooled("matrices")  # type: ignore[return-value]

    def code(self) -> Code:
        return self._pooled("codes")  # type: ignore[return-value]

    def affines(self) -> tuple[Affine, ...]:
        return self.many(self.affine)

    def extent(self) -> Extent:
        size = self.integer()
        return Extent(size, self.affine() if self.choice((False, True)) else None)

    def dims(self) -> tuple[Dim, ...]:
        return self.many(lambda: (self.extent(), self.integer()))

    def read_pools(self) -> None:
        makers: dict[str, Callable[[], object]] = {
            "strings": self._make_string,
            "numbers": lambda: struct.unpack("<d", self.raw(8))[0],
            "affines": self._make_affine,
            "slots": lambda: Slot(self.string(), self.affine()),
            "views": self._make_view,
            "matrices": self._make_matrix,
            "codes": lambda: self.many(self._make_word),
        }
        for name in _POOLS:
            self.pools[name] = list(self.many(makers[name]))

    def _make_string(self) -> str:
        try:
            return self.raw(self.integer()).decode("utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            raise self.bad("a name is not UTF-8") from error

    def _make_affine(self) -> Affine:
        const = self.integer()
        return Affine(const, self.many(lambda: (self.string(), self.integer())))

    def _make_view(self) -> View:
        buffer, slot, offset = self.string(), self.affine(), self.affine()
        return View(buffer, self.dims(), offset, slot)

    def _make_matrix(self) -> Matrix:
        buffer, slot, offset = self.string(), self.affine(), self.affine()
        rows, cols = self.dims(), self.dims()
        row, row_count, col, col_count = self.affine(), self.extent(), self.affine(), self.extent()
        return Matrix(buffer, rows, cols, row, row_count, col, col_count, offset, slot)

    def _make_word(self) -> str | float:
        return self.number() if self.choice((False, True)) else self.string()

    def body(self, depth: int) -> tuple[Item, ...]:
        if depth > _DEEPEST:
            raise self.bad("loops are nested too deep")
        return self.many(lambda: self.item(depth))

    def item(self, depth: int) -> Item:
        opcode = self.byte()
        if opcode == _SYNC:
            kind = self.choice(_KINDS)
            return Sync(self.string(), kind, self.string())
        if opcode == _LOOP:
            var, trip = self.string(), self.integer()
            return Loop(var, trip, self.body(depth + 1))
        mode = ""
        if opcode == _MODE:
            mode, opcode = self.string(), self.byte()
            if not mode:
                raise self.bad("a mode without a name")
        if opcode >= len(_OPCODES):
            raise self.bad(f"{opcode} is no opcode")
        self.node += self.integer()
        plain = self.instruction(_OPCODES[opcode], self.node)
        return replace(plain, mode=mode) if mode else plain

    def instruction(self, kind: type[Instruction], node: int) -> Instruction:
        if kind is Load:
            dst, tensor = self.view(), self.string()
            return Load(node, dst, tensor, self.affines(), self.integers(), self.number())
        if kind is Store:
            return Store(node, self.string(), self.affines(), self.integers(), self.view())
        if kind is LoadV or kind is LoadH:
            return kind(node, self.slot(), self.matrix())
        if kind is Shift:
            return Shift(node, self.slot(), self.slot(), self.extent(), self.extent())
        if kind is Exec or kind is ExecOS:
            acc, moving, stationary = self.slot(), self.slot(), self.slot()
            m, k, n = self.extent(), self.extent(), self.extent()
            return kind(node, acc, moving, stationary, m, k, n, self.affine())
        if kind is Drain:
            dst, acc, accumulate = self.matrix(), self.slot(), self.affine()
            bias = self.matrix() if self.choice((False, True)) else None
            return Drain(node, dst, acc, accumulate, bias)
        if kind is Map:
            return Map(node, *self.vector())
        if kind is Reduce:
            name, axes = self.string(), self.integers()
            return Reduce(node, name, axes, *self.vector(), self.affine())
        return Random(node, self.view(), self.integer(), self.affine())

    def vector(self) -> tuple[View, tuple[View, ...], Code, tuple[Affine, ...]]:
        return self.view(), self.many(self.view), self.code(), self.affines()

    def tensor(self) -> Placed:
        name, shape, dtype, role = self.string(), self.integers(), self.string(), self.string()
        return Placed(name, shape, dtype, role, self.integer())

    def buffer(self) -> Buffer:
        name, space, dtype = self.string(), self.string(), self.string()
        return Buffer(name, space, dtype, self.integer(), self.integer(), self.integer())

    def kernel(self) -> Kernel:
        name, buffers = self.string(), self.many(self.buffer)
        tokens = self.many(lambda: Token(self.string(), self.integer()))
        return Kernel(name, buffers, tokens, self.body(0))

    def program(self) -> Program:
        name, machine, dtype, accum = self.string(), self.string(), self.string(), self.string()
        dram, tensors = self.integer(), self.many(self.tensor)
        nodes = self.many(
            lambda: NodeRef(self.string(), self.string(), self.string(), self.string())
        )
        made = Program(name, machine, dtype, accum, dram, tensors, nodes, self.many(self.kernel))
        if self.position != len(self.data):
            raise self.bad("something follows the end")
        return made


def decode(data: bytes) -> Program:
    """The program in `data`; raises ProgramError when these bytes are not one, or damaged."""
    head = len(_MAGIC) + 5
    if len(data) < head or data[: len(_MAGIC)] != _MAGIC:
        raise ProgramError("these bytes are not a ccnn program; give a file that ccnn wrote")
    version = data[len(_MAGIC)]
    if version != _VERSION:
        raise ProgramError(
            f"the program has binary version {version}, this ccnn reads {_VERSION}; compile anew"
        )
    payload = bytes(data[head:])
    if zlib.crc32(payload) != struct.unpack("<I", data[head - 4 : head])[0]:
        raise ProgramError("program bytes are damaged: the checksum differs; make them anew")
    reader = _Reader(payload)
    reader.read_pools()
    return reader.program()
