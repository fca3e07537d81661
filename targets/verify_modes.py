"""Rules about modes: a wave meets its operands in the form they were brought in, sums stay in the
array that made them until they are drained, and PEs that take turns have two GEMMs to take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ccnn.targets.machine import Machine
from ccnn.targets.modes import Mode
from ccnn.targets.program import (
    Drain,
    Exec,
    ExecOS,
    Instruction,
    Item,
    Kernel,
    LoadH,
    LoadV,
    Loop,
    Program,
    Shift,
    Slot,
)
from ccnn.targets.verify_common import Finding, about, walk


@dataclass
class _Block:
    """What a stretch of code does to the modes of the buffers before the array."""

    open: list[tuple[Slot, Instruction]] = field(default_factory=list)
    """Read before anything in the stretch wrote there."""
    written: dict[str, str] = field(default_factory=dict)
    wrong: list[tuple[Instruction, str]] = field(default_factory=list)


def modes(program: Program, machine: Machine) -> Iterator[Finding]:
    """A stationary block is shifted, and a wave runs, in the mode in which the last load or shift
    above it, in the order on paper, brought its operands."""
    for kernel in program.kernels:
        if any(isinstance(i, Instruction) and i.mode for i, _ in walk(kernel.body, {})):
            yield from _kernel(kernel)


def turns(program: Program, machine: Machine) -> Iterator[Finding]:
    """Where PEs take turns, each ExecGEMM has its ExecOS right behind it on the array: the same
    rows, taken by both, past a block of the same size."""
    names = {mode.name for mode in machine.modes if mode.dataflow == "pair"}
    for kernel in program.kernels if names else ():
        for first, second in _waves(kernel.body):
            one, other = (i is not None and i.mode in names for i in (first, second))
            if second is not None and isinstance(second, ExecOS) and other:
                if not one or not _in_turns(first, second):
                    yield about("turns", kernel, second, "no ExecGEMM that it takes turns with")
            elif first is not None and one and not isinstance(first, ExecOS):
                yield about("turns", kernel, first, "no ExecOS that it takes turns with")


def _waves(body: tuple[Item, ...]) -> Iterator[tuple[Exec | None, Exec | None]]:
    """Waves that follow each other, and None where a loop begins or ends."""
    last: Exec | None = None
    for item in body:
        if isinstance(item, Loop):
            yield last, None
            last = None
            yield from _waves(item.body)
        elif isinstance(item, Exec):
            yield last, item
            last = item
    yield last, None


def _in_turns(first: Exec | None, second: Exec) -> bool:
    return (
        first is not None
        and not isinstance(first, ExecOS)
        and (first.mode, first.moving) == (second.mode, second.moving)
        and (first.m, first.k, first.n) == (second.k, second.m, second.n)
    )


def _kernel(kernel: Kernel) -> Iterator[Finding]:
    seen = set()
    for item, problem in _block(kernel.body).wrong:
        if id(item) not in seen:
            seen.add(id(item))
            yield about("modes", kernel, item, problem)


def _block(body: tuple[Item, ...]) -> _Block:
    """A loop's body once, and once more after itself."""
    done = _Block()
    for item in body:
        if isinstance(item, Loop):
            inner = _block(item.body)
            done.wrong += inner.wrong
            _reads(done, inner.open)
            if item.trip > 1:
                again = _Block(written=inner.written)
                _reads(again, inner.open)
                done.wrong += again.wrong
            done.written |= inner.written
        elif isinstance(item, LoadV | LoadH):
            done.written[item.dst.buffer] = item.mode
        elif isinstance(item, Shift):
            _reads(done, [(item.src, item)])
            done.written[item.dst.buffer] = item.mode
        elif isinstance(item, Exec):
            _reads(done, [(item.moving, item), (item.stationary, item)])
    return done


def _reads(block: _Block, reads: list[tuple[Slot, Instruction]]) -> None:
    for slot, item in reads:
        if slot.buffer not in block.written:
            block.open.append((slot, item))
        elif block.written[slot.buffer] != item.mode:
            was = block.written[slot.buffer] or "of the whole array"
            block.wrong.append(
                (item, f"'{slot.buffer}' was filled in mode {was}, not {item.mode or 'none'}")
            )


_Sums = dict[str, tuple[Exec | Drain, Exec | Drain]]
"""Accumulators: the first and the last instruction of a stretch of code that uses them."""


def sums(program: Program, machine: Machine) -> Iterator[Finding]:
    """What several arrays accumulate is split over them in one way, from the first wave to the
    drain: sums do not move from one array to another."""
    if machine.arrays == 1:
        return
    for kernel in program.kernels:
        seen = set()
        for item, problem in _uses(kernel.body, machine.mode_named)[1]:
            if id(item) not in seen:
                seen.add(id(item))
                yield about("sums", kernel, item, problem)


def _uses(
    body: tuple[Item, ...], modes: Mapping[str, Mode]
) -> tuple[_Sums, list[tuple[Instruction, str]]]:
    """First and last uses of accumulators in a body, and what is wrong between two neighbours."""
    ends: _Sums = {}
    wrong: list[tuple[Instruction, str]] = []
    for item in body:
        if isinstance(item, Exec | Drain):
            inner: _Sums = {item.acc.buffer: (item, item)}
        elif isinstance(item, Loop):
            inner, found = _uses(item.body, modes)
            wrong += found
            if item.trip > 1:
                wrong += [p for first, last in inner.values() if (p := _moves(last, first, modes))]
        else:
            continue
        for name, (first, last) in inner.items():
            if name in ends and (problem := _moves(ends[name][1], first, modes)):
                wrong.append(problem)
            ends[name] = (ends[name][0] if name in ends else first, last)
    return ends, wrong


def _moves(
    before: Exec | Drain, after: Exec | Drain, modes: Mapping[str, Mode]
) -> tuple[Instruction, str] | None:
    """Two uses that follow each other: only a wave after a drain may be split differently."""
    if isinstance(before, Drain) and isinstance(after, Exec):
        return None
    was, now = (modes[i.mode].split if i.mode in modes else None for i in (before, after))
    if None in (was, now) or was == now:
        return None
    return after, f"sums of '{after.acc.buffer}' lie split {was} over the arrays, not {now}"
