"""Rules about one instruction at a time: its form, its sizes, the addresses it reaches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod

from ccnn.targets.machine import Machine
from ccnn.targets.program import (
    DTYPE_BYTES,
    ENGINES,
    SPACES,
    Affine,
    Buffer,
    Dim,
    Drain,
    Exec,
    ExecOS,
    Extent,
    Instruction,
    Kernel,
    Load,
    LoadH,
    LoadV,
    Loop,
    Map,
    Matrix,
    Placed,
    Program,
    Reduce,
    Shift,
    Slot,
    Store,
    Sync,
    View,
)
from ccnn.targets.vector import check_code
from ccnn.targets.verify_common import (
    Finding,
    Operand,
    Trips,
    about,
    accesses,
    choices,
    highest,
    instructions,
    least,
    lowest,
    most,
    reach,
    walk,
)


def header(program: Program, machine: Machine) -> Iterator[Finding]:
    """Names are unique, dtypes known, and sizes, depths and counts in their range."""
    words = [("tensor", [t.name for t in program.tensors])]
    for kernel in program.kernels:
        words.append((f"buffer of kernel '{kernel.name}'", [b.name for b in kernel.buffers]))
        words.append((f"token of kernel '{kernel.name}'", [t.name for t in kernel.tokens]))
    for what, names in words:
        for name in sorted({n for n in names if names.count(n) > 1} if len(names) < 200 else ()):
            yield Finding("header", "", f"{what} '{name}' is declared twice")
    if len({t.name for t in program.tensors}) != len(program.tensors):
        yield Finding("header", "", "a tensor name is declared twice")
    for t in program.tensors:
        if t.dtype not in DTYPE_BYTES or t.address < 0 or min(t.shape, default=1) < 0:
            yield Finding("header", "", f"tensor '{t.name}': dtype, shape or address is impossible")
    for what, dtype in (("dtype", program.dtype), ("accum", program.accum)):
        if dtype not in DTYPE_BYTES:
            yield Finding("header", "", f"{what} '{dtype}' is none of {', '.join(DTYPE_BYTES)}")
    for kernel in program.kernels:
        for b in kernel.buffers:
            if b.space not in SPACES or b.dtype not in DTYPE_BYTES:
                message = f"buffer '{b.name}': unknown space '{b.space}' or dtype '{b.dtype}'"
                yield Finding("header", kernel.name, message)
            elif b.size < 1 or b.depth < 1 or b.address < 0:
                message = f"buffer '{b.name}': size and depth must be at least 1, address 0"
                yield Finding("header", kernel.name, message)
        for token in kernel.tokens:
            if token.initial < 0:
                yield Finding("header", kernel.name, f"token '{token.name}' starts below zero")


def structure(program: Program, machine: Machine) -> Iterator[Finding]:
    """Every name is declared, every variable in scope, every operand in the space its opcode
    wants, ranks agree, and code finds its operands."""
    tensors = {t.name: t for t in program.tensors}
    for kernel in program.kernels:
        buffers = {b.name: b for b in kernel.buffers}
        tokens = {t.name for t in kernel.tokens}
        for item, trips in walk(kernel.body, {}):
            problem = None
            if isinstance(item, Loop):
                if item.var in trips:
                    problem = f"the variable {item.var} belongs to a loop around this one"
                elif item.trip < 1:
                    problem = f"a loop of {item.trip} iterations; leave it out"
            elif isinstance(item, Sync):
                if item.token not in tokens:
                    problem = f"token '{item.token}' is not declared"
                elif item.engine not in ENGINES or item.kind not in ("wait", "signal", "release"):
                    problem = "no such engine or kind of sync"
            elif not 0 <= item.node < len(program.nodes):
                problem = f"node {item.node} does not exist"
            else:
                problem = _names(item, buffers, trips) or _form(item, tensors)
            if problem is not None:
                yield about("structure", kernel, item, problem)


_SPACES: dict[type[Instruction], dict[str, str]] = {
    LoadV: {"dst": "lbuf_v", "src": "gbuf"},
    LoadH: {"dst": "lbuf_h", "src": "gbuf"},
    Shift: {"dst": "pe", "src": "lbuf_v"},
    Exec: {"acc": "acc", "moving": "lbuf_h", "stationary": "pe"},
    ExecOS: {"acc": "acc", "moving": "lbuf_h", "stationary": "lbuf_v"},
    Drain: {"dst": "gbuf", "acc": "acc", "bias": "gbuf"},
}
"""Space of each operand; those not named are in the gbuf."""


def _affines(operand: Operand) -> Iterator[Affine]:
    yield operand.slot
    if isinstance(operand, Slot):
        return
    yield operand.offset
    if isinstance(operand, View):
        extents = [e for e, _ in operand.dims]
    else:
        yield operand.row_start
        yield operand.col_start
        extents = [e for e, _ in (*operand.rows, *operand.cols)]
        extents += [operand.row_count, operand.col_count]
    yield from (e.limit for e in extents if e.limit is not None)


def _scalars(i: Instruction) -> Iterator[Affine]:
    """The affine values of an instruction that belong to no operand."""
    for value in vars(i).values():
        if isinstance(value, Affine):
            yield value
        elif isinstance(value, Extent) and value.limit is not None:
            yield value.limit
        elif isinstance(value, tuple):
            yield from (v for v in value if isinstance(v, Affine))


def _names(i: Instruction, buffers: dict[str, Buffer], trips: Trips) -> str | None:
    spaces = {id(getattr(i, f)): s for f, s in _SPACES.get(type(i), {}).items()}
    for access in accesses(i):
        buffer = buffers.get(access.operand.buffer)
        if buffer is None:
            return f"buffer '{access.operand.buffer}' is not declared"
        wanted = spaces.get(id(access.operand), "gbuf")
        if buffer.space != wanted:
            return f"buffer '{buffer.name}' lies in {buffer.space}; this operand wants {wanted}"
        for affine in _affines(access.operand):
            for var, _ in affine.terms:
                if var not in trips:
                    return f"the variable {var} belongs to no loop around this line"
    for affine in _scalars(i):
        for var, _ in affine.terms:
            if var not in trips:
                return f"the variable {var} belongs to no loop around this line"
    return None


def _form(i: Instruction, tensors: dict[str, Placed]) -> str | None:
    if isinstance(i, Load | Store):
        tensor = tensors.get(i.tensor)
        view = i.dst if isinstance(i, Load) else i.src
        if tensor is None:
            return f"tensor '{i.tensor}' is not declared"
        ranks = {len(tensor.shape), len(view.dims), len(i.start), len(i.step)}
        if len(ranks) != 1:
            return f"tensor '{i.tensor}' has rank {len(tensor.shape)}, the operands do not"
        if 0 in i.step:
            return "a step of 0 would move one element many times"
    if isinstance(i, Map | Reduce):
        return _vector_form(i)
    return None


def _vector_form(i: Map | Reduce) -> str | None:
    space = (i.dst if isinstance(i, Map) or not i.srcs else i.srcs[0]).dims
    for src in (i.dst, *i.srcs):
        if len(src.dims) != len(space):
            return "the operands have different ranks"
    for src in i.srcs:
        if any(e != f and e != Extent(1) for (e, _), (f, _) in zip(src.dims, space, strict=True)):
            return "the operands have different sizes; repeat an element with stride 0"
    if isinstance(i, Reduce):
        if i.kind not in ("sum", "max", "min", "argmax"):
            return f"'{i.kind}' is no reduction; use sum, max, min or argmax"
        if any(not 0 <= a < len(space) for a in i.axes) or len(set(i.axes)) != len(i.axes):
            return f"axes {i.axes} are not axes of {len(space)} dims"
        if any(i.dst.dims[a][1] != 0 and i.dst.dims[a][0] != Extent(1) for a in i.axes):
            return "the result must have stride 0 on the reduced axes"
        if not i.srcs:
            return "a reduction needs a source"
    return check_code(i.code, len(i.srcs), len(i.scalars))


def capacity(program: Program, machine: Machine) -> Iterator[Finding]:
    """The buffers of a kernel fit their memories.

    Buffers in the gbuf may share bytes; the rules of order then treat them as one.
    """
    m = machine
    limits = {
        "lbuf_v": (m.lbuf_v_slots, m.arrays * m.rows * m.cols),
        "lbuf_h": (m.lbuf_h_slots, m.arrays * m.lbuf_h_rows * m.rows),
        "pe": (m.weight_buffers, m.arrays * m.rows * m.cols),
        "acc": (m.acc_slots, m.arrays * m.acc_rows * m.cols),
    }
    for kernel in program.kernels:
        for space, (slots, size) in limits.items():
            mine = [b for b in kernel.buffers if b.space == space]
            if space == "acc":
                # an accumulator's rows may be dealt out to more slots
                words = sum(b.depth * b.size for b in mine)
                if words > slots * size:
                    message = f"accumulators of {words} words; {m.name} has {slots * size}"
                    yield Finding("capacity", kernel.name, message)
            elif sum(b.depth for b in mine) > slots:
                message = f"{sum(b.depth for b in mine)} slots of {space}; {m.name} has {slots}"
                yield Finding("capacity", kernel.name, message)
            for b in mine:
                if b.size > size:
                    message = f"buffer '{b.name}' has slots of {b.size} words; {space} has {size}"
                    yield Finding("capacity", kernel.name, message)
        yield from _gbuf(kernel, m)


def _gbuf(kernel: Kernel, machine: Machine) -> Iterator[Finding]:
    end, last = 0, ""
    mine = [b for b in kernel.buffers if b.space == "gbuf"]
    for b in sorted(mine, key=lambda b: (b.address, b.name)):
        width = DTYPE_BYTES[b.dtype]
        if b.address % width:
            message = f"buffer '{b.name}' at {b.address} is not aligned to its {width} bytes"
            yield Finding("capacity", kernel.name, message)
        if b.address + b.size * width * b.depth > end:
            end, last = b.address + b.size * width * b.depth, b.name
    if end > machine.gbuf_bytes:
        message = f"buffer '{last}' ends at {end}; the gbuf has {machine.gbuf_bytes} bytes"
        yield Finding("capacity", kernel.name, message)


def bounds(program: Program, machine: Machine) -> Iterator[Finding]:
    """In every iteration each operand stays inside its slot, each window inside its matrix, each
    GEMM inside the array, and no size falls below 1."""
    for kernel in program.kernels:
        buffers = {b.name: b for b in kernel.buffers}
        for item, trips in instructions(kernel):
            problem = _array_size(item, machine, trips) or _sums(item, machine, buffers, trips)
            for access in accesses(item):
                operand = access.operand
                size = buffers[operand.buffer].size
                if problem is None and isinstance(operand, View):
                    problem = _view(operand, size, trips)
                elif problem is None and isinstance(operand, Matrix):
                    bias = isinstance(item, Drain) and operand is item.bias
                    problem = _matrix(operand, size, trips, whole=not bias)
            if problem is not None:
                yield about("bounds", kernel, item, problem)


def _view(v: View, size: int, trips: Trips) -> str | None:
    for extent, _ in v.dims:
        if least(extent, trips) < 1:
            return f"a dim of '{v.buffer}' shrinks to {least(extent, trips)} elements"
    bottom, top = reach(v.offset, v.dims, trips)
    if bottom < 0 or top >= size:
        return f"'{v.buffer}' is used from {bottom} to {top}; a slot has 0 to {size - 1}"
    return None


def _matrix(m: Matrix, size: int, trips: Trips, whole: bool) -> str | None:
    for extent in (m.row_count, m.col_count, *(e for e, _ in (*m.rows, *m.cols))):
        if least(extent, trips) < 1:
            return f"a size of '{m.buffer}' shrinks to {least(extent, trips)}"
    sides = [("column", m.col_start, m.col_count, m.cols)]
    if whole:
        sides.append(("row", m.row_start, m.row_count, m.rows))
    for what, start, count, dims in sides:
        if lowest(start, trips) < 0 or not _inside(start, count, dims, trips):
            return f"the window of '{m.buffer}' leaves the matrix at some {what}"
    dims = (*m.rows, *m.cols) if whole else m.cols
    bottom, top = reach(m.offset, dims, trips)
    if bottom < 0 or top >= size:
        start, dims = m.offset, ()
        for _, first, count, side in sides:
            skipped, used = _used(first, count, side, trips)
            start, dims = start + skipped, (*dims, *used)
        bottom, top = reach(start, dims, trips)
    if bottom < 0 or top >= size:
        return f"'{m.buffer}' is used from {bottom} to {top}; a slot has 0 to {size - 1}"
    return None


def _used(
    start: Affine, count: Extent, dims: tuple[Dim, ...], trips: Trips
) -> tuple[Affine, tuple[Dim, ...]]:
    """The part of one side of a matrix that a window touches: what it skips, and its dims.

    Exact for one dim; of several, the outermost is cut and only when the window stands still.
    """
    dims = tuple([d for d in dims if d[0] != Extent(1)])
    if not dims:
        return Affine(), ()
    (_, stride), inner = dims[0], dims[1:]
    if not inner:
        return start * stride, ((count, stride),)
    if start.terms or any(e.limit is not None for e, _ in inner):
        return Affine(), dims
    volume = prod(e.size for e, _ in inner)
    first, last = start.const // volume, (start.const + most(count, trips) - 1) // volume
    return Affine(first * stride), ((Extent(last - first + 1), stride), *inner)


def _inside(start: Affine, count: Extent, dims: tuple[Dim, ...], trips: Trips) -> bool:
    """start + count <= rows of the matrix, in every iteration."""
    limited = [e for e, _ in dims if e.limit is not None]
    fixed = prod(e.size for e, _ in dims if e.limit is None)
    totals = [Affine(fixed * prod(least(e, trips) for e in limited))]
    if len(limited) == 1:
        totals = [c * fixed for c in choices(limited[0])]
    ends = [start + c for c in choices(count)]
    return all(any(highest(end - t, trips) <= 0 for end in ends) for t in totals)


def _sums(
    i: Instruction, machine: Machine, buffers: Mapping[str, Buffer], trips: Trips
) -> str | None:
    """Rows of results against those of a slot of their accumulators."""
    if not isinstance(i, Exec | Drain):
        return None
    held = i.m if isinstance(i, Exec) else i.dst.row_count
    down = machine.mode_named[i.mode].split[0]
    rows = buffers[i.acc.buffer].size // (machine.arrays * machine.cols) * down
    if most(held, trips) > rows:
        return f"m reaches {most(held, trips)}; a slot of '{i.acc.buffer}' has {rows} rows"
    return None


_MODED = (LoadV, LoadH, Shift, Exec, ExecOS, Drain)
_NEEDS = {
    Shift: (("ws", "pair"), "not weight-stationary, and ShiftV is"),
    Exec: (("ws", "pair"), "not weight-stationary, and ExecGEMM is"),
    ExecOS: (("os", "pair"), "not output-stationary, and ExecOS is"),
}
"""Dataflows of the modes an instruction may have, and what is wrong with another."""


def _array_size(i: Instruction, machine: Machine, trips: Trips) -> str | None:
    """Sizes against the array in its mode: (name, extent, limit)."""
    if i.mode and (i.mode not in machine.mode_named or not isinstance(i, _MODED)):
        return f"mode '{i.mode}' is none of this instruction on {machine.name}"
    m, mode = machine, machine.mode_named[i.mode]
    flows, wrong = _NEEDS.get(type(i), ((mode.dataflow,), ""))
    if mode.dataflow not in flows:
        return f"mode '{i.mode}' is {wrong}"
    down, _, deep = mode.split
    flowing = deep if mode.dataflow == "os" else down
    held = mode.rows if mode.dataflow == "ws" else m.rows * deep
    sizes: list[tuple[str, Extent, int]] = []
    match i:
        case LoadV():
            sizes = [("k", i.src.row_count, held), ("n", i.src.col_count, mode.cols)]
        case LoadH():
            sizes = [("m", i.src.row_count, m.lbuf_h_rows * flowing)]
            sizes.append(("k", i.src.col_count, mode.rows))
        case Shift():
            sizes = [("k", i.k, mode.rows), ("n", i.n, mode.cols)]
        case ExecOS():
            rows, steps = min(m.acc_rows * down, mode.rows), min(m.rows, m.lbuf_h_rows) * deep
            sizes = [("m", i.m, rows), ("k", i.k, steps), ("n", i.n, mode.cols)]
        case Exec():
            rows = min(m.acc_rows, m.lbuf_h_rows) * down
            sizes = [("m", i.m, rows), ("k", i.k, mode.rows), ("n", i.n, mode.cols)]
        case Drain():
            sizes = [("m", i.dst.row_count, m.acc_rows * down), ("n", i.dst.col_count, mode.cols)]
    for name, extent, limit in sizes:
        if most(extent, trips) > limit:
            return f"{name} reaches {most(extent, trips)}; {m.name} takes {limit}"
        if least(extent, trips) < 1:
            return f"{name} falls to {least(extent, trips)}"
    return None
