"""Rule about the modes of an array: a wave meets its operands in the form they were brought in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ccnn.targets.machine import Machine
from ccnn.targets.program import (
    Exec,
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
