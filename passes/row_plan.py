"""Groups that run band by band of rows, for runs of kernels of which one sample does not fit.

The bands are the fewest that fit: the more there are, the more often weights and sums go back and
forth.  What two of them need both is made twice, which costs the array time, or carried from one to
the next, which costs room and copies; whichever is cheaper.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate

from ccnn.passes.graph import Graph
from ccnn.passes.group_plan import Plan
from ccnn.passes.ops import op_named
from ccnn.passes.row_bands import RowBands, row_bands
from ccnn.passes.row_work import NoBands, work_of
from ccnn.passes.steps import ARRAY_OPS, Steps
from ccnn.passes.traffic import Use, moved_by_rows, uses

_MOST = 64
"""Bands of an image that are tried."""


@dataclass(frozen=True)
class Price:
    """What things cost beside the bytes they move, in bytes."""

    start: float = 0.0
    """Of starting a kernel."""
    mac: float = 0.0
    """Of a multiplication."""
    copy: float = 0.0
    """Of an element that the vector unit copies."""


class RowPlanner:
    """Plans runs of a step's kernels by rows."""

    def __init__(self, steps: Steps, free: int, keep: bool, price: Price) -> None:
        self.steps, self.free, self.keep, self.price = steps, free, keep, price
        self._cannot = [0, *accumulate(not self._has_rows(k) for k in range(len(steps.nodes)))]

    def _has_rows(self, k: int) -> bool:
        node = self.steps.nodes[k]
        if any(self.steps.root[t] != t for t in (*node.inputs, *node.outputs) if t):
            return False
        try:
            tensors = [link.tensor for link in work_of(self.steps.graph, node).links]
        except NoBands:
            return False
        rows = self.steps.axis.rows
        return any(t in rows for t in tensors) and all(rows.get(t, 1) == 1 for t in tensors)

    def plans(self, low: int, high: int) -> list[Plan]:
        """The run at these positions with as few bands as fit, and with some more; none when it
        cannot go by rows."""
        if self._cannot[high] > self._cannot[low] or self.steps.axis.grain > 1:
            return []
        nodes, found = self.steps.nodes[low:high], uses(self.steps, low, high)
        try:
            whole = row_bands(self.steps.graph, nodes, 1 << 30)
        except NoBands:
            return []
        plans: list[Plan] = []
        coarsest = min(whole.height(t) // f for t, f in whole.scale.items())
        most = min(coarsest, _MOST)
        tried = 0
        for count in range(2, most + 1):
            rows = coarsest // count
            if rows == tried or len(plans) > 1:
                continue
            tried = rows
            fitting: list[Plan] = []
            for carry in (False, True):
                with suppress(NoBands):
                    bands = row_bands(self.steps.graph, nodes, rows, carry)
                    fitting += self._fitting(bands, found, low, high)
            if fitting:
                plans.append(min(fitting, key=lambda p: p.cost))
        return plans

    def _fitting(self, bands: RowBands, found: dict[str, Use], low: int, high: int) -> list[Plan]:
        made = {s for s, use in found.items() if use.written and use.store.batched}
        twice = {s for s in made if bands.totals.needed[s] > bands.height(s)}
        inside = twice | {s for s in made if found[s].can_reside}
        ahead = {s for s, use in found.items() if use.can_reside and not use.written}
        for resident in (inside | ahead, inside):
            space = self._space(bands, found, resident, low, high)
            if space <= self.free:
                return [self._plan(bands, found, resident, self.free - space)]
        return []

    def _space(
        self, bands: RowBands, found: dict[str, Use], resident: Collection[str], low: int, high: int
    ) -> float:
        """The most room that a band takes."""
        above = [use.store.room * n for use, n in self._carried(bands, found)]
        change = [sum(above), *[0.0] * (high - low)]
        for name in resident:
            use = found[name]
            room = use.store.room
            if name in bands.scale:  # and a row of zeros above or below
                room *= (bands.tallest[name] + 1) / bands.height(name)
            change[use.first - low] += room
            change[use.last - low + 1] -= room
        return max(accumulate(change))

    def _plan(
        self, bands: RowBands, found: dict[str, Use], resident: set[str], room: float
    ) -> Plan:
        batch = self.steps.axis.batch
        count = batch * bands.count
        kept: set[str] = set()
        if self.keep:
            fixed = {s for s, u in found.items() if u.store.batched or u.store.apart}
            worth = {
                s: sum(u.moved(count)) - sum(u.moved_on_chip())
                for s, u in found.items()
                if s not in fixed and s not in bands.scale
            }
            for s in sorted(worth, key=lambda s: (-worth[s] / max(found[s].store.room, 1), s)):
                if worth[s] > 0 and found[s].store.room <= room:
                    room -= found[s].store.room
                    kept.add(s)
        moved = float(sum(moved_by_rows(found, bands, batch, resident | kept)))
        starts = self.price.start * count * len(bands.nodes) + self.price.mac * made_again(bands)
        sizes = self.steps.graph.tensors
        copied = [sizes[u.store.name].size * n for u, n in self._carried(bands, found)]
        starts += 2 * self.price.copy * (bands.count - 1) * sum(copied)
        order = [s for s in found if s in resident]
        return Plan(
            moved,
            starts,
            1,
            tuple(order),
            tuple(s for s in found if s in kept),
            rows=bands.rows,
            carried=bands.carry,
        )

    def _carried(self, bands: RowBands, found: dict[str, Use]) -> list[tuple[Use, float]]:
        """What is carried from a band to the next, and how much of each."""
        return [(found[t], n / bands.height(t)) for t, n in bands.carried.items()]


def made_again(bands: RowBands) -> int:
    """Multiplications for rows that a band makes although another one has made them."""
    graph, again = bands.graph, 0
    for node in bands.nodes:
        driver = bands.works[node.name].driver
        more = bands.totals.worked[node.name] - bands.height(driver)
        if node.op in ARRAY_OPS and more:
            inputs = [graph[i] if i else None for i in node.inputs]
            macs = op_named(node.op).macs(node, inputs, [graph[o] for o in node.outputs])
            again += macs * more // bands.height(driver)
    return again


def macs_made_again(graph: Graph) -> int:
    """Multiplications of a step beyond those of its nodes: rows that bands of its groups make
    twice."""
    nodes = {n.name: n for n in graph.nodes}
    total = 0
    for group in graph.groups:
        run = [nodes[n] for n in group.nodes if not nodes[n].attr("fused")]
        if group.rows:
            total += made_again(row_bands(graph, run, group.rows, group.carried))
    return total
