"""A GEMM whose operands lie in the global buffer, as waves through the array.

Weight-stationary: for each block of results the reduction runs in steps; each step shifts a block
of the stationary operand into the PEs and streams the moving operand through.  A cut says how long
waves are, how wide and deep blocks, and in which mode each runs.  Without one the array is blocked
as WaveCore does it, `acc_rows` x `cols` results in steps of `rows`, and where it has several modes
each step runs in the one with most sub-waves that holds its block (FlexSA's rule).

Output-stationary: a block of results is held, and both operands stream through in steps.

Several arrays work in step: a cut says what each of them does, and an instruction is as many times
longer, wider or deeper as M, N and K are split; what does not divide is missing from the last.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import lcm

from ccnn.compiler.codegen.emit import CodegenError, KernelWriter, Region, Ticket, merge, slot
from ccnn.compiler.cut import FLOWS, Cut, Flow, Run, Triple, triple_text
from ccnn.targets.machine import Machine
from ccnn.targets.modes import best_mode, spread_name
from ccnn.targets.program import (
    ZERO,
    Affine,
    Dim,
    Drain,
    Exec,
    ExecOS,
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
    part: Affine = ZERO

    @property
    def transposed(self) -> Block:
        """The same words, rows and columns exchanged."""
        return Block(self.ticket, self.cols, self.rows, self.offset, self.part)

    def window(self, r0: Affine, r: Extent, c0: Affine, c: Extent) -> Matrix:
        """A window of it as an instruction operand."""
        rows, cols = merge(self.rows), merge(self.cols)
        at_slot = isinstance(self.ticket, Ticket)
        name = self.ticket.pipe.name if isinstance(self.ticket, Ticket) else self.ticket.name
        slot = self.ticket if at_slot else self.part
        return Matrix(name, rows, cols, r0, r, c0, c, self.offset, slot)  # type: ignore[arg-type]


def declare_array(
    kw: KernelWriter, machine: Machine, dtype: str, accum: str, pieces: int = 1
) -> None:
    """The local buffers, weight registers and accumulators a GEMM kernel uses; waves that go in
    `pieces` share out the accumulators' rows over as many slots more."""
    v, h = machine.rows * machine.cols * machine.arrays, machine.lbuf_h_rows * machine.rows
    h *= machine.arrays
    kw.pipe("v", "lbuf_v", dtype, v, machine.lbuf_v_slots)
    kw.pipe("h", "lbuf_h", dtype, h, machine.lbuf_h_slots)
    kw.pipe("pe", "pe", dtype, v, machine.weight_buffers)
    rows = machine.acc_rows // pieces * machine.arrays
    kw.pipe("acc", "acc", accum, rows * machine.cols, machine.acc_slots * pieces)


Sizes = Sequence[tuple[int, int]]
"""(size, count) one behind the other."""
Piece = tuple[Affine, Extent, Affine]
"""Where a stretch starts, how long it is, and what is above 0 for all but the first."""


def _over_arrays(sizes: Sizes, parts: int, total: int) -> list[tuple[int, int, int]]:
    """Each size on every one of several arrays in step, how often, and its place in `sizes`; the
    last is short of what is too much."""
    spread = [(size * parts, count, i) for i, (size, count) in enumerate(sizes)]
    over = sum(size * count for size, count, _ in spread) - total
    if not over:
        return spread
    size, count, i = spread.pop()
    return [*spread, *([(size, count - 1, i)] if count > 1 else []), (size - over, 1, i)]


def along(kw: KernelWriter, pieces: Sizes) -> Iterator[Piece]:
    """Loops over (size, count) one behind the other."""
    base = 0
    for size, count in pieces:
        with kw.loop(count) as index:
            yield index * size + base, Extent(size), index + int(base > 0)
        base += size * count


def _even(kw: KernelWriter, total: int, tile: int) -> Iterator[Piece]:
    """One loop over tiles, the last of which may be smaller."""
    with kw.loop(-(-total // tile)) as index:
        start = index * tile if total > tile else ZERO
        rest = Affine(total) - start if total > tile and total % tile else None
        yield start, Extent(min(total, tile), rest), index


def edges(total: int, tile: int) -> list[tuple[int, int]]:
    """(size, count): full tiles, then the rest."""
    full, rest = divmod(total, tile)
    return [(size, count) for size, count in ((tile, full), (rest, 1)) if count and size]


@dataclass(frozen=True)
class Wanted:
    """What is to be multiplied: result[M, N] (+)= moving[M, K] @ stationary[K, N] (+ bias[N])."""

    moving: Block
    stationary: Block
    result: Block
    shape: Triple
    accumulate: Affine = ZERO
    """Adds to what result holds when this is above 0."""
    bias: Block | None = None
    pieces: int = 1
    """As in `compiler.mapping.Tiling`."""
    split: Triple = (1, 1, 1)
    """Parts of M, N and K that arrays work on in step."""

    @property
    def transposed(self) -> Wanted:
        """The same the other way round: result[N, M] (+)= stationary^T @ moving^T."""
        if self.bias:
            raise CodegenError("a bias goes with columns of the result; let b stay in the array")
        m, n, k = self.shape
        blocks = self.stationary.transposed, self.moving.transposed, self.result.transposed
        by_m, by_n, by_k = self.split
        split = by_n, by_m, by_k
        return Wanted(*blocks, (n, m, k), self.accumulate, None, self.pieces, split)


def exchanges(flow: Flow) -> bool:
    """True when a stands where b usually does: the feeds then read each other's operands."""
    return flow.width == 0


def write_waves(
    kw: KernelWriter, machine: Machine, wanted: Wanted, flow: str = FLOWS[0].name,
    cut: Cut | None = None,
) -> None:  # fmt: skip
    """Write a product; the caller holds tokens for all operands: feed_h reads moving, feed_v reads
    stationary (or the other way round, see `exchanges`), drain writes result and reads bias.
    """
    if cut is None and (flow != FLOWS[0].name or wanted.pieces > 1 or machine.arrays > 1):
        raise CodegenError(
            f"'{kw.name}': the mapping has no cut for {triple_text(wanted.shape)} with flow "
            f"'{flow}' in {wanted.pieces} pieces; add one, or leave flow and pieces out"
        )
    if cut is not None:
        wanted = replace(wanted, split=cut.split)
    if cut is not None and exchanges(cut.flow):
        wanted = wanted.transposed
    if cut is not None and cut.flow.dataflow == "os":
        _write_results_stay(kw, machine, wanted, cut)
    else:
        _write_stationary(kw, machine, wanted, cut)


def _write_stationary(kw: KernelWriter, machine: Machine, wanted: Wanted, cut: Cut | None) -> None:
    """Weight-stationary waves; a wave's pieces go one after the other past each block held."""
    m_total = wanted.shape[0]
    h, pe, acc = (kw.pipes[name] for name in ("h", "pe", "acc"))
    node, mode = kw.node, ""
    by_m = wanted.split[0]
    most = machine.acc_rows // wanted.pieces * by_m
    grain = lcm(*(each.sub_waves for each in machine.array_modes)) * by_m
    waves = _even(kw, m_total, machine.acc_rows)
    if cut:
        waves = along(kw, [w[:2] for w in _over_arrays(cut.waves, by_m, m_total)])
    for m0, m, _ in waves:
        pieces = _pieces(m0, m, most, grain) if cut else [(m0, m)]
        for n0, n, runs in _strips(kw, machine, wanted, cut):
            # past a single block, a piece is drained while the next one streams
            at_once = sum(run.count for run in runs) == 1
            held = [kw.fill(acc, "array") for _ in pieces[: 1 if at_once else None]]
            for k0, k, down, mode in _blocks(kw, machine, wanted, 2, (n.size, runs)):
                tv = load_block(kw, wanted, (k0, k), (n0, n), mode)
                tp: Ticket | None = None
                for i, rows in enumerate(pieces):
                    th = load_rows(kw, wanted, rows, (k0, k), mode)
                    tp = tp or shift_in(kw, tv, k, n, mode)
                    if i == len(held):
                        held.append(kw.fill(acc, "array"))
                    kw.take(h, "array")
                    sums = slot(held[i])
                    kw.emit(Exec(node, sums, slot(th), slot(tp), rows[1], k, n, down, mode=mode))
                    kw.done(h, "array")
                    if i == len(pieces) - 1:
                        kw.done(pe, "array")
                    if at_once:
                        drain(kw, held[i], wanted, (rows, (n0, n)), mode)
            if not at_once:
                for rows, sums in zip(pieces, held, strict=True):
                    drain(kw, sums, wanted, (rows, (n0, n)), mode)


Span = tuple[Affine, Extent]
"""Where rows, columns or steps start, and how many."""


def _pieces(start: Affine, length: Extent, most: int, grain: int) -> list[Span]:
    """A wave's rows in as few stretches as are no longer than `most`, multiples of the grain and
    as equal as can be: behind a short one the array would wait until a long one is there."""
    count = -(-length.size // most)
    each = min(most, -(-length.size // (count * grain)) * grain)
    firsts = range(0, length.size, each)
    return [(start + first, Extent(min(each, length.size - first))) for first in firsts]


def load_block(
    kw: KernelWriter, wanted: Wanted, depth: Span, columns: Span, mode: str, pipe: str = "v"
) -> Ticket:
    """Bring a block of the stationary operand before the array."""
    tv = kw.fill(kw.pipes[pipe], "feed_v")
    window = wanted.stationary.window(*depth, *columns)
    kw.emit(LoadV(kw.node, slot(tv), window, mode=mode))
    kw.filled(kw.pipes[pipe], "feed_v")
    return tv


def load_rows(kw: KernelWriter, wanted: Wanted, rows: Span, depth: Span, mode: str) -> Ticket:
    """Bring rows of the moving operand before the array."""
    th = kw.fill(kw.pipes["h"], "feed_h")
    kw.emit(LoadH(kw.node, slot(th), wanted.moving.window(*rows, *depth), mode=mode))
    kw.filled(kw.pipes["h"], "feed_h")
    return th


def shift_in(kw: KernelWriter, tv: Ticket, k: Extent, n: Extent, mode: str) -> Ticket:
    """The block into the PEs; the array waits for it."""
    v, pe = kw.pipes["v"], kw.pipes["pe"]
    kw.take(v, "shift")
    tp = kw.fill(pe, "shift")
    kw.emit(Shift(kw.node, slot(tp), slot(tv), k, n, mode=mode))
    kw.done(v, "shift")
    kw.filled(pe, "shift")
    kw.take(pe, "array")
    return tp


def _write_results_stay(kw: KernelWriter, machine: Machine, wanted: Wanted, cut: Cut) -> None:
    """Output-stationary: both operands stream past each block of results in steps."""
    v, h, acc = (kw.pipes[name] for name in ("v", "h", "acc"))
    depth = min(machine.rows, machine.lbuf_h_rows) * wanted.split[2]
    node, steps = kw.node, edges(wanted.shape[2], depth)
    passing = wanted.moving.transposed
    for n0, n, runs in _strips(kw, machine, wanted, cut):
        for m0, m, _, mode in _blocks(kw, machine, wanted, 0, (n.size, runs)):
            sums = kw.fill(acc, "array")
            for k0, k, later in along(kw, steps):
                tv = kw.fill(v, "feed_v")
                kw.emit(LoadV(node, slot(tv), wanted.stationary.window(k0, k, n0, n), mode=mode))
                kw.filled(v, "feed_v")
                th = kw.fill(h, "feed_h")
                kw.emit(LoadH(node, slot(th), passing.window(k0, k, m0, m), mode=mode))
                kw.filled(h, "feed_h")
                kw.take(v, "array")
                kw.take(h, "array")
                kw.emit(ExecOS(node, slot(sums), slot(th), slot(tv), m, k, n, later, mode=mode))
                kw.done(h, "array")
                kw.done(v, "array")
            drain(kw, sums, wanted, ((m0, m), (n0, n)), mode)


def drain(
    kw: KernelWriter,
    sums: Ticket,
    wanted: Wanted,
    window: tuple[tuple[Affine, Extent], tuple[Affine, Extent]],
    mode: str,
) -> None:
    """A finished block of results to where it belongs."""
    (m0, m), (n0, n) = window
    kw.filled(sums.pipe, "array")
    kw.take(sums.pipe, "drain")
    extra = wanted.bias.window(ZERO, Extent(1), n0, n) if wanted.bias else None
    where = wanted.result.window(m0, m, n0, n)
    kw.emit(Drain(kw.node, where, slot(sums), wanted.accumulate, extra, mode=mode))
    kw.done(sums.pipe, "drain")


def _strips(
    kw: KernelWriter, machine: Machine, wanted: Wanted, cut: Cut | None
) -> Iterator[tuple[Affine, Extent, tuple[Run, ...]]]:
    """Where each strip of the width is, and how its depth is cut (empty: by the rule)."""
    total, parts = wanted.shape[1], wanted.split[1]
    if cut is None:
        # in modes what is left at the end stands in code of its own: its mode may be another
        by_rule = along(kw, edges(total, machine.cols))
        for start, size, _ in by_rule if machine.modes else _even(kw, total, machine.cols):
            yield start, size, ()
        return
    sizes = _over_arrays([(s.width, s.count) for s in cut.strips], parts, total)
    base = 0
    for width, count, which in sizes:
        with kw.loop(count) as index:
            yield index * width + base, Extent(width), cut.strips[which].runs
        base += width * count


def _blocks(
    kw: KernelWriter, machine: Machine, wanted: Wanted, axis: int, strip: tuple[int, Sequence[Run]]
) -> Iterator[tuple[Affine, Extent, Affine, str]]:
    """Where each block of a strip's depth is, what is above 0 for all but the first, its mode.

    The depth is that of an `axis` of M, N, K; of the `strip`, width and blocks are known.
    """
    total, (width, runs) = wanted.shape[axis], strip
    if not runs and not machine.modes:
        yield from ((*piece, "") for piece in _even(kw, total, machine.rows))
        return
    if not runs:
        runs = [
            Run(best_mode(machine.modes, depth, width).name, depth, count)
            for depth, count in edges(total, machine.rows)
        ]
    sizes = _over_arrays([(r.depth, r.count) for r in runs], wanted.split[axis], total)
    base = 0
    for depth, count, which in sizes:
        mode = runs[which].mode if machine.modes else ""
        if machine.arrays > 1:
            mode = spread_name(runs[which].mode, wanted.split)
        with kw.loop(count) as index:
            yield index * depth + base, Extent(depth), index + int(base > 0), mode
        base += depth * count
