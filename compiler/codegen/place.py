"""Where the data of a tile lies in the global buffer, whoever put it there."""

from __future__ import annotations

from dataclasses import dataclass

from ccnn.compiler.codegen.emit import Region, Ticket
from ccnn.compiler.codegen.waves import Block
from ccnn.targets.program import ZERO, Affine, Dim, View


@dataclass(frozen=True)
class Held:
    """A block of a tensor: the slot it lies in, a stride for each dim of the tensor, and where
    the block's first element is.  A block loaded for one tile is dense; one that stays in the
    buffer is a window of a larger block."""

    ticket: Ticket | Region
    strides: tuple[int, ...]
    offset: Affine = ZERO
    part: Affine = ZERO
    """The slot of a region that has one for each half of the samples."""

    @property
    def buffer(self) -> str:
        """Name of the buffer."""
        return self.ticket.pipe.name if isinstance(self.ticket, Ticket) else self.ticket.name

    def block(self, rows: tuple[Dim, ...], cols: tuple[Dim, ...], offset: Affine) -> Block:
        """A matrix laid over the block, starting `offset` elements in."""
        return Block(self.ticket, rows, cols, self.offset + offset, self.part)

    def view(self, dims: tuple[Dim, ...], offset: Affine = ZERO) -> View:
        """A strided window of the block."""
        slot = self.ticket if isinstance(self.ticket, Ticket) else self.part
        return View(self.buffer, dims, self.offset + offset, slot)  # type: ignore[arg-type]
