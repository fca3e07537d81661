"""Rules about what one kernel leaves in the gbuf for another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

from ccnn.targets.machine import Machine
from ccnn.targets.program import DTYPE_BYTES, Affine, Buffer, Kernel, Matrix, Program, View
from ccnn.targets.verify_common import Finding, Operand, Trips, accesses, instructions


def left_behind(kernels: Sequence[Kernel]) -> list[frozenset[str]]:
    """For each kernel its buffers that the next kernel to have one of that name finds as it was."""
    wanted: set[str] = set()
    out: list[frozenset[str]] = []
    for kernel in reversed(kernels):
        names = {b.name for b in kernel.buffers}
        out.append(frozenset(wanted & names))
        wanted = (wanted - names) | {b.name for b in kernel.buffers if b.found}
    return out[::-1]


def found(program: Program, machine: Machine) -> Iterator[Finding]:
    """A buffer that is found is in the gbuf, an earlier kernel had it at the same place and wrote
    it, and no kernel in between had a buffer that shares bytes with it.

    What is written is counted in elements, over all iterations: the rule can miss a gap where two
    writes overlap; it never complains about a buffer that is whole.
    """
    there: dict[str, tuple[Buffer, int]] = {}
    for kernel, leaves in zip(program.kernels, left_behind(program.kernels), strict=True):
        for b in kernel.buffers:
            if b.found:
                message = _lack(b, *there.get(b.name, (None, 0)))
                if message:
                    yield Finding("found", kernel.name, f"buffer '{b.name}' {message}")
        mine = [b for b in kernel.buffers if b.space == "gbuf"]
        names = {b.name for b in mine}
        there = {
            name: (b, elements)
            for name, (b, elements) in there.items()
            if name in names or not any(_share(b, other) for other in mine)
        }
        written = _written(kernel, leaves)
        for b in mine:
            if b.name in leaves:
                before = there[b.name][1] if b.found and b.name in there else 0
                there[b.name] = b, before + written[b.name]


def _lack(b: Buffer, before: Buffer | None, elements: int) -> str:
    if b.space != "gbuf":
        return f"lies in {b.space}, where nothing outlasts a kernel"
    if before is None:
        return "is found, and no kernel before left it there"
    if _place(before) != _place(b):
        return "is not where, or not what, the kernel before left"
    whole = b.size * b.depth
    return f"is found with {elements} of its {whole} elements written" if elements < whole else ""


def _place(b: Buffer) -> tuple[str, int, int, int]:
    return b.dtype, b.size, b.depth, b.address


def _share(a: Buffer, b: Buffer) -> bool:
    ends = [x.address + x.size * x.depth * DTYPE_BYTES[x.dtype] for x in (a, b)]
    return a.address < ends[1] and b.address < ends[0]


def _written(kernel: Kernel, names: frozenset[str]) -> dict[str, int]:
    """Elements of these buffers that a kernel writes, counted instruction by instruction."""
    count = dict.fromkeys(names, 0)
    for item, trips in instructions(kernel) if names else ():
        for access in accesses(item):
            if access.writes and access.operand.buffer in names:
                count[access.operand.buffer] += _volume(access.operand, trips)
    return count


def _volume(operand: Operand, trips: Trips) -> int:
    """Elements written over all iterations of the loops that move the operand."""
    moving: list[Affine] = [operand.slot]
    if isinstance(operand, View):
        moving.append(operand.offset)
        elements = prod(e.size for e, stride in operand.dims if stride)
    elif isinstance(operand, Matrix):
        moving += [operand.offset, operand.row_start, operand.col_start]
        elements = operand.row_count.size * operand.col_count.size
    else:
        return 0
    names = {v for a in moving for v, _ in a.terms}
    return elements * prod(trips[v] for v in names)
