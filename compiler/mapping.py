"""The mapping: which tiles each GEMM is cut into, as a value that prints and parses back."""

from __future__ import annotations

from collections.abc import Mapping as MappingType
from dataclasses import dataclass, field


class MappingError(Exception):
    """A mapping text that cannot be read, or a node for which no tiling fits the machine."""


class GroupDoesNotFit(MappingError):
    """A group whose buffers do not fit the machine with any tiles; `group` is one of its nodes."""

    def __init__(self, group: str, message: str) -> None:
        super().__init__(message)
        self.group = group


@dataclass(frozen=True)
class Tiling:
    """Loop order (outermost first), tile size of each level, slots per buffer."""

    order: tuple[str, ...]
    tiles: tuple[tuple[str, int], ...]
    depth: int
    dram_bytes: int = 0
    """Bytes the mapper expects to move; the executed program has the last word."""
    bound: int = 0
    """Proven: no tiling of this depth moves fewer, whatever its tile sizes and loop order."""

    def __str__(self) -> str:
        tiles = " ".join(f"{name}={size}" for name, size in self.tiles)
        return (
            f"order {','.join(self.order)} depth {self.depth} tiles {tiles} "
            f"dram {self.dram_bytes} bound {self.bound}"
        )


@dataclass(frozen=True)
class Mapping:
    """Node name to tiling, for every GEMM of a program on one machine."""

    machine: str
    tilings: MappingType[str, Tiling] = field(default_factory=dict)
    rooms: MappingType[str, int] = field(default_factory=dict)
    """Group name to the bytes of buffer that the tiles of one of its nodes may take."""

    def text(self) -> str:
        """One line a node; `parse_mapping` reads it back."""
        lines = [f"mapping for {self.machine}"]
        lines += [f"group {name}: room {room}" for name, room in self.rooms.items()]
        lines += [f"{name}: {tiling}" for name, tiling in self.tilings.items()]
        return "\n".join(lines) + "\n"


def parse_mapping(text: str) -> Mapping:
    """The inverse of `Mapping.text`; raises MappingError naming the line."""
    lines = text.splitlines()
    if not lines or not lines[0].startswith("mapping for "):
        raise MappingError("line 1: a mapping begins with 'mapping for MACHINE'")
    tilings, rooms = {}, {}
    for number, line in enumerate(lines[1:], 2):
        group, _, room = line.rpartition(": room ")
        if group.startswith("group ") and room.isdigit():
            rooms[group.removeprefix("group ")] = int(room)
        elif line.strip():
            name, tiling = _parse_line(number, line)
            tilings[name] = tiling
    return Mapping(lines[0].removeprefix("mapping for ").strip(), tilings, rooms)


def _parse_line(number: int, line: str) -> tuple[str, Tiling]:
    name, _, rest = line.rpartition(": order ")
    words = rest.split()
    try:
        order = tuple(words[0].split(","))
        if words[1] != "depth" or words[3] != "tiles" or words[-4] != "dram" or not name:
            raise ValueError
        pairs = tuple((key, int(size)) for key, size in (w.split("=") for w in words[4:-4]))
        if {k for k, _ in pairs} != set(order) or any(size < 1 for _, size in pairs):
            raise ValueError
        return name, Tiling(order, pairs, int(words[2]), int(words[-3]), int(words[-1]))
    except (ValueError, IndexError):
        raise MappingError(
            f"line {number}: '{line[:80]}' is not a tiling; expected "
            "'NODE: order a,b depth 2 tiles a=1 b=2 dram BYTES bound BYTES'"
        ) from None
