"""The mapping: which tiles each GEMM is cut into, as a value that prints and parses back.

Behind the tilings stand the cuts of the products that tiles consist of (compiler/cut.py), each
after an empty line.  A product without one is cut by FlexSA's rule.
"""

from __future__ import annotations

from collections.abc import Mapping as MappingType
from dataclasses import dataclass, field

from ccnn.compiler.cut import FLOWS, LANES, Cut, MappingError, Triple, cut_text, read_cut

__all__ = ["GroupDoesNotFit", "Mapping", "MappingError", "Tiling", "parse_mapping"]


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
    flow: str = FLOWS[0].name
    """Which operand of its products stays in the array, as compiler/cut.py lists the flows; or
    LANES where the vector unit multiplies."""
    pieces: int = 1
    """Pieces that a wave's rows go through the array in, each with accumulators of its own."""

    @property
    def on_lanes(self) -> bool:
        """True when the vector unit multiplies."""
        return self.flow == LANES

    def __str__(self) -> str:
        tiles = " ".join(f"{name}={size}" for name, size in self.tiles)
        flow = "" if self.flow == FLOWS[0].name else f"flow {_spelt(self.flow)} "
        flow += "" if self.pieces == 1 else f"pieces {self.pieces} "
        return (
            f"order {','.join(self.order)} depth {self.depth} tiles {tiles} {flow}"
            f"dram {self.dram_bytes} bound {self.bound}"
        )


@dataclass(frozen=True)
class Mapping:
    """Node name to tiling, for every GEMM of a program on one machine."""

    machine: str
    tilings: MappingType[str, Tiling] = field(default_factory=dict)
    rooms: MappingType[str, int] = field(default_factory=dict)
    """Group name to the bytes of buffer that the tiles of one of its nodes may take."""
    cuts: MappingType[tuple[Triple, str], Cut] = field(default_factory=dict)
    """M x N x K of a product and the name of its flow, to how it goes through the array."""

    def text(self) -> str:
        """One line a node, then the cuts; `parse_mapping` reads it back."""
        lines = [f"mapping for {self.machine}"]
        lines += [f"group {name}: room {room}" for name, room in self.rooms.items()]
        lines += [f"{name}: {tiling}" for name, tiling in self.tilings.items()]
        cuts = [f"\n{cut_text(sizes, self.machine, cut)}" for (sizes, _), cut in self.cuts.items()]
        return "\n".join(lines) + "\n" + "".join(cuts)


def parse_mapping(text: str) -> Mapping:
    """The inverse of `Mapping.text`; raises MappingError naming the line."""
    lines = text.splitlines()
    if not lines or not lines[0].startswith("mapping for "):
        raise MappingError("line 1: a mapping begins with 'mapping for MACHINE'")
    machine = lines[0].removeprefix("mapping for ").strip()
    tilings, rooms, cuts = {}, {}, {}
    piece: list[tuple[int, str]] = []
    for number, line in enumerate([*lines[1:], ""], 2):
        group, _, room = line.rpartition(": room ")
        if piece or (line.startswith("gemm ") and ": order " not in line):
            if line.strip():
                piece.append((number, line.strip()))
                continue
            sizes, name, cut = read_cut(piece)
            if name != machine:
                raise MappingError(
                    f"line {piece[0][0]}: a cut for '{name[:60]}' in a mapping for '{machine}'; "
                    "take cuts of the same machine"
                )
            cuts[sizes, cut.flow.name] = cut
            piece = []
        elif group.startswith("group ") and room.isdigit():
            rooms[group.removeprefix("group ")] = int(room)
        elif line.strip():
            name, tiling = _parse_line(number, line)
            tilings[name] = tiling
    return Mapping(machine, tilings, rooms, cuts)


def _spelt(flow: str) -> str:
    """A flow's name as one word."""
    return flow.replace(", ", "-").replace(" ", "-")


_FLOWS = {_spelt(name): name for name in (*(flow.name for flow in FLOWS), LANES)}


def _parse_line(number: int, line: str) -> tuple[str, Tiling]:
    name, _, rest = line.rpartition(": order ")
    words = rest.split()
    try:
        order = tuple(words[0].split(","))
        if words[1] != "depth" or words[3] != "tiles" or words[-4] != "dram" or not name:
            raise ValueError
        end, flow, pieces = len(words) - 4, FLOWS[0].name, 1
        if words[end - 2] == "pieces":
            end, pieces = end - 2, int(words[end - 1])
        if words[end - 2] == "flow":
            end, flow = end - 2, _FLOWS[words[end - 1]]
        pairs = tuple((key, int(size)) for key, size in (w.split("=") for w in words[4:end]))
        if {k for k, _ in pairs} != set(order) or any(size < 1 for _, size in pairs):
            raise ValueError
        moved, bound = int(words[-3]), int(words[-1])
        return name, Tiling(order, pairs, int(words[2]), moved, bound, flow, pieces)
    except (ValueError, IndexError, KeyError):
        raise MappingError(
            f"line {number}: '{line[:80]}' is not a tiling; expected "
            "'NODE: order a,b depth 2 tiles a=1 b=2 dram BYTES bound BYTES'"
        ) from None
