"""Windows of virtual matrices: which elements of a slot a Matrix names, fast.

A window whose rows and whose columns are each a plain strided box becomes one numpy view; any
other is gathered with an index array.  Offsets are in elements.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ccnn.targets.simulator.errors import SimulationError

Sizes = tuple[tuple[int, int], ...]
"""(number, stride) of each dimension, outermost first."""


@lru_cache(maxsize=16384)
def box(dims: Sizes, start: int, count: int) -> tuple[int, Sizes] | None:
    """`count` places from `start`, row-major over `dims`, as (offset, dims); None if no box."""
    if not dims:
        return (0, ()) if start == 0 and count == 1 else None
    inner = 1
    for n, _ in dims[1:]:
        inner *= n
    stride = dims[0][1]
    low, high = start // inner, (start + count - 1) // inner
    if low == high:
        rest = box(dims[1:], start - low * inner, count)
        return None if rest is None else (rest[0] + low * stride, rest[1])
    if start % inner == 0 and count % inner == 0:
        return low * stride, ((count // inner, stride), *dims[1:])
    return None


@lru_cache(maxsize=4096)
def offsets(dims: Sizes, start: int, count: int) -> np.ndarray:
    """The offset of each of `count` places from `start`, row-major over `dims`."""
    places = np.arange(start, start + count, dtype=np.intp)
    found = np.zeros(count, np.intp)
    for n, stride in reversed(dims):
        found += (places % n) * stride
        places //= n
    return found


def check_window(dims: Sizes, start: int, count: int, what: str) -> None:
    """Raise SimulationError unless the window lies inside the matrix."""
    total = 1
    for n, _ in dims:
        total *= n
    if start < 0 or count < 1 or start + count > total:
        raise SimulationError(
            f"{what} {start} to {start + count} of a matrix that has {total}: "
            "the window must lie inside the matrix"
        )


@lru_cache(maxsize=128)
def gather_index(
    rows: Sizes, row_start: int, row_count: int, cols: Sizes, col_start: int, col_count: int
) -> tuple[int, int, np.ndarray]:
    """(lowest offset, highest, index array [row_count, col_count] from the lowest) of a window."""
    r, c = offsets(rows, row_start, row_count), offsets(cols, col_start, col_count)
    lowest = int(r.min()) + int(c.min())
    highest = int(r.max()) + int(c.max())
    return lowest, highest, (r[:, None] + c[None, :]) - lowest
