"""How much of a place in DRAM has been written."""

from __future__ import annotations

from math import prod

import numpy as np

from ccnn.targets.program import DTYPE_BYTES, Affine, Extent, Placed, Store
from ccnn.targets.verify_common import Trips, highest, lowest

_EXACT = 1 << 18
"""Elements up to which the written part is kept element by element."""
_LISTED = 1 << 22
"""Indices up to which those of one dim are listed."""


class Cover:
    """The written part of a place: exact for small tensors, else the sum of the stores' volumes.

    The volume of a store is that of the union over its iterations.  Two stores that overlap each
    other count twice in a large tensor, so there the rule can miss a gap; it never
    complains about a tensor that is whole.
    """

    def __init__(self) -> None:
        self.width = 0
        self.volume = 0
        self.size = 0
        self.mask: np.ndarray | None = None
        self.whole = False

    def fill(self) -> None:
        """All of it is there."""
        self.whole = True

    def clear(self) -> None:
        """Nothing of it is there any more."""
        self.__init__()

    def full(self) -> bool:
        """True when nothing is missing."""
        return self.whole

    def partial(self) -> bool:
        """True when something was written, but not all of it."""
        return self.width > 0 and not self.whole

    def lack(self, t: Placed) -> str:
        """What is missing, in words."""
        total = prod(t.shape)
        return f"with {min(self.volume, total - 1)} of its {total} elements written"

    def add(self, t: Placed, store: Store, extents: tuple[Extent, ...], trips: Trips) -> None:
        """Count the elements that a store writes over all its iterations."""
        if self.whole:
            return
        width, total = DTYPE_BYTES[t.dtype], prod(t.shape)
        if width != self.width:
            self.width, self.volume = width, 0
            self.mask = np.zeros(total, bool) if total <= _EXACT else None
        parts = [
            _indices(start, step, extent, size, trips)
            for start, step, extent, size in zip(
                store.start, store.step, extents, t.shape, strict=True
            )
        ]
        coupled = _coupled(store.start, extents)
        lists = [p for p, _ in parts]
        if self.mask is not None and not coupled and all(p is not None for p in lists):
            view = self.mask.reshape(t.shape)
            view[np.ix_(*lists)] = True  # type: ignore[arg-type]
            self.volume = int(np.count_nonzero(self.mask))
        else:
            self.mask = None
            self.volume += prod(count for _, count in parts)
        self.whole = self.volume >= total


def _variables(start: Affine, extent: Extent) -> set[str]:
    limit = () if extent.limit is None else extent.limit.terms
    return {v for v, _ in (*start.terms, *limit)}


def _coupled(starts: tuple[Affine, ...], extents: tuple[Extent, ...]) -> bool:
    """True when one variable moves two dims, so that the region is no product of index sets."""
    seen: set[str] = set()
    for start, extent in zip(starts, extents, strict=True):
        mine = _variables(start, extent)
        if mine & seen:
            return True
        seen |= mine
    return False


def _indices(
    start: Affine, step: int, extent: Extent, size: int, trips: Trips
) -> tuple[np.ndarray | None, int]:
    """The indices of a dim that are written, when there are not too many, and their number."""
    names = sorted(_variables(start, extent))
    iterations = prod(trips[v] for v in names)
    if iterations * extent.size > _LISTED:
        low = max(0, lowest(start, trips) + min(0, (extent.size - 1) * step))
        high = min(size, highest(start, trips) + max(0, (extent.size - 1) * step) + 1)
        return None, max(0, high - low)
    grid = np.indices([trips[v] for v in names]).reshape(len(names), iterations)

    def values(a: Affine) -> np.ndarray:
        total = np.full(iterations, a.const, np.int64)
        for var, coefficient in a.terms:
            total += coefficient * grid[names.index(var)]
        return total

    counts = np.full(iterations, extent.size)
    if extent.limit is not None:
        counts = np.minimum(counts, values(extent.limit))
    steps = np.arange(extent.size)
    index = values(start)[:, None] + step * steps
    index = np.unique(index[(steps < counts[:, None]) & (index >= 0) & (index < size)])
    return index, len(index)
