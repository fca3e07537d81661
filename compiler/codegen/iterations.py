"""The iterations of a group, in the order in which samples pass, and what they fetch for the next
group.

What the group before left in the buffer passes first, what stays for the next group last; no
iteration works on samples of two kinds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from ccnn.compiler.codegen.emit import Segment, segments
from ccnn.compiler.codegen.hand_over import NO_PASSAGE, Passage
from ccnn.passes.graph import Group, Node


@dataclass(frozen=True)
class Run:
    """Equal iterations, one after the other, and whether they are the first or the last.

    `part` counts samples in the order in which they pass; it comes `rounds` times, each time for
    the samples behind those of the time before.
    """

    part: Segment
    fresh: bool
    final: bool
    finds: bool = False
    """Its samples are among those that the group before left in the buffer."""
    leaves: bool = False
    """They stay there for the next group."""
    rounds: int = 1

    @property
    def count(self) -> int:
        """How many iterations."""
        return self.rounds * self.part.count


def runs_of(
    batch: int, samples: int, group: Group, passage: Passage = NO_PASSAGE
) -> tuple[Run, ...]:
    """Iterations; the first and the last stand alone when results gather over them.

    Those that use slots of what is handed over go slot by slot.
    """
    found, kept = group.found_samples, batch - group.left_samples
    runs: list[Run] = []
    for low, high in pairwise(sorted({0, found, kept, batch})):
        slots = {(h.slot, 0) for h in passage.found if low < found}
        slots |= {(h.slot, kept) for h in passage.left if low >= kept}
        runs += [
            Run(part, False, False, low < found, low >= kept, rounds)
            for part, rounds in _pieces(low, high, samples, sorted(slots))
        ]
    return tuple(_ends_apart(runs))


def _pieces(
    low: int, high: int, samples: int, slots: Sequence[tuple[int, int]]
) -> Iterator[tuple[Segment, int]]:
    """The iterations of a span and how often each piece comes: in one slot of every kind, or
    once in each slot of the smallest kind.  Slots are given by size and by where one begins."""
    if not slots:
        yield from ((replace(p, start=low + p.start), 1) for p in segments(high - low, samples))
        return
    (small, origin), *others = slots
    for start, end in pairwise(_cut(low, high, others)):
        if (start - origin) % small == 0 and (end - start) % small == 0:
            yield Segment(start, samples, small // samples), (end - start) // small
            continue
        for a, b in pairwise(_cut(start, end, slots[:1])):
            yield Segment(a, samples, (b - a) // samples), 1


def _cut(low: int, high: int, slots: Sequence[tuple[int, int]]) -> list[int]:
    """The ends of a span and where slots begin in it."""
    return [
        low,
        *(k for k in range(low + 1, high) if any((k - o) % n == 0 for n, o in slots)),
        high,
    ]


def _ends_apart(runs: Sequence[Run]) -> Iterator[Run]:
    """The runs, the first and the last iteration each as one of its own."""
    pieces = [p for k, r in enumerate(runs) for p in _apart(r, k == 0, k == len(runs) - 1)]
    for k, piece in enumerate(pieces):
        yield replace(piece, fresh=k == 0, final=k == len(pieces) - 1)


def _apart(run: Run, first: bool, last: bool) -> Iterator[Run]:
    """A run, with its first iteration apart, or its last, from the others of their round."""
    part, rounds = run.part, run.rounds
    marks = {0, part.count}
    if rounds == 1:
        marks |= ({1} if first else set()) | ({part.count - 1} if last else set())
        for a, b in pairwise(sorted(marks)):
            yield replace(run, part=Segment(part.start + a * part.size, part.size, b - a))
        return
    step = part.size * part.count
    middle = rounds - first - last
    if first:
        yield from _apart(replace(run, rounds=1), True, False)
    if middle:
        start = part.start + first * step
        yield replace(run, part=replace(part, start=start), rounds=middle)
    if last:
        start = part.start + (rounds - 1) * step
        yield from _apart(replace(run, part=replace(part, start=start), rounds=1), False, True)


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
