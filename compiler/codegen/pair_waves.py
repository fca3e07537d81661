"""Both gradients of a layer through an array whose PEs take turns with them.

A block of W is held beside its block of dW.  For each piece of rows, dY and X come before the array
once, and both gradients take them in turns:

    LdLBUF_V  W[k, n]    ShiftV                             once for a wave
    LdLBUF_H  dY[m, k]   LdLBUF_V  X[m, n]                  for each piece of it
    ExecGEMM  dX[m, n] (+)= dY W    ExecOS  dW[k, n] (+)= dY^T X
    StLBUF    dW[k, n]                                      after its last piece
    StLBUF    dX[m, n]                                      after the last block of k

dX waits in accumulators until all blocks of k have been added to it, dW only for the pieces of a
wave; what further waves add to it is added in the global buffer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ccnn.compiler.codegen.emit import CodegenError, KernelWriter, Ticket, slot
from ccnn.compiler.codegen.waves import (
    Block,
    Span,
    Wanted,
    along,
    drain,
    edges,
    load_block,
    load_rows,
    shift_in,
)
from ccnn.compiler.cut import Triple
from ccnn.targets.machine import Machine
from ccnn.targets.modes import Mode
from ccnn.targets.program import ZERO, Affine, Exec, ExecOS, Extent

_MOST_PIECES = 4
"""Pieces of a wave; more lengthen the code and hide no more loads."""


@dataclass(frozen=True)
class Pieces:
    """How an array's accumulators are dealt out: rows of a piece, slots for dX, slots for dW."""

    rows: int
    slots: int
    gradients: int

    @property
    def wave(self) -> int:
        """Rows that pass a block of W before the next comes."""
        return self.rows * min(self.slots, _MOST_PIECES)


def pieces_of(machine: Machine, mode: Mode) -> Pieces:
    """Slots for three blocks of dW, one in the making, one on its way out and one being drained,
    or as many as leave one for rows of dX."""
    total = machine.acc_slots * machine.acc_rows
    gradients = min(3, max(1, total // mode.rows - 1))
    left = total - gradients * mode.rows
    rows = min(machine.rows, machine.lbuf_h_rows, left)
    if rows < 1 or machine.lbuf_v_slots < 2:
        raise CodegenError(
            f"both gradients at once take accumulators of more than {mode.rows} rows and two slots "
            f"of lbuf_v; {machine.name} has {total} and {machine.lbuf_v_slots}"
        )
    return Pieces(rows, left // rows, gradients)


def declare_pair(kw: KernelWriter, machine: Machine, mode: Mode, dtype: str, accum: str) -> Pieces:
    """The local buffers, weight registers and accumulators of a kernel for both gradients."""
    pieces = pieces_of(machine, mode)
    held, half = machine.rows * machine.cols, machine.lbuf_v_slots // 2
    kw.pipe("v", "lbuf_v", dtype, held, half)
    kw.pipe("x", "lbuf_v", dtype, held, half)
    kw.pipe("h", "lbuf_h", dtype, machine.lbuf_h_rows * machine.rows, machine.lbuf_h_slots)
    kw.pipe("pe", "pe", dtype, held, machine.weight_buffers)
    kw.pipe("acc", "acc", accum, pieces.rows * machine.cols, pieces.slots)
    kw.pipe("acc.dw", "acc", accum, mode.rows * machine.cols, pieces.gradients)
    return pieces


@dataclass(frozen=True)
class WantedPair:
    """result[M, N] = moving[M, K] @ stationary[K, N], gradient[K, N] (+)= moving^T @ input[M, N].

    `dx` and `dw` are the numbers of the nodes that the two serve.
    """

    moving: Block
    stationary: Block
    result: Block
    input: Block
    gradient: Block
    shape: Triple
    dx: int
    dw: int
    accumulate: Affine = ZERO
    """Adds to what gradient holds when this is above 0."""


def write_pair(
    kw: KernelWriter, machine: Machine, mode: Mode, pieces: Pieces, wanted: WantedPair
) -> None:
    """Write both products; the caller holds tokens for all operands: feed_h reads moving, feed_v
    reads stationary and input, drain writes result and gradient."""
    m_total, n_total, k_total = wanted.shape
    dx = Wanted(wanted.moving, wanted.stationary, wanted.result, wanted.shape)
    for m0, m, later in along(kw, edges(m_total, pieces.wave)):
        dw = Wanted(
            wanted.moving.transposed, wanted.input, wanted.gradient, (k_total, n_total, m.size),
            wanted.accumulate + later,
        )  # fmt: skip
        waves = _Waves(kw, mode, dx, dw, wanted.dx, wanted.dw)
        starts = range(0, m.size, pieces.rows)
        rows = [(m0 + at, Extent(min(pieces.rows, m.size - at))) for at in starts]
        for n0, n, _ in along(kw, edges(n_total, mode.cols)):
            waves.strip(rows, (n0, n))


@dataclass(frozen=True)
class _Waves:
    """A wave of rows, and both products as far as it goes; the nodes that they serve."""

    kw: KernelWriter
    mode: Mode
    dx: Wanted
    dw: Wanted
    node_dx: int
    node_dw: int

    def strip(self, rows: Sequence[Span], columns: Span) -> None:
        """The pieces past all blocks of W under a strip of columns; the X of a single one stays."""
        kw = self.kw
        kw.node = self.node_dx
        sums: list[Ticket] = []
        xs: list[Ticket] = []
        blocks = _ends_apart(edges(self.dx.shape[2], self.mode.rows))
        for i, (k0, k, down) in enumerate(along(kw, blocks)):
            last = i == len(blocks) - 1
            self.block((rows, columns, (k0, k)), down, sums, xs, last)
        if len(rows) == 1:
            kw.done(kw.pipes["x"], "array")

    def load_x(self, piece: Span, columns: Span) -> Ticket:
        """X before the array, which waits for it."""
        kw = self.kw
        kw.node = self.node_dw
        ticket = load_block(kw, self.dw, piece, columns, self.mode.name, "x")
        kw.take(kw.pipes["x"], "array")
        kw.node = self.node_dx
        return ticket

    def block(
        self, where: tuple[Sequence[Span], Span, Span], down: Affine, sums: list[Ticket],
        xs: list[Ticket], last: bool,
    ) -> None:  # fmt: skip
        """The pieces past one block of W; `sums` for their dX, opened by the first block and
        drained behind the last, and the `xs` of the last block where they stay."""
        kw, name = self.kw, self.mode.name
        rows, columns, depth = where
        acc, k, n = kw.pipes["acc"], depth[1], columns[1]
        tw = load_block(kw, self.dx, depth, columns, name)
        tp: Ticket | None = None
        gradient = kw.fill(kw.pipes["acc.dw"], "array")
        for i, piece in enumerate(rows):
            m = piece[1]
            th = load_rows(kw, self.dx, piece, depth, name)
            if not xs or len(rows) > 1:
                xs[:] = [self.load_x(piece, columns)]
            tp = tp or shift_in(kw, tw, k, n, name)
            if i == len(sums):
                sums.append(kw.fill(acc, "array"))
            kw.take(kw.pipes["h"], "array")
            first, second = (slot(sums[i]), slot(th)), (slot(gradient), slot(th))
            kw.emit(Exec(self.node_dx, *first, slot(tp), m, k, n, down, mode=name))
            kw.emit(ExecOS(self.node_dw, *second, slot(xs[0]), k, m, n, Affine(i), mode=name))
            kw.done(kw.pipes["h"], "array")
            if len(rows) > 1:
                kw.done(kw.pipes["x"], "array")
            if last:
                drain(kw, sums[i], self.dx, (piece, columns), name)
        kw.done(kw.pipes["pe"], "array")
        kw.node = self.node_dw
        drain(kw, gradient, self.dw, (depth, columns), name)
        kw.node = self.node_dx


def _ends_apart(pieces: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same (size, count), the first and the last of all on their own."""
    (first, many), *others = pieces
    if not others:
        inner = [(first, many - 2)] if many > 2 else []
        return [(first, 1), *inner, (first, 1)] if many > 1 else [(first, 1)]
    return [(first, 1), *([(first, many - 1)] if many > 1 else []), *others]
