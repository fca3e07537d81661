"""What groups hand over lies in the buffer as stacks, slot by slot of a few samples.

A group that goes through the batch the other way than the one before takes first what that one
put there last.  Its own stack grows from the other end, into the slots that it has emptied:

    forward group      finds |--------======|          leaves |======--------|
    backward group     finds |======--------|          leaves |--------======|

Samples stand in the order of the batch, at rising addresses; a stack left by a backward group ends
at the top of the buffer.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True)
class Stack:
    """Some samples in slots of equal size."""

    samples: int = 0
    slot: int = 1
    """Samples of a slot: whole iterations of both groups."""
    slot_bytes: float = 0.0

    @property
    def room(self) -> float:
        """Bytes of all slots."""
        return self.samples // self.slot * self.slot_bytes


@lru_cache(maxsize=1 << 16)
def together(found: Stack, left: Stack, sub_batch: int, batch: int) -> float:
    """The most bytes that both take at once in a group, 0 where one is gone before the other is.

    A slot is there from the first of its iterations to the last.
    """
    first, most = batch - left.samples, 0.0
    for passed in range(first, found.samples, sub_batch):
        there = -(-(found.samples - passed) // found.slot)
        made = -(-(passed + sub_batch - first) // left.slot)
        most = max(most, there * found.slot_bytes + made * left.slot_bytes)
    return most
