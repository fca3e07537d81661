"""The program: what the accelerator executes, as frozen values.

A program is a list of kernels; between two kernels all engines meet (a barrier).  A kernel is a
tree of hardware loops over instructions.  **Read top to bottom it is the sequential meaning of the
step.**  Each instruction belongs to one engine; an engine takes its own instructions in that order
and runs ahead of the others as far as tokens allow, so the order on paper never costs time.

Engines            instructions                       moves
`load`             LD                                 DRAM -> GBUF
`store`            ST                                 GBUF -> DRAM
`feed_v`           LdLBUF_V                           GBUF -> LBUF of the stationary operand
`feed_h`           LdLBUF_H                           GBUF -> LBUF of the moving operand
`shift`            ShiftV                             LBUF_V -> weight registers of the PEs
`array`            ExecGEMM                           LBUF_H x PE registers -> accumulators
                   ExecOS                             LBUF_H x LBUF_V -> accumulators
`drain`            StLBUF                             accumulators -> GBUF
`vector`           VMAP VRED VRAND                    GBUF -> GBUF

Tokens are counting semaphores.  `wait` takes one (and stalls the engine until there is one);
`signal` gives one when everything the engine issued so far has *written its results*; `release`
gives one when everything it issued so far has *read its operands*.

Addresses are affine in the loop variables.  Sizes are constant but for the last, smaller
tile: `min(size, limit)` with an affine limit.  LBUF_V, LBUF_H, ACC and PE hold matrices: rows x
columns of one slot, always from row 0, column 0.

An instruction of the array's engines may name a mode of the machine (`ExecGEMM.VSW` in text): the
shape the array takes, and how many sub-waves share the rows.  Values do not depend on it, sizes
and time do; without one the whole array is meant.  Several arrays work in step, each on its part
of what one instruction says; the mode's name ends in how M, N and K are split (`VSW_2x2x1`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

Env = Mapping[str, int]
"""Loop variables and their present values."""


@dataclass(frozen=True)
class Affine:
    """`const + sum(coefficient * variable)`; terms sorted by variable, no zero coefficients."""

    const: int = 0
    terms: tuple[tuple[str, int], ...] = ()

    def at(self, env: Env) -> int:
        """The value in an environment."""
        value = self.const
        for var, coefficient in self.terms:
            value += coefficient * env[var]
        return value

    def __add__(self, other: Affine | int) -> Affine:
        if isinstance(other, int):
            return Affine(self.const + other, self.terms)
        total = dict(self.terms)
        for var, coefficient in other.terms:
            total[var] = total.get(var, 0) + coefficient
        terms = tuple(sorted((v, c) for v, c in total.items() if c))
        return Affine(self.const + other.const, terms)

    def __mul__(self, factor: int) -> Affine:
        if factor == 0:
            return Affine()
        return Affine(self.const * factor, tuple((v, c * factor) for v, c in self.terms))

    def __sub__(self, other: Affine | int) -> Affine:
        return self + (other * -1)


def var(name: str, coefficient: int = 1) -> Affine:
    """The affine expression `coefficient * name`."""
    return Affine(0, ((name, coefficient),)) if coefficient else Affine()


ZERO = Affine()


@dataclass(frozen=True)
class Extent:
    """A number of elements: `size`, or `min(size, limit)` where the last tile may be smaller."""

    size: int
    limit: Affine | None = None

    def at(self, env: Env) -> int:
        """The value in an environment."""
        return self.size if self.limit is None else min(self.size, self.limit.at(env))


Dim = tuple[Extent, int]
"""One dimension of an operand: how many, and the stride in elements."""


@dataclass(frozen=True)
class View:
    """A strided block of a buffer slot: element [i, j, …] at offset + i*stride0 + j*stride1 + …

    `slot` is taken modulo the buffer's depth.  A stride of 0 repeats an element (broadcast).
    """

    buffer: str
    dims: tuple[Dim, ...]
    offset: Affine = ZERO
    slot: Affine = ZERO


@dataclass(frozen=True)
class Matrix:
    """A window of a virtual matrix laid over a buffer slot (implicit im2col).

    The rows are numbered row-major over `rows` dims, the columns over `cols` dims; element (r, c)
    lies at offset + rowoffset(r) + coloffset(c).  The window is `row_count` rows from `row_start`
    and `col_count` columns from `col_start`.
    """

    buffer: str
    rows: tuple[Dim, ...]
    cols: tuple[Dim, ...]
    row_start: Affine
    row_count: Extent
    col_start: Affine
    col_count: Extent
    offset: Affine = ZERO
    slot: Affine = ZERO


@dataclass(frozen=True)
class Slot:
    """A whole slot of an LBUF_V, LBUF_H, ACC or PE buffer."""

    buffer: str
    slot: Affine = ZERO


@dataclass(frozen=True)
class Instruction:
    """Base of all instructions; `node` is an index into Program.nodes."""

    engine: ClassVar[str]
    opcode: ClassVar[str]
    node: int
    mode: str = field(default="", kw_only=True)


@dataclass(frozen=True)
class Load(Instruction):
    """dst[i…] = tensor[start + step * i…]; what lies outside the tensor reads as `fill`.

    The rank of dst equals the tensor's.  Only elements inside the tensor are moved.
    """

    engine: ClassVar[str] = "load"
    opcode: ClassVar[str] = "LD"
    dst: View
    tensor: str
    start: tuple[Affine, ...]
    step: tuple[int, ...]
    fill: float = 0.0


@dataclass(frozen=True)
class Store(Instruction):
    """tensor[start + step * i…] = src[i…]; what lies outside the tensor is dropped."""

    engine: ClassVar[str] = "store"
    opcode: ClassVar[str] = "ST"
    tensor: str
    start: tuple[Affine, ...]
    step: tuple[int, ...]
    src: View


@dataclass(frozen=True)
class LoadV(Instruction):
    """LBUF_V slot = matrix window (k rows x n columns): the operand that stays in the PEs."""

    engine: ClassVar[str] = "feed_v"
    opcode: ClassVar[str] = "LdLBUF_V"
    dst: Slot
    src: Matrix


@dataclass(frozen=True)
class LoadH(Instruction):
    """LBUF_H slot = matrix window (m rows x k columns): the operand that streams through."""

    engine: ClassVar[str] = "feed_h"
    opcode: ClassVar[str] = "LdLBUF_H"
    dst: Slot
    src: Matrix


@dataclass(frozen=True)
class Shift(Instruction):
    """PE slot = LBUF_V slot: k rows of weights shift into the array, one row a cycle."""

    engine: ClassVar[str] = "shift"
    opcode: ClassVar[str] = "ShiftV"
    dst: Slot
    src: Slot
    k: Extent
    n: Extent


@dataclass(frozen=True)
class Exec(Instruction):
    """One wave: acc[m, n] (+)= moving[m, k] @ stationary[k, n]; adds when `accumulate` > 0."""

    engine: ClassVar[str] = "array"
    opcode: ClassVar[str] = "ExecGEMM"
    acc: Slot
    moving: Slot
    stationary: Slot
    m: Extent
    k: Extent
    n: Extent
    accumulate: Affine


@dataclass(frozen=True)
class ExecOS(Exec):
    """Results stay: acc[m, n] (+)= moving[k, m]^T @ stationary[k, n], one of the k rows a cycle.

    Both operands pass by, `stationary` from LBUF_V without being shifted in before.
    """

    opcode: ClassVar[str] = "ExecOS"


@dataclass(frozen=True)
class Drain(Instruction):
    """Window of dst (m rows x n columns) = acc (+ bias of the column) (+ dst if accumulate > 0).

    `bias` is a matrix of one row (its row window is ignored) whose columns run with dst's.
    """

    engine: ClassVar[str] = "drain"
    opcode: ClassVar[str] = "StLBUF"
    dst: Matrix
    acc: Slot
    accumulate: Affine = ZERO
    bias: Matrix | None = None


Code = tuple[str | float, ...]
"""A postfix expression: 's0' is source operand 0, 'k0' scalar 0, numbers are literals, the rest
are the functions of targets/vector.py."""


@dataclass(frozen=True)
class Map(Instruction):
    """dst[…] = code(sources[…], scalars), element by element over dst's dims."""

    engine: ClassVar[str] = "vector"
    opcode: ClassVar[str] = "VMAP"
    dst: View
    srcs: tuple[View, ...]
    code: Code
    scalars: tuple[Affine, ...] = ()


@dataclass(frozen=True)
class Reduce(Instruction):
    """dst = kind over `axes` of code(sources, scalars); combined with dst when accumulate > 0.

    The sources' dims give the space that is swept; dst has the same rank, with stride 0 on the
    reduced axes.  kind: sum, max, min, or argmax (row-major position of the first maximum
    within the reduced axes; never accumulates).
    """

    engine: ClassVar[str] = "vector"
    opcode: ClassVar[str] = "VRED"
    kind: str
    axes: tuple[int, ...]
    dst: View
    srcs: tuple[View, ...]
    code: Code
    scalars: tuple[Affine, ...] = ()
    accumulate: Affine = ZERO


@dataclass(frozen=True)
class Random(Instruction):
    """dst[…] = uniform numbers in [0, 1): a hash of (seed, step, start + row-major position)."""

    engine: ClassVar[str] = "vector"
    opcode: ClassVar[str] = "VRAND"
    dst: View
    seed: int
    start: Affine


@dataclass(frozen=True)
class Sync:
    """`kind` wait, signal or release, of one token, by one engine; takes no time of its own."""

    engine: str
    kind: str
    token: str


@dataclass(frozen=True)
class Loop:
    """Repeat the body with `var` = 0, 1, … trip - 1."""

    var: str
    trip: int
    body: tuple[Instruction | Sync | Loop, ...]


Item = Instruction | Sync | Loop

INSTRUCTIONS: tuple[type[Instruction], ...] = (
    Load, Store, LoadV, LoadH, Shift, Exec, Drain, Map, Reduce, Random, ExecOS,
)  # fmt: skip
ENGINES = ("load", "store", "feed_v", "feed_h", "shift", "array", "drain", "vector")
SPACES = ("gbuf", "lbuf_v", "lbuf_h", "pe", "acc")


@dataclass(frozen=True)
class Buffer:
    """A named place on chip, for one kernel: `depth` slots of `size` elements each.

    `address` is in bytes and counts in the gbuf only; a slot of another space is one tile of it.
    `found`: in the gbuf, with what an earlier kernel left in the same buffer at that address.
    """

    name: str
    space: str
    dtype: str
    size: int
    depth: int = 1
    address: int = 0
    found: bool = False


@dataclass(frozen=True)
class Token:
    """A counting semaphore and what it holds when the kernel starts."""

    name: str
    initial: int = 0


@dataclass(frozen=True)
class Kernel:
    """The code between two barriers."""

    name: str
    buffers: tuple[Buffer, ...]
    tokens: tuple[Token, ...]
    body: tuple[Item, ...]


@dataclass(frozen=True)
class Placed:
    """A tensor in DRAM: row-major from `address` (bytes).  Tensors may share an address when
    their lives do not overlap, or when one is a reshaped or updated name of the other."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    role: str
    address: int


@dataclass(frozen=True)
class NodeRef:
    """The graph node an instruction serves, and the ONNX node that one came from."""

    name: str
    op: str
    origin: str
    phase: str


@dataclass(frozen=True)
class Program:
    """A whole training step for one machine.  dtypes are f64 f32 bf16 f16 i32 u8."""

    name: str
    machine: str
    dtype: str
    accum: str
    dram_bytes: int
    tensors: tuple[Placed, ...]
    nodes: tuple[NodeRef, ...]
    kernels: tuple[Kernel, ...]


DTYPE_BYTES = {"f64": 8, "f32": 4, "bf16": 2, "f16": 2, "i32": 4, "u8": 1}
