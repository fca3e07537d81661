"""Closed formulas for the cycles of a GEMM M x N x K on a systolic array, to compare with.

M counts the rows of the moving operand (pixels), N the columns of the result (filters), K the
reduction.  A fold is one array-full of the stationary operand.  `ws_cycles`, `os_cycles` and
`is_cycles` are those of SCALE-Sim (Samajdar et al., ISPASS 2020) version 3; `wave_cycles` is that
of the blocking of WaveCore (Lym et al., MLSys 2019, section on weight double buffering).  ccnn's
own numbers never come from here: they are counted while a program is simulated.
"""

from __future__ import annotations


def _folds(total: int, size: int) -> int:
    return -(-total // size)


def ws_cycles(m: int, n: int, k: int, rows: int, cols: int) -> int:
    """Weight-stationary: each fold loads `rows` weights, streams m rows and drains.

    Leaves out: weights loaded behind the previous fold, loads shorter for partial folds, the return
    of partial sums when K takes several folds, and any stall for memory.  The result is the
    number of the last cycle, counted from 0.
    """
    return _folds(k, rows) * _folds(n, cols) * (2 * rows + cols + m - 2) - 1


def os_cycles(m: int, n: int, k: int, rows: int, cols: int) -> int:
    """Output-stationary: each fold streams k pairs through rows x cols accumulators.

    Leaves out: taking the results out of the array (up to `rows` more cycles a fold), partial
    folds, and any stall for memory.  The result is the number of the last cycle, from 0.
    """
    return _folds(m, rows) * _folds(n, cols) * (rows + cols + k - 2) - 1


def is_cycles(m: int, n: int, k: int, rows: int, cols: int) -> int:
    """Input-stationary: as weight-stationary with the two operands exchanged.

    Leaves out what `ws_cycles` leaves out.  The result is the number of the last cycle, from 0.
    """
    return _folds(k, rows) * _folds(m, cols) * (2 * rows + cols + n - 2) - 1


def wave_cycles(
    m: int, n: int, k: int, rows: int, cols: int, acc_rows: int, double_buffered: bool
) -> int:
    """Cycles the array is taken by waves: blocks of acc_rows x cols results, K in steps of `rows`.

    A wave of mt rows with kt rows of weights takes max(mt, kt) cycles when the weights of the next
    wave shift in behind it, else mt + kt.  Leaves out: filling the buffers before the first
    wave, skew and drain after the last, and waiting for a free accumulator or for memory.
    """
    total = 0
    for mt in _parts(m, acc_rows):
        for kt in _parts(k, rows):
            total += max(mt, kt) if double_buffered else mt + kt
    return total * _folds(n, cols)


def _parts(total: int, size: int) -> list[int]:
    whole, rest = divmod(total, size)
    return [size] * whole + ([rest] if rest else [])
