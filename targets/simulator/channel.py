"""The DRAM channel: one transfer at a time, older requests first, preemptive.

Requests arrive in program order, which is their age.  A request takes the earliest free time at
or after it is ready and is split around what older ones have taken already; that is what an
age-priority memory controller does.  Free time before the end of the last transfer is kept as a
list of gaps, the youngest 16.
"""

from __future__ import annotations

KEPT = 16
Gap = tuple[int, int]


class Channel:
    """Free time of the channel: gaps [start, end), and everything from `tail` on."""

    def __init__(self, start: int) -> None:
        self.gaps: list[Gap] = []
        self.tail = start

    def prune(self, earliest: int) -> None:
        """Forget free time before `earliest`, the first cycle any request can still use."""
        if self.gaps and self.gaps[0][0] < earliest:
            self.gaps = [(max(s, earliest), e) for s, e in self.gaps if e > earliest]

    def transfer(self, ready: int, length: int, earliest: int) -> int:
        """Occupy `length` cycles from `ready` on; the end of the last of them."""
        self.prune(earliest)
        if self.gaps and length:
            length, end = self._fill(ready, length)
            if not length:
                return end
        if not length:
            return ready
        if ready > self.tail:
            self.gaps.append((self.tail, ready))
            del self.gaps[:-KEPT]
            self.tail = ready
        self.tail += length
        return self.tail

    def _fill(self, ready: int, length: int) -> tuple[int, int]:
        """Use the gaps; (cycles still to place, end of the last one placed)."""
        end, kept = ready, []
        for position, (s, e) in enumerate(self.gaps):
            if not length:
                kept += self.gaps[position:]
                break
            first = max(s, ready)
            used = min(length, e - first)
            if used <= 0:
                kept.append((s, e))
                continue
            length -= used
            end = first + used
            kept += [gap for gap in ((s, first), (end, e)) if gap[0] < gap[1]]
        self.gaps = kept
        return length, end
