"""Programs from bytes.  Nothing read is trusted: sizes, indices and depths are checked."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from ccnn.targets.binary_format import (
    DEEPEST,
    KINDS,
    LOOP,
    MAGIC,
    MODE,
    OPCODES,
    POOLS,
    SYNC,
    VERSION,
)
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

T = TypeVar("T")


class _Reader:
    """Reads values off the payload; every read checks that there is something to read."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0
        self.node = 0
        self.pools: dict[str, list] = {name: [] for name in POOLS}

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
        for name in POOLS:
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
        if depth > DEEPEST:
            raise self.bad("loops are nested too deep")
        return self.many(lambda: self.item(depth))

    def item(self, depth: int) -> Item:
        opcode = self.byte()
        if opcode == SYNC:
            kind = self.choice(KINDS)
            return Sync(self.string(), kind, self.string())
        if opcode == LOOP:
            var, trip = self.string(), self.integer()
            return Loop(var, trip, self.body(depth + 1))
        mode = ""
        if opcode == MODE:
            mode, opcode = self.string(), self.byte()
            if not mode:
                raise self.bad("a mode without a name")
        if opcode >= len(OPCODES):
            raise self.bad(f"{opcode} is no opcode")
        self.node += self.integer()
        plain = self.instruction(OPCODES[opcode], self.node)
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
        size, depth, address = self.integer(), self.integer(), self.integer()
        return Buffer(name, space, dtype, size, abs(depth), address, depth < 0)

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
    head = len(MAGIC) + 5
    if len(data) < head or data[: len(MAGIC)] != MAGIC:
        raise ProgramError("these bytes are not a ccnn program; give a file that ccnn wrote")
    version = data[len(MAGIC)]
    if version != VERSION:
        raise ProgramError(
            f"the program has binary version {version}, this ccnn reads {VERSION}; compile anew"
        )
    payload = bytes(data[head:])
    if zlib.crc32(payload) != struct.unpack("<I", data[head - 4 : head])[0]:
        raise ProgramError("program bytes are damaged: the checksum differs; make them anew")
    reader = _Reader(payload)
    reader.read_pools()
    return reader.program()
