"""The program as bytes: compact, and equal again when decoded."""

from __future__ import annotations

import struct
import zlib

from ccnn.targets.binary_format import (
    DEEPEST,
    KINDS,
    LARGEST,
    LOOP,
    MAGIC,
    MODE,
    OPCODES,
    POOLS,
    SYNC,
    VERSION,
)
from ccnn.targets.binary_reader import decode
from ccnn.targets.errors import ProgramError
from ccnn.targets.program import (
    Affine,
    Code,
    Dim,
    Drain,
    Exec,
    Extent,
    Instruction,
    Item,
    Load,
    LoadH,
    LoadV,
    Loop,
    Map,
    Matrix,
    Program,
    Random,
    Reduce,
    Shift,
    Slot,
    Store,
    Sync,
    View,
)

__all__ = ["ProgramError", "decode", "encode"]


def _varint(value: int) -> bytes:
    """Zigzag, seven bits a byte, the lowest first."""
    if not -LARGEST < value < LARGEST:
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
        self.pools: dict[str, dict[bytes, int]] = {name: {} for name in POOLS}
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
        if depth > DEEPEST:
            raise ProgramError(f"loops are nested deeper than {DEEPEST}; split the kernel")
        return _integer(len(body)) + b"".join([self.item(item, depth) for item in body])

    def item(self, item: Item, depth: int) -> bytes:
        if isinstance(item, Sync):
            names = self.string(item.engine) + self.string(item.token)
            return bytes((SYNC, KINDS.index(item.kind))) + names
        if isinstance(item, Loop):
            head = bytes((LOOP,)) + self.string(item.var) + _integer(item.trip)
            return head + self.body(item.body, depth + 1)
        step = item.node - self.node
        self.node = item.node
        mode = bytes((MODE,)) + self.string(item.mode) if item.mode else b""
        return mode + bytes((OPCODES.index(type(item)),)) + _integer(step) + self.operands(item)

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
            depth = -b.depth if b.found else b.depth
            out += [_integer(b.size), _integer(depth), _integer(b.address)]
        out.append(_integer(len(k.tokens)))
        out += [w.string(t.name) + _integer(t.initial) for t in k.tokens]
        out.append(w.body(k.body, 0))
    pools = [_integer(len(pool)) + b"".join(pool) for pool in w.pools.values()]
    payload = b"".join(pools + out)
    return MAGIC + bytes((VERSION,)) + struct.pack("<I", zlib.crc32(payload)) + payload
