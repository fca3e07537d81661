"""A GEMM whose operands lie in the global buffer, as waves through the array.

Weight-stationary, blocked as WaveCore does it: for each block of `acc_rows` x `cols` results the
reduction runs in steps of `rows`; each step shifts a block of the stationary operand into the PEs
and streams the moving operand through.  Where the array has several modes, each step runs in the
one with most sub-waves that holds its block (FlexSA's rule).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ccnn.compiler.codegen.emit import KernelWriter, Region, Ticket, merge, slot
from ccnn.targets.machine import Machine
from ccnn.targets.modes import best_mode
from ccnn.targets.program import (
    ZERO,
    Affine,
    Dim,
    Drain,
    Exec,
    Extent,
    LoadH,
    LoadV,
    Matrix,
    Shift,
)


@dataclass(frozen=True)
class Block:
    """A matrix in a buffer slot: rows and columns as dims, and where it starts."""

    ticket: Ticket | Region
    rows: tuple[Dim, ...]
    cols: tuple[Dim, ...]
    offset: Affine = ZERO

    def window(self, r0: Affine, r: Extent, c0: Affine, c: Extent) -> Matrix:
        """A window of it as an instruction operand."""
        rows, cols = merge(self.rows), merge(self.cols)
        at_slot = isinstance(self.ticket, Ticket)
        name = self.ticket.pipe.name if isinstance(self.ticket, Ticket) else self.ticket.name
        slot = self.ticket if at_slot else ZERO
        return Matrix(name, rows, cols, r0, r, c0, c, self.offset, slot)  # type: ignore[arg-type]


def declare_array(kw: KernelWriter, machine: Machine, dtype: str, accum: str) -> None:
    """The local buffers, weight registers and accumulators a GEMM kernel uses."""
    v, h = machine.rows * machine.cols, machine.lbuf_h_rows * machine.rows
    kw.pipe("v", "lbuf_v", dtype, v, machine.lbuf_v_slots)
    kw.pipe("h", "lbuf_h", dtype, h, machine.lbuf_h_slots)
    kw.pipe("pe", "pe", dtype, v, machine.weight_buffers)
    kw.pipe("acc", "acc", accum, machine.acc_rows * machine.cols, machine.acc_slots)


def _tiles(total: int, tile: int, index: Affine) -> tuple[Affine, Extent]:
    if total <= tile:
        return ZERO, Extent(total)
    start = index * tile
    if total % tile == 0:
        return start, Extent(tile)
    return start, Extent(tile, Affine(total) - start)


def _pieces(
    kw: KernelWriter, total: int, tile: int, peel: bool
) -> Iterator[tuple[Affine, Extent, Affine]]:
    """Loops over the tiles of a total: (start, size, above 0 but for the first).

    With `peel` what is left at the end stands in code of its own, as its mode may be another.
    """
    full = total // tile if peel else -(-total // tile)
    if full:
        with kw.loop(full) as index:
            start, size = _tiles(full * tile if peel else total, tile, index)
            yield start, size, index
    if peel and total % tile:
        yield Affine(full * tile), Extent(total % tile), Affine(min(full, 1))


def write_waves(
    kw: KernelWriter,
    machine: Machine,
    moving: Block,
    stationary: Block,
    result: Block,
    shape: tuple[int, int, int],
    accumulate: Affine = ZERO,
    bias: Block | None = None,
) -> None:
    """result[M, N] (+)= moving[M, K] @ stationary[K, N] (+ bias[N]); shape is (M, N, K).

    Adds to what result holds when `accumulate` > 0.  The caller holds tokens for all operands:
    feed_h reads moving, feed_v reads stationary, drain writes result and reads bias.
    """
    m_total, n_total, k_total = shape
    v, h, pe, acc = (kw.pipes[name] for name in ("v", "h", "pe", "acc"))
    node = kw.node

    def blocks(total: int, tile: int) -> int:
        return -(-total // tile)

    flexible = len([mode for mode in machine.modes if mode.dataflow == "ws"]) > 1
    m_tile = machine.acc_rows
    with kw.loop(blocks(m_total, m_tile)) as mi:
        m0, m = _tiles(m_total, m_tile, mi)
        for n0, n, _ in _pieces(kw, n_total, machine.cols, flexible):
            sums = kw.fill(acc, "array")
            mode = ""
            for k0, k, down in _pieces(kw, k_total, machine.rows, flexible):
                if flexible:
                    mode = best_mode(machine.modes, k.size, n.size).name
                tv = kw.fill(v, "feed_v")
                kw.emit(LoadV(node, slot(tv), stationary.window(k0, k, n0, n), mode=mode))
                kw.filled(v, "feed_v")
                th = kw.fill(h, "feed_h")
                kw.emit(LoadH(node, slot(th), moving.window(m0, m, k0, k), mode=mode))
                kw.filled(h, "feed_h")
                kw.take(v, "shift")
                tp = kw.fill(pe, "shift")
                kw.emit(Shift(node, slot(tp), slot(tv), k, n, mode=mode))
                kw.done(v, "shift")
                kw.filled(pe, "shift")
                kw.take(pe, "array")
                kw.take(h, "array")
                kw.emit(Exec(node, slot(sums), slot(th), slot(tp), m, k, n, down, mode=mode))
                kw.done(h, "array")
                kw.done(pe, "array")
            kw.filled(acc, "array")
            kw.take(acc, "drain")
            window = result.window(m0, m, n0, n)
            extra = bias.window(ZERO, Extent(1), n0, n) if bias else None
            kw.emit(Drain(node, window, slot(sums), accumulate, extra, mode=mode))
            kw.done(acc, "drain")
