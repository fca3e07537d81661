"""Operands turned into closures that give numpy arrays: views of GBUF slots and matrix windows.

Everything an instruction names is resolved once; what is left for each execution is a few
additions, a look-up in a small cache and, on a miss, one array header.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from ccnn.targets.program import DTYPE_BYTES, ZERO, Dim, Extent, Instruction, Matrix, Slot, View
from ccnn.targets.simulator.affine import (
    Getter,
    Scope,
    affine_range,
    compile_affine,
    compile_extent,
    compile_many,
    fixed_extent,
)
from ccnn.targets.simulator.errors import SimulationError
from ccnn.targets.simulator.memory import Memory, Storage, narrow, raw_dtype, widen
from ccnn.targets.simulator.windows import box, check_window, gather_index

Array = Callable[[], np.ndarray]
_CACHED = 512
"""Array headers kept by one operand; offsets beyond that many are rebuilt."""


@dataclass
class Context:
    """What closures of one kernel share; `step` counts the training steps run before."""

    memory: Memory
    storages: Mapping[str, Storage]
    accum: np.dtype
    kernel: str
    nodes: tuple[str, ...]
    env: list[int] = field(default_factory=list)
    step: int = 0

    def storage(self, name: str) -> Storage:
        """The buffer called `name`; raises SimulationError when the kernel has none."""
        if name not in self.storages:
            raise SimulationError(f"kernel {self.kernel} has no buffer '{name}'")
        return self.storages[name]

    def gbuf(self, name: str) -> Storage:
        """The GBUF buffer called `name`; raises SimulationError when it lies elsewhere."""
        found = self.storage(name)
        if found.buffer.space != "gbuf":
            raise SimulationError(
                f"kernel {self.kernel}: buffer '{name}' is in {found.buffer.space}, not in gbuf"
            )
        return found

    def place(self, i: Instruction) -> str:
        """Kernel, node and opcode, for messages."""
        node = self.nodes[i.node] if 0 <= i.node < len(self.nodes) else f"#{i.node}"
        return f"kernel {self.kernel}, node {node}, {i.opcode}"


def compile_sizes(
    dims: tuple[Dim, ...], scope: Scope, env: list[int]
) -> Callable[[], tuple[int, ...]]:
    """A closure that gives the number of elements of each dim."""
    fixed = tuple([n for e, _ in dims if (n := fixed_extent(e, scope)) is not None])
    if len(fixed) == len(dims):
        return lambda: fixed
    return compile_many([compile_extent(e, scope, env) for e, _ in dims])


def compile_view(ctx: Context, view: View, scope: Scope, what: str, compact: bool) -> Array:
    """A closure that gives the raw elements of a view, one array axis for each dim.

    With `compact`, dims of stride 0 have one element, ready for numpy's broadcasting.
    """
    store = ctx.gbuf(view.buffer)
    raw = raw_dtype(store.buffer.dtype)
    dims = view.dims
    if compact:
        dims = tuple((type(e)(1), 0) if s == 0 else (e, s) for e, s in dims)
    strides = tuple(s * raw.itemsize for _, s in dims)
    slots, depth = store.slots, len(store.slots)
    slot = compile_affine(view.slot, scope, ctx.env)
    offset = compile_affine(view.offset, scope, ctx.env)
    sizes = compile_sizes(dims, scope, ctx.env)
    cache: dict[tuple, np.ndarray] = {}

    def build(key: tuple) -> np.ndarray:
        if len(cache) >= _CACHED:
            cache.clear()
        number, start, shape = key
        try:
            made = np.ndarray(shape, raw, slots[number], start * raw.itemsize, strides)
        except (ValueError, TypeError) as error:
            raise SimulationError(
                f"{what}: elements {shape} from offset {start} with byte strides {strides} "
                f"reach outside slot {number} of buffer {view.buffer} "
                f"({store.buffer.size} elements)"
            ) from error
        cache[key] = made
        return made

    def get() -> np.ndarray:
        key = (slot() % depth, offset(), sizes())
        found = cache.get(key)
        return build(key) if found is None else found

    return get


class Patch(NamedTuple):
    """Where a matrix window lies: `array` is its box, or the flat elements that `picks` names."""

    array: np.ndarray
    picks: np.ndarray | None
    shape: tuple[int, ...]

    def read(self) -> np.ndarray:
        """The raw elements, as a matrix."""
        if self.picks is None:
            return self.array.reshape(self.shape)
        return self.array.take(self.picks)

    def write(self, raw: np.ndarray) -> None:
        """Replace the elements by those of a matrix."""
        if self.picks is None:
            self.array[...] = raw.reshape(self.array.shape)
        else:
            self.array[self.picks] = raw


def compile_patch(
    ctx: Context, m: Matrix, scope: Scope, what: str, one_row: bool = False
) -> Callable[[], Patch]:
    """A closure that finds a matrix window; with `one_row` the row window is row 0."""
    if one_row:
        m = replace(m, row_start=ZERO, row_count=Extent(1))
    if _is_plain(m, scope):
        return _plain_patch(ctx, m, scope, what)
    store, env = ctx.gbuf(m.buffer), ctx.env
    raw = raw_dtype(store.buffer.dtype)
    slots, depth = store.slots, len(store.slots)
    row_strides, col_strides = [s for _, s in m.rows], [s for _, s in m.cols]
    row_sizes = compile_sizes(m.rows, scope, env)
    col_sizes = compile_sizes(m.cols, scope, env)
    slot, offset = (compile_affine(a, scope, env) for a in (m.slot, m.offset))
    row_start, col_start = (compile_affine(a, scope, env) for a in (m.row_start, m.col_start))
    row_count, col_count = (compile_extent(e, scope, env) for e in (m.row_count, m.col_count))
    window_of = compile_many([offset, row_start, row_count, col_start, col_count])
    cache: dict[tuple, Patch] = {}

    def build(key: tuple) -> Patch:
        number, (start, rs, rc, cs, cc), rn, cn = key
        rows = tuple(zip(rn, row_strides, strict=True))
        cols = tuple(zip(cn, col_strides, strict=True))
        check_window(rows, rs, rc, f"{what}: rows")
        check_window(cols, cs, cc, f"{what}: columns")
        a, b = box(rows, rs, rc), box(cols, cs, cc)
        if a is None or b is None:
            lowest, highest, picks = gather_index(rows, rs, rc, cols, cs, cc)
            flat = slots[number].view(raw)
            if start + lowest < 0 or start + highest >= flat.size:
                raise SimulationError(f"{what}: {_outside(store, number, m)}")
            # not cached: the index arrays are large, and shared by gather_index
            return Patch(flat[start + lowest :], picks, (rc, cc))
        shape = tuple(n for n, _ in a[1] + b[1])
        strides = tuple(s * raw.itemsize for _, s in a[1] + b[1])
        first = (start + a[0] + b[0]) * raw.itemsize
        try:
            array = np.ndarray(shape, raw, slots[number], first, strides)
        except (ValueError, TypeError) as error:
            raise SimulationError(f"{what}: {_outside(store, number, m)}") from error
        if len(cache) >= _CACHED:
            cache.clear()
        cache[key] = Patch(array, None, (rc, cc))
        return cache[key]

    def get() -> Patch:
        key = (slot() % depth, window_of(), row_sizes(), col_sizes())
        found = cache.get(key)
        return build(key) if found is None else found

    return get


def _is_plain(m: Matrix, scope: Scope) -> bool:
    """Whether rows and columns are one dim each and the window never leaves them."""
    if len(m.rows) != 1 or len(m.cols) != 1:
        return False
    for (extent, _), start, count in (
        (m.rows[0], m.row_start, m.row_count),
        (m.cols[0], m.col_start, m.col_count),
    ):
        size = fixed_extent(extent, scope)
        if size is None or affine_range(start, scope)[0] < 0:
            return False
        # the last element is start + size - 1, or start + limit - 1 where that is smaller
        ends = [start + count.size] + ([] if count.limit is None else [start + count.limit])
        if min(affine_range(end, scope)[1] for end in ends) > size:
            return False
    return True


def _plain_patch(ctx: Context, m: Matrix, scope: Scope, what: str) -> Callable[[], Patch]:
    """compile_patch() for a window of a plain strided matrix: one address, no cache."""
    store = ctx.gbuf(m.buffer)
    raw = raw_dtype(store.buffer.dtype)
    slots, depth, width = store.slots, len(store.slots), raw.itemsize
    down, right = m.rows[0][1], m.cols[0][1]
    first = (m.offset + m.row_start * down + m.col_start * right) * width
    address = compile_affine(first, scope, ctx.env)
    slot = compile_affine(m.slot, scope, ctx.env)
    shape_of = compile_many(
        [compile_extent(m.row_count, scope, ctx.env), compile_extent(m.col_count, scope, ctx.env)]
    )
    strides = (down * width, right * width)

    def get() -> Patch:
        number, shape = slot() % depth, shape_of()
        try:
            array = np.ndarray(shape, raw, slots[number], address(), strides)
        except (ValueError, TypeError) as error:
            raise SimulationError(f"{what}: {_outside(store, number, m)}") from error
        return Patch(array, None, shape)

    return get


def _outside(store: Storage, number: int, m: Matrix) -> str:
    return (
        f"the window reaches outside slot {number} of buffer {m.buffer} "
        f"({store.buffer.size} elements)"
    )


def compile_tile(ctx: Context, slot: Slot, space: str, scope: Scope) -> tuple[Storage, Getter]:
    """The storage of a matrix buffer and a closure that gives the slot number."""
    store = ctx.storage(slot.buffer)
    if store.buffer.space != space:
        raise SimulationError(
            f"kernel {ctx.kernel}: buffer '{slot.buffer}' is in {store.buffer.space}, not {space}"
        )
    number, depth = compile_affine(slot.slot, scope, ctx.env), store.buffer.depth
    if not slot.slot.terms:
        fixed = slot.slot.const % depth
        return store, lambda: fixed
    return store, lambda: number() % depth


def read_tile(tile: np.ndarray | None, m: int, n: int, what: str, buffer: str) -> np.ndarray:
    """The upper left m x n of a slot; raises SimulationError when it was never written."""
    if tile is not None and tile.shape == (m, n):
        return tile
    if tile is None or tile.shape[0] < m or tile.shape[1] < n:
        holds = "nothing" if tile is None else f"{tile.shape[0]} x {tile.shape[1]}"
        raise SimulationError(f"{what} reads {m} x {n} of a slot of {buffer} that holds {holds}")
    return tile[:m, :n]


def round_to(raw: np.ndarray, source: str, target: str, accum: np.dtype) -> np.ndarray:
    """Raw elements of one type as numbers of the accumulation type, rounded through another."""
    values = widen(raw, source, accum)
    if source == target or DTYPE_BYTES[target] >= DTYPE_BYTES[source]:
        return values
    return widen(narrow(values, target), target, accum)
