"""The iterations of a group, in the order in which samples pass, and what they fetch for the next
group.

What the group before left in the buffer passes first, what stays for the next group last; no
iteration works on samples of two kinds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from ccnn.compiler.codegen.emit import Segment, segments
from ccnn.compiler.codegen.hand_over import Passage
from ccnn.passes.graph import Group, Node


@dataclass(frozen=True)
class Run:
    """Equal iterations, one after the other, and whether they are the first or the last.

    `part` counts samples in the order in which they pass.
    """

    part: Segment
    fresh: bool
    final: bool
    finds: bool = False
    """Its samples are among those that the group before left in the buffer."""
    leaves: bool = False
    """They stay there for the next group."""


def runs_of(batch: int, samples: int, group: Group) -> tuple[Run, ...]:
    """Iterations; the first and the last stand alone when results gather over them."""
    found, kept = group.found_samples, batch - group.left_samples
    marks = sorted({0, found, kept, batch})
    parts = [
        replace(part, start=low + part.start)
        for low, high in pairwise(marks)
        for part in segments(high - low, samples)
    ]
    cut: list[Segment] = []
    for p in parts:
        ends = {0, 1, p.count} if not cut else {0, p.count}
        if p is parts[-1]:
            ends |= {p.count - 1}
        marks = sorted(e for e in ends if 0 <= e <= p.count)
        cut += [Segment(p.start + a * p.size, p.size, b - a) for a, b in pairwise(marks)]
    last = len(cut) - 1
    return tuple(
        Run(p, i == 0, i == last, p.start < found, p.start >= kept) for i, p in enumerate(cut)
    )


def with_left(
    fetches: Mapping[int, tuple[tuple[str, str], ...]],
    nodes: Sequence[Node],
    names: Mapping[str, str],
    root: Mapping[str, str],
    passage: Passage,
) -> Mapping[int, tuple[tuple[str, str], ...]]:
    """The fetches, and those of what is left for the next group and has no region of its own."""
    more = dict(fetches)
    made = {root[o] for n in nodes if n.op != "reshape" for o in n.outputs if o}
    code = [(k, n) for k, n in enumerate(nodes) if n.op != "reshape"]
    for name in (h.tensor for h in passage.left if h.tensor not in made):
        place, tensor = next((k, t) for k, n in code for t in n.inputs if t and root[t] == name)
        if tensor not in names:
            more[place] = (*more.get(place, ()), (tensor, nodes[place].name))
    return more
