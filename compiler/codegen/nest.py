"""The tile loops around a GEMM kernel: which operand is loaded at which loop.

Levels are the tiled dimensions from the outermost in; the last ones reduce.  An operand is loaded
just inside the innermost loop that moves it (loops of one iteration move nothing), so a tile
that stays the same is never fetched again.  The mapper and the code generator both read this
file: what one counts, the other emits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ccnn.compiler.codegen.emit import KernelWriter, segments
from ccnn.targets.program import ZERO, Affine

Tile = Mapping[str, int]
"""Level name to tile size."""

Position = dict[str, tuple[Affine, int]]
"""Level name to where the present tile starts and how large it is."""


@dataclass(frozen=True)
class Level:
    """A tiled dimension: its name, its length, what the tile must be a multiple of."""

    name: str
    total: int
    multiple: int = 1


def named(*levels: Level) -> dict[str, Level]:
    """Levels by their names."""
    return {level.name: level for level in levels}


@dataclass(frozen=True)
class Operand:
    """A tensor that a kernel reads (or writes) tile by tile."""

    name: str
    depends: frozenset[str]
    """The levels that move it."""
    elements: Callable[[Tile], int]
    """Elements of its tile."""
    dtype: str
    written: bool = False


def trips(level: Level, tile: Tile) -> int:
    """Iterations of a level."""
    return -(-level.total // tile[level.name])


def placement(levels: Sequence[Level], tile: Tile, depends: frozenset[str]) -> int:
    """How many loops are outside the load of an operand that moves with `depends`."""
    return max(
        (i + 1 for i, v in enumerate(levels) if v.name in depends and trips(v, tile) > 1),
        default=0,
    )


def fetches(levels: Sequence[Level], tile: Tile, depends: frozenset[str]) -> int:
    """How often an operand's tile is moved."""
    count = 1
    for level in levels[: placement(levels, tile, depends)]:
        count *= trips(level, tile)
    return count


@dataclass
class Hook:
    """What happens on entering and leaving the loops at one depth."""

    depth: int
    enter: Callable[[Position], None]
    leave: Callable[[Position], None]


def walk(
    kw: KernelWriter,
    levels: Sequence[Level],
    tile: Tile,
    hooks: Sequence[Hook],
    body: Callable[[Position], None],
) -> None:
    """Write the loops, peeling the smaller last tile of each, and call hooks and body."""

    def descend(depth: int, position: Position) -> None:
        mine = [h for h in hooks if h.depth == depth]
        for hook in mine:
            hook.enter(position)
        if depth == len(levels):
            body(position)
        else:
            level = levels[depth]
            for part in segments(level.total, tile[level.name]):
                with kw.loop(part.count) as index:
                    place = index * part.size + part.start
                    descend(depth + 1, {**position, level.name: (place, part.size)})
        for hook in reversed(mine):
            hook.leave(position)

    # a dim of one tile stands at zero wherever it is asked for
    descend(0, {v.name: (ZERO, tile[v.name]) for v in levels})
