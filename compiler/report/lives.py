"""From when to when each buffer of a kernel holds something, in nodes of that kernel.

The buffers of a group share addresses: one takes the place of another once that is done with.
A life is read off the program: from the first to the last node that touches the buffer in a pass
over the group's nodes, and the whole kernel where a later pass finds what an earlier one left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ccnn.compiler.report.detail import instructions, operands
from ccnn.targets.program import Instruction, Kernel, Load, Store


@dataclass
class _Pass:
    """What one pass touches: buffer to first and last place; and what it finds full."""

    touched: dict[str, list[int]] = field(default_factory=dict)
    full: set[str] = field(default_factory=set)

    def see(self, item: Instruction, place: int) -> None:
        """An instruction at a place."""
        reads, writes = operands(item)
        self.full |= reads - self.touched.keys()
        for name in reads | writes:
            span = self.touched.setdefault(name, [place, place])
            span[:] = min(span[0], place), max(span[1], place)


def lives(kernel: Kernel, nodes: Sequence[int]) -> dict[str, tuple[int, int]]:
    """Buffer name to the first and the last place in `nodes`, the kernel's in ascending order."""
    found: dict[str, tuple[int, int]] = {}
    for number, one in enumerate(_passes(kernel, nodes)):
        for name, (first, last) in one.touched.items():
            begin, end = found.get(name, (first, last))
            if number and name in one.full:
                begin, end = 0, len(nodes) - 1
            found[name] = min(begin, first), max(end, last)
    return found


def _passes(kernel: Kernel, nodes: Sequence[int]) -> list[_Pass]:
    """Each pass over the nodes, loops walked once. Loads run ahead of their node, and stores may
    stand behind it: neither begins a pass."""
    place = {node: n for n, node in enumerate(nodes)}
    found = [_Pass(), _Pass()]
    before = 0
    for item in instructions(kernel.body):
        here = place[item.node]
        if isinstance(item, Load):
            found[-1 if here < before else -2].see(item, here)
            continue
        if not isinstance(item, Store):
            if here < before:
                found.append(_Pass())
            before = here
        found[-2].see(item, here)
    return found
