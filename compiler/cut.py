"""How one GEMM is cut for the array, as a value that prints and reads back.

result[M, N] = a[M, K] @ b[K, N].  A *flow* says which of the three dimensions streams through the
array (its length), which lies across its columns (width) and which down its rows (depth).  Each
of the machine's arrays gets an equal *part*.  A part's width is cut into *strips*, each strip's
depth into *blocks* with a mode of their own, and its length into *waves*.  As text:

    gemm 1568 x 512 x 4608 on flexsa-1g1f
    flow b stays
    groups 1 x 1 x 1
    units 1 x 1 x 1
    waves 512 * 3, 32 * 1
    strip 128 * 4: FW 128 * 36

Sizes of parts are M x N x K; `size * count`; a strip names the mode and depth of its blocks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

Triple = tuple[int, int, int]
"""Something for each of M, N and K."""
Waves = tuple[tuple[int, int], ...]
"""(moving rows, how many waves of that length), in order."""
Lines = Sequence[tuple[int, str]]
"""Lines of a text, each with its number."""


class MappingError(Exception):
    """A mapping text that cannot be read, or a node for which no tiling fits the machine."""


@dataclass(frozen=True)
class Flow:
    """Which dimension streams, lies across and lies down: indices into (M, N, K)."""

    name: str
    dataflow: str
    length: int
    width: int
    depth: int

    def of(self, sizes: Triple) -> Triple:
        """(length, width, depth) of a GEMM."""
        return sizes[self.length], sizes[self.width], sizes[self.depth]


FLOWS = (
    Flow("b stays", "ws", 0, 1, 2),
    Flow("a stays", "ws", 1, 0, 2),
    Flow("result stays", "os", 2, 1, 0),
    Flow("result stays, transposed", "os", 2, 0, 1),
)
"""The paper's own first: activations stream past weights."""

LANES = "lanes"
"""What stands for the flow where the vector unit multiplies: nothing goes through the array."""


def flow_named(name: str) -> Flow:
    """The flow of a name; MappingError when there is none such."""
    for flow in FLOWS:
        if flow.name == name:
            return flow
    raise MappingError(f"no flow '{name[:60]}'; use {', '.join(f.name for f in FLOWS)}")


@dataclass(frozen=True)
class Run:
    """`count` blocks of a strip's depth, alike."""

    mode: str
    depth: int
    count: int
    cycles: int = field(default=0, compare=False)
    """Of one block, over all waves; 0 where nobody has counted."""


@dataclass(frozen=True)
class Strip:
    """`count` strips of a part's width, alike."""

    width: int
    count: int
    runs: tuple[Run, ...]

    @property
    def cycles(self) -> int:
        """Of one strip."""
        return sum(run.count * run.cycles for run in self.runs)

    @property
    def blocks(self) -> int:
        """Blocks of one strip."""
        return sum(run.count for run in self.runs)


@dataclass(frozen=True)
class Cut:
    """How a part of the GEMM is cut, the same on every array."""

    flow: Flow
    groups: Triple
    """Parts that M, N and K are split into over the groups."""
    units: Triple
    """The same over the units of each group."""
    part: Triple
    """M, N and K of the largest part."""
    waves: Waves
    strips: tuple[Strip, ...]

    @property
    def cycles(self) -> int:
        """Cycles the array is busy with the part."""
        return sum(strip.count * strip.cycles for strip in self.strips)

    @property
    def strip_count(self) -> int:
        """Strips of the part."""
        return sum(strip.count for strip in self.strips)

    @property
    def split(self) -> Triple:
        """Parts of M, N and K over all arrays."""
        g, u = self.groups, self.units
        return g[0] * u[0], g[1] * u[1], g[2] * u[2]


def part_of(sizes: Triple, *splits: Triple) -> Triple:
    """The largest part of a GEMM split once or several times over."""
    m, n, k = sizes
    for split in splits:
        m, n, k = -(-m // split[0]), -(-n // split[1]), -(-k // split[2])
    return m, n, k


def cut_text(sizes: Triple, machine: str, cut: Cut) -> str:
    """The text; see the module."""
    lines = [
        f"gemm {triple_text(sizes)} on {machine}",
        f"flow {cut.flow.name}",
        f"groups {triple_text(cut.groups)}",
        f"units {triple_text(cut.units)}",
        "waves " + ", ".join(f"{rows} * {count}" for rows, count in cut.waves),
    ]
    for strip in cut.strips:
        blocks = ", ".join(f"{run.mode} {run.depth} * {run.count}" for run in strip.runs)
        lines.append(f"strip {strip.width} * {strip.count}: {blocks}")
    return "\n".join(lines) + "\n"


HEADS = ("gemm ", "flow ", "groups ", "units ", "waves ")
"""How the lines of a cut begin; strips follow."""


def read_cut(lines: Lines) -> tuple[Triple, str, Cut]:
    """M x N x K, the machine's name and the cut, whether it fits or not; MappingError names the
    line that is wrong."""
    if len(lines) < len(HEADS) + 1:
        raise MappingError(
            "the mapping is too short; it has lines gemm, flow, groups, units, waves and strips"
        )
    words = []
    for (number, line), head in zip(lines, HEADS, strict=False):
        if not line.startswith(head):
            raise MappingError(f"line {number}: '{line[:60]}' should begin with '{head.strip()}'")
        words.append(line.removeprefix(head))
    gemm, _, machine = words[0].partition(" on ")
    sizes = _read_triple(lines[0][0], gemm)
    try:
        flow = flow_named(words[1])
    except MappingError as error:
        raise MappingError(f"line {lines[1][0]}: {error}") from None
    groups, units = (_read_triple(lines[i][0], words[i]) for i in (2, 3))
    waves = _read_pairs(lines[4][0], words[4])
    strips = tuple(_read_strip(number, line) for number, line in lines[len(HEADS) :])
    return sizes, machine, Cut(flow, groups, units, part_of(sizes, groups, units), waves, strips)


def triple_text(sizes: Triple) -> str:
    """M x N x K."""
    return " x ".join(map(str, sizes))


def _read_triple(number: int, text: str) -> Triple:
    match = re.fullmatch(r"([0-9]{1,10}) x ([0-9]{1,10}) x ([0-9]{1,10})", text.strip())
    if not match or "0" in match.groups():
        raise MappingError(f"line {number}: '{text[:60]}' is not M x N x K, as in 64 x 32 x 16")
    m, n, k = (int(digits) for digits in match.groups())
    return m, n, k


def _read_pairs(number: int, text: str) -> Waves:
    found = []
    for piece in text.split(","):
        match = re.fullmatch(r"([1-9][0-9]{0,9}) \* ([1-9][0-9]{0,9})", piece.strip())
        if not match:
            raise MappingError(
                f"line {number}: '{piece.strip()[:60]}' is not size * count, as in 128 * 3"
            )
        found.append((int(match[1]), int(match[2])))
    return tuple(found)


def _read_strip(number: int, line: str) -> Strip:
    head, colon, blocks = line.partition(":")
    if not head.startswith("strip ") or not colon:
        raise MappingError(f"line {number}: '{line[:60]}' should be 'strip 64 * 2: FW 64 * 3'")
    ((width, count),) = _read_pairs(number, head.removeprefix("strip "))[:1]
    runs = []
    for piece in blocks.split(","):
        mode, _, size = piece.strip().partition(" ")
        ((depth, many),) = _read_pairs(number, size)
        runs.append(Run(mode, depth, many))
    return Strip(width, count, tuple(runs))
