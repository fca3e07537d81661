"""What each tile size of each level of a GEMM costs, as small integer tables.

Sizes of buffers and DRAM traffic are products over the levels, so one table a level is enough:

    elements of a tile      scale * product of volume[level][tile size]
    elements moved once     scale * product of cover[level][tile size]

`cover` sums what one sweep over a level's tiles takes out of the tensor: halos count twice, what
lies in the padding or between two strides does not count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from math import gcd, prod

import numpy as np

from ccnn.compiler.codegen.convolution import ConvDx
from ccnn.compiler.codegen.gemm import Gemm
from ccnn.compiler.codegen.nest import Position
from ccnn.targets.program import DTYPE_BYTES, ZERO, var

Ints = np.ndarray


@dataclass(frozen=True)
class LevelTable:
    """Per tile size of one level: iterations, and the factors of each operand."""

    name: str
    total: int
    multiple: int
    sizes: Ints
    trips: Ints
    volume: Mapping[str, Ints]
    cover: Mapping[str, Ints]


@dataclass(frozen=True)
class OperandTable:
    """An operand: what moves it, bytes an element, the constants of its products."""

    depends: frozenset[str]
    width: int
    volume_scale: Fraction
    cover_scale: Fraction
    touched: int
    """Bytes that any tiling moves at least once."""
    written: bool


@dataclass(frozen=True)
class Part:
    """Products of one tile that share a filter part: how many, rows of all, reduction length.

    `rows` and `depth` are those of one group (or batch entry), whole; `many` products share them.
    """

    many: int
    rows: int
    depth: int


@dataclass(frozen=True)
class Tables:
    """Everything that pricing a tiling needs to know about a GEMM."""

    gemm: Gemm
    levels: Mapping[str, LevelTable]
    operands: Mapping[str, OperandTable]
    parts: tuple[Part, ...]
    columns: int

    @property
    def floor(self) -> int:
        """Bytes that every tiling moves: what any tile touches of each operand, once."""
        return sum(o.touched for o in self.operands.values())


def make_tables(gemm: Gemm, sizes: Mapping[str, Sequence[int]]) -> Tables:
    """Tables over the given tile sizes of each level."""
    kinds = {o.name: (o.depends, DTYPE_BYTES[o.dtype], o.written) for o in gemm.operands()}
    if gemm.bias:
        kinds["bias"] = (gemm.bias_on, DTYPE_BYTES[gemm.dtypes[gemm.bias]], False)
    volume, volume_scale = _volumes(gemm, sizes, kinds)
    cover, cover_scale, touched = _covers(gemm, sizes, kinds)
    levels = {}
    for name, level in gemm.levels.items():
        size = np.array(sizes[name], np.int64)
        levels[name] = LevelTable(
            name, level.total, level.multiple, size, -(-level.total // size), volume[name],
            cover[name],
        )  # fmt: skip
    operands = {
        k: OperandTable(
            on,
            w,
            volume_scale[k],
            cover_scale[k],
            0 if k in gemm.staying else touched[k] * w,
            written,
        )
        for k, (on, w, written) in kinds.items()
    }
    return Tables(gemm, levels, operands, *_parts(gemm))


LONGEST_SWEEP = 1024
"""Tiles of a level with a halo that are looked at one by one."""


def useful_sizes(gemm: Gemm) -> dict[str, list[int]] | None:
    """Every tile size that some least-traffic tiling may need, ascending.

    Of all sizes with the same number of tiles the smallest needs the least buffer, so another is
    useful only where it moves less, which takes a halo, padding or a gap between strides.
    None when such a level is too long to look at every size.
    """
    found = {}
    for name, level in gemm.levels.items():
        units = -(-level.total // level.multiple)
        sweeps = [
            s for k in ("moving", "stationary") if (s := _sweep_of(gemm, k, name)) is not None
        ]
        if sweeps and units > LONGEST_SWEEP:
            return None
        if sweeps:
            counts = range(1, units + 1)
        else:
            counts = sorted({-(-units // trips) for trips in _quotients(units)})
        kept: list[int] = []
        best: dict[int, list[tuple[int, ...]]] = {}
        for count in counts:
            size = min(level.total, count * level.multiple)
            moved = tuple(s.moved(gemm, size) for s in sweeps)
            same = best.setdefault(-(-level.total // size), [])
            if not any(all(a <= b for a, b in zip(m, moved, strict=True)) for m in same):
                same.append(moved)
                kept.append(size)
        found[name] = kept
    return found


def _quotients(units: int) -> list[int]:
    """All numbers of tiles that equal tiles can cut `units` into."""
    found, tile = [], 1
    while tile <= units:
        trips = -(-units // tile)
        found.append(trips)
        # the first tile size with fewer tiles
        tile = -(-units // (trips - 1)) if trips > 1 else units + 1
    return found


def _sweep_of(gemm: Gemm, operand: str, name: str) -> _Sweep | None:
    depends = gemm.moving_on if operand == "moving" else gemm.stationary_on
    return _sweep(gemm, operand, name) if name in depends else None


def _volumes(
    gemm: Gemm, sizes: Mapping[str, Sequence[int]], kinds: Mapping[str, object]
) -> tuple[dict[str, dict[str, Ints]], dict[str, Fraction]]:
    """Factors by level and operand, and the constant of each operand."""
    ones = {v.name: min(v.total, v.multiple) for v in gemm.levels.values()}

    def elements(tile: dict[str, int]) -> dict[str, int]:
        found = {k: prod(s) for k, s in gemm.tile_shapes(tile).items()}
        if gemm.bias:
            found["bias"] = gemm.bias_size(tile)
        return found

    base = elements(ones)
    scale = {k: Fraction(base[k]) for k in kinds}
    table: dict[str, dict[str, Ints]] = {}
    for name, values in sizes.items():
        rows = [elements({**ones, name: size}) for size in values]
        table[name] = {}
        for k in kinds:
            column = [row[k] for row in rows]
            common = gcd(*column)
            scale[k] *= Fraction(common, base[k])
            table[name][k] = np.array([c // common for c in column], np.int64)
    return table, scale


def _covers(
    gemm: Gemm, sizes: Mapping[str, Sequence[int]],
    kinds: Mapping[str, tuple[frozenset[str], int, bool]],
) -> tuple[dict[str, dict[str, Ints]], dict[str, Fraction], dict[str, int]]:  # fmt: skip
    """Factors by level and operand, the constants, and the elements touched at all."""
    table: dict[str, dict[str, Ints]] = {name: {} for name in sizes}
    scale, touched = {}, {}
    for k, (depends, _, written) in kinds.items():
        tensor = gemm.bias if k == "bias" else gemm.tensors[k]
        shape = gemm.graph[tensor].shape
        whole, least = prod(shape), Fraction(prod(shape))
        scale[k] = Fraction(whole)
        for name, values in sizes.items():
            table[name][k] = np.ones(len(values), np.int64)
            sweep = None if written or k == "bias" or name not in depends else _sweep(gemm, k, name)
            if sweep is None:
                continue
            table[name][k] = np.array([sweep.moved(gemm, size) for size in values], np.int64)
            scale[k] /= shape[sweep.axis]
            least = least * sweep.union(gemm) / shape[sweep.axis]
        touched[k] = int(least)
    return table, scale, touched


@dataclass(frozen=True)
class _Sweep:
    """How the tiles of one level walk along one axis of an operand: start = slope*i + offset."""

    operand: str
    level: str
    axis: int
    extent: int
    slope: Fraction
    offset: int

    def size(self, gemm: Gemm, tile: int) -> int:
        return gemm.tile_shapes({**_whole(gemm), self.level: tile})[self.operand][self.axis]

    def inside(self, starts: Ints, size: int) -> Ints:
        return np.clip(
            np.minimum(starts + size, self.extent) - np.maximum(starts, 0), 0, None
        )  # fmt: skip

    def moved(self, gemm: Gemm, tile: int) -> int:
        """Places inside the tensor that one sweep of tiles of this size loads."""
        total = gemm.levels[self.level].total
        whole, rest = divmod(total, tile)
        slope, offset = self.slope, self.offset
        each = _start_of(gemm, self, tile)
        starts = offset + each * np.arange(whole)
        moved = int(self.inside(starts, self.size(gemm, tile)).sum())
        if rest:
            last = np.array([offset + int(slope * whole * tile)])
            moved += int(self.inside(last, self.size(gemm, rest)).sum())
        return moved

    def union(self, gemm: Gemm) -> int:
        """Places that some tile touches, however the level is cut."""
        level = gemm.levels[self.level]
        tile = min(level.total, level.multiple)
        whole, rest = divmod(level.total, tile)
        starts = self.offset + int(self.slope * tile) * np.arange(whole + (rest > 0))
        sizes = np.full(len(starts), self.size(gemm, tile))
        if rest:
            sizes[-1] = self.size(gemm, rest)
        edges = np.zeros(self.extent + 1, np.int64)
        np.add.at(edges, np.clip(starts, 0, self.extent), 1)
        np.add.at(edges, np.clip(starts + sizes, 0, self.extent), -1)
        marks = np.cumsum(edges[:-1]) > 0
        return int(marks.sum())


def _start_of(gemm: Gemm, sweep: _Sweep, tile: int) -> int:
    return int(sweep.slope * tile) if tile < gemm.levels[sweep.level].total else 0


def _whole(gemm: Gemm) -> dict[str, int]:
    return {v.name: v.total for v in gemm.levels.values()}


def _sweep(gemm: Gemm, operand: str, name: str) -> _Sweep | None:
    """The axis that a level walks with overlap, gaps or padding; None when it covers it exactly."""
    level = gemm.levels[name]
    step = min(level.total, level.multiple)
    position: Position = {v.name: (ZERO, v.total) for v in gemm.levels.values()}
    starts, sizes = gemm.box(operand, {**position, name: (var(name, step), step)})
    still, full = gemm.box(operand, position)
    shape = gemm.graph[gemm.tensors[operand]].shape
    for axis, start in enumerate(starts):
        slope = dict(start.terms).get(name, 0)
        if not slope:
            continue
        offset = still[axis].const
        if (
            offset == 0
            and full[axis] == shape[axis]
            and sizes[axis] * level.total == (full[axis] * step)
        ):
            return None
        return _Sweep(operand, name, axis, shape[axis], Fraction(slope, step), offset)
    return None


def _parts(gemm: Gemm) -> tuple[tuple[Part, ...], int]:
    """The products of the whole GEMM taken as one tile, and its columns."""

    def length(axis: str) -> float:
        names, factor = gemm.axes[axis]
        return factor * prod(gemm.levels[n].total for n in names)

    columns = round(length("N"))
    if not isinstance(gemm, ConvDx):
        return (Part(1, round(length("M")), round(length("K"))),), columns
    found: dict[int, tuple[int, int]] = {}
    for u, v in product(gemm.row_phases(gemm.h), gemm.column_phases(gemm.w)):
        taps = u.taps * v.taps
        if taps:
            many, rows = found.get(taps, (0, 0))
            found[taps] = (many + 1, rows + gemm.n * u.count * v.count)
    return tuple(Part(m, rows, gemm.kg * t) for t, (m, rows) in sorted(found.items())), columns
