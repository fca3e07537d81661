"""Pass `serialize-minibatch`: runs of nodes execute sub-batch by sub-batch, data kept on chip.

before:  %a: float[8, 4] = map(%x) {…}  # first forward
         %b: float[8, 4] = map(%a) {…}  # second forward
after:   the same nodes, and
         group [first, second] sub_batch 4 resident [%a] kept []

Mini-batch serialization (Lym et al. 2019) on the graph of a whole training step.  The step is
cut into *units* where a single tensor leads on; a group is a run of units.  For each group:

    space      bytes a sample needs: the most that its resident tensors take together at one node
    sub-batch  N / I rounded up, with I = ceil(N / floor(buffer / space)) iterations
    resident   tensors produced and read inside, or read more than once
    kept       weights, and sums over the batch, while room is left

and its traffic is what passes/traffic.py says.  Groups are chosen by that traffic, exactly or by
the paper's greedy merging.  `mode`:

    full   one group forward and one backward
    mbs1   a tensor resides only while no other layer runs: a block's shortcut goes to DRAM
    mbs2   whatever a group hands on resides, the shortcut too
    best   mbs2, and also: larger sub-batches with part of it in DRAM, smaller ones with more
           kept, bands of rows where one sample does not fit, groups that turn from forward to
           backward, weight gradients that leave their group and run behind it on the whole batch,
           where partial sums are dearer than operands, cuts within units (passes/move_cuts.py),
           and where there are barriers also orders in which cheap vector work waits until its
           result is needed, and branches go side by side from barrier to barrier

Nodes that need the whole batch at once (statistics of an exact batch norm, then what reads them)
are never in one looped group.  Where not even the smallest sub-batch fits, nodes stay alone.
Nodes are only moved (those that touch weights and statistics out of the groups), never changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import accumulate, pairwise
from math import ceil, inf
from typing import ClassVar, Literal

import numpy as np

from ccnn.passes.batch_axis import batch_axis
from ccnn.passes.graph import Graph, GraphError
from ccnn.passes.group_plan import Look, Plan, Tables, Window
from ccnn.passes.grouping import Cuts, group_exactly, group_greedily
from ccnn.passes.hand_over import hand_over
from ccnn.passes.level_order import by_levels
from ccnn.passes.move_cuts import moved_cuts
from ccnn.passes.place_groups import place_groups
from ccnn.passes.row_plan import Price, RowPlanner
from ccnn.passes.sink import data_gradients_first, sink_nodes
from ccnn.passes.steps import ARRAY_OPS, ElementBytes, Steps, make_steps
from ccnn.passes.tile_traffic import TileRoom
from ccnn.passes.traffic import iterations_of, moved, uses

Mode = Literal["none", "full", "mbs1", "mbs2", "best"]
Method = Literal["exact", "greedy"]


Chosen = list[tuple[tuple[int, int], Plan]]
"""Groups as positions (first, one past the last) and plans."""


def _cost(groups: Chosen) -> float:
    return sum(plan.cost for _, plan in groups)


_SPARED = 0.6
"""Of what is reserved for tiles, the part that may hold what groups hand over."""


@dataclass(frozen=True)
class SerializeMinibatch:
    """Groups the nodes of a training step of primitives into sub-batch loops."""

    name: ClassVar[str] = "serialize-minibatch"
    buffer_bytes: int = 10 * 2**20
    reserved_bytes: int = 0
    """Part of the buffer for what streams through: tiles of weights and non-resident tensors."""
    mode: Mode = "best"
    method: Method = "exact"
    batch: int = 0
    """0: the first dimension of the first input."""
    sub_batch: int = 0
    """The sub-batch of all groups, when it is not to be chosen."""
    keep: bool = True
    """Room left over keeps weights and sums over the batch on chip."""
    start_bytes: float = 0.0
    """What it costs to start a kernel once more, in bytes that could be moved in that time."""
    merge_moments: bool = False
    """Whether the target can merge moments of sub-batches; else they are a barrier."""
    in_place: bool = False
    """Whether a map writes over an operand of its shape that nobody reads afterwards."""
    rows: bool = True
    """Under `best`, runs of which one sample does not fit may go by bands of its rows."""
    macs_per_byte: float = 64.0
    """Rows that two bands need are made twice: so many multiplications cost as much as a byte."""
    copies_per_byte: float = 4.0
    """Or they are carried from one to the next: so many elements are copied for a byte."""
    tiles: TileRoom | None = None
    """How the rest of the buffer serves the tiles of products; None: they read all just once."""
    idle_per_byte: float = 0.0
    """What it costs that the array waits while other engines make a byte of the forward pass, as it
    does where the samples of an iteration are too few to be in two places at once."""
    most_units: int = 128
    """Neighbouring units that move less than this part of all bytes are cut as one."""
    reach: int = 24
    """Under `best`, how many nodes at a time the end of a group is moved by, to find a better one;
    0: groups are whole units."""
    hand_over: bool = False
    """Under `best`, what the last sub-batches of a group leave in the buffer stays there for the
    next group, which begins with them (passes/hand_over.py)."""
    bytes_per: ElementBytes = field(default_factory=ElementBytes)

    def __post_init__(self) -> None:
        if self.mode not in ("none", "full", "mbs1", "mbs2", "best"):
            raise GraphError(f"mode '{self.mode}' is none of none, full, mbs1, mbs2, best")
        if self.method not in ("exact", "greedy"):
            raise GraphError(f"method '{self.method}' is neither exact nor greedy")
        if not 0 <= self.reserved_bytes < self.buffer_bytes:
            raise GraphError(
                f"{self.reserved_bytes} of {self.buffer_bytes} bytes of buffer are reserved"
            )

    def __call__(self, graph: Graph) -> Graph:
        """The grouped graph; groups it had before are dropped."""
        graph = replace(graph, groups=())
        if self.mode == "none":
            return graph
        graph = data_gradients_first(graph)
        axis = batch_axis(graph, self.batch)
        orders = [graph]
        if self.mode == "best" and any(
            b >= 0 for b in make_steps(graph, axis, self.bytes_per).barrier
        ):
            orders += [sink_nodes(graph), sink_nodes(by_levels(graph, axis))]
        planners = (Planner(make_steps(order, axis, self.bytes_per), self) for order in orders)
        planned = [(planner, planner.refined(planner.choose())) for planner in planners]
        planner, groups = min(planned, key=lambda p: _cost(p[1]))
        if self.mode == "best" and self.method == "exact" and self.reach:
            groups = planner.moved(groups)
            if self.hand_over:
                groups = hand_over(planner.steps, groups, planner.smaller)
        return place_groups(planner.steps, groups)


class Planner:
    """Prices runs of units and chooses among them."""

    def __init__(
        self, steps: Steps, options: SerializeMinibatch, bounds: Sequence[int] = ()
    ) -> None:
        """`bounds` are where units begin, and the end; default: where one tensor leads on."""
        self.steps, self.options = steps, options
        self.free = options.buffer_bytes - options.reserved_bytes
        self.batch, self.grain = steps.axis.batch, steps.axis.grain
        self.alone = [
            float(sum(moved(uses(steps, k, k + 1), 1, ()))) for k in range(len(steps.nodes))
        ]
        self.idle = np.cumsum([0.0, *map(self._beside_array, range(steps.backward))])
        self.bounds = bounds or _thinned(
            unit_bounds(steps), self.alone, forced_bounds(steps), options.most_units
        )
        self.units = len(self.bounds) - 1
        self.plan = cache(self._plan)
        self._tables = Tables(steps, options.in_place, options.tiles)
        self._terms = (self.batch, options.start_bytes)
        self._windows: dict[int, Window] = {}
        self._smaller: dict[tuple[tuple[int, int], int, float], Plan | None] = {}
        self._hopeless: dict[int, int] = {}
        """First position of a group to the least end from which on no group can begin there."""
        price = Price(options.start_bytes, 1 / options.macs_per_byte, 1 / options.copies_per_byte)
        self._by_rows = RowPlanner(steps, self.free, options.keep, price)

    def _beside_array(self, k: int) -> float:
        """Bytes that a kernel makes while the array does nothing for it."""
        steps = self.steps
        if steps.nodes[k].op in ARRAY_OPS:
            return 0.0
        return float(sum(steps.stores[s].size for s in steps.writes[k] if steps.stores[s].batched))

    def _waits(self, plan: Plan, low: int, high: int) -> Plan:
        """The plan of a run with what waiting costs where it cannot go in halves."""
        if high > self.steps.backward or not 0 < plan.sub_batch < 2 * self.grain:
            return plan
        idle = self.options.idle_per_byte * float(self.idle[high] - self.idle[low])
        return replace(plan, starts=plan.starts + idle)

    def price(self, i: int, j: int) -> float:
        """What units i … j - 1 cost as one group; infinity when they cannot be one."""
        return self.plan(i, j).cost

    def choose(self) -> Cuts:
        """The grouping that the options ask for."""
        if self.options.mode == "full":
            return self._one_each_way()
        need = [iterations_of(self.plan(k, k + 1).sub_batch, self.batch) for k in range(self.units)]
        greedy = group_greedily(self.units, self.price, need)
        if self.options.method == "greedy":
            return greedy
        exact = group_exactly(self.units, self.price)
        return min((exact, greedy), key=lambda g: _cost(self.refined(g)))

    def refined(self, groups: Cuts) -> Chosen:
        """Positions and plans of the groups; under `best` with more plans tried for each."""
        return [((self.bounds[i], self.bounds[j]), self._refine(i, j)) for i, j in groups]

    def moved(self, groups: Chosen) -> Chosen:
        """The groups with better ends than where units begin, where there are any."""
        end = len(self.steps.nodes)
        fine = Planner(self.steps, self.options, range(end + 1))
        cuts = {0, *(high for (_, high), _ in groups)}
        cuts |= {k for (low, high), plan in groups if plan.alone for k in range(low, high)}
        cuts = moved_cuts(sorted(cuts), fine.price, unit_bounds(self.steps), self.options.reach)
        return min(groups, fine.refined(tuple(pairwise(cuts))), key=_cost)

    def smaller(self, span: tuple[int, int], plan: Plan, size: int, taken: float) -> Plan | None:
        """A group's plan at this sub-batch with so many bytes taken by what others leave in the
        buffer; None where it does not fit."""
        key = span, size, taken
        if key not in self._smaller:
            self._smaller[key] = self._at_size(self._look(*span), plan, size, taken)
        return self._smaller[key]

    def _at_size(self, look: Look, plan: Plan, size: int, taken: float) -> Plan | None:
        if not self._may_run(look, size):
            return None
        names, there = self._tables.names, {*plan.resident}
        resident = np.array([names[s] in there for s in look.window.touched], bool)
        used = float(look.live(resident).max(initial=0.0)) * size + taken
        free = self.free + (self.options.reserved_bytes * _SPARED if taken else 0.0)
        if used > free:
            return None
        return self._priced(look, resident, size, used, leave=True, free=free)

    def _one_each_way(self) -> Cuts:
        turn = next(k for k in range(self.units + 1) if self.bounds[k] >= self.steps.backward)
        groups: list[tuple[int, int]] = []
        for low, high in ((0, turn), (turn, self.units)):
            if low < high and self.price(low, high) < inf:
                groups.append((low, high))
            else:
                groups += [(k, k + 1) for k in range(low, high)]
        return tuple(groups)

    def _plan(self, i: int, j: int) -> Plan:
        low, high = self.bounds[i], self.bounds[j]
        starts = self.options.start_bytes * (high - low)
        plans = [Plan(sum(self.alone[low:high]), starts, alone=True)] if j == i + 1 else []
        turns = low < self.steps.backward < high
        if (self.options.mode == "best" or not turns) and high < self._hopeless.get(low, high + 1):
            found = self._grouped(self._look(low, high))
            if not found and self._is_hopeless(self._look(low, high)):
                self._hopeless[low] = high
            plans += [self._waits(plan, low, high) for plan in found]
        return min(plans, key=lambda p: p.rank, default=Plan(inf, inf))

    def _look(self, low: int, high: int) -> Look:
        window = self._windows.get(low)
        if window is None or window.high > high:
            window = self._windows[low] = Window(self._tables, low)
        window.grow(high)
        return window.look()

    def _grouped(self, look: Look) -> list[Plan]:
        """The group with what may reside by the mode, and under `best` with less of it too."""
        mode, plans = self.options.mode, []
        w = look.window
        for near in {"mbs1": (True,), "best": (False, True)}.get(mode, (False,)):
            resident = look.can_reside(near)
            space = float(look.live(resident).max(initial=0.0))
            most = self.batch if space * self.batch <= self.free else int(self.free / space)
            rows = self.options.rows and mode == "best" and self.options.sub_batch < 2
            if rows and not near and not most and self._may_run(look, 0):
                plans += self._by_rows.plans(w.low, w.high)
            for size in self._sub_batches(most):
                if self._may_run(look, size):
                    plans.append(self._priced(look, resident, size, space * size, mode == "best"))
        return plans

    def _priced(
        self,
        look: Look,
        resident: np.ndarray,
        size: int,
        used: float,
        leave: bool,
        free: float | None = None,
    ) -> Plan:
        """The group with stores resident that take `used` bytes of those that are free."""
        room = (self.free if free is None else free) - used if self.options.keep else None
        left = self.options.buffer_bytes - used
        return look.plan(resident, size, self._terms, room, left, leave)

    def _is_hopeless(self, look: Look) -> bool:
        """True when no longer run fits either: what is settled takes too much room already.

        That a run needs the whole batch stays so when it grows, and so does what resides for
        sure: stores that nothing behind the run reads, whose place in it will not change.
        """
        settled = look.can_reside(near=self.options.mode in ("mbs1", "best")) & ~look.later
        space = float(look.live(settled).max(initial=0.0))
        least = self.grain if self._may_run(look, self.grain) else self.batch
        return space * least > self.free

    def _may_run(self, look: Look, size: int) -> bool:
        """False when the group would loop although something in it needs the whole batch."""
        w = look.window
        return size >= self.batch or (
            w.waits < w.low and (self.options.merge_moments or not w.merges)
        )

    def _sub_batches(self, most: int) -> list[int]:
        """Sub-batches to try where `most` samples fit; smaller ones leave room to keep more."""
        if self.options.sub_batch:
            return [self.options.sub_batch] if self.options.sub_batch <= most else []
        most -= most % self.grain
        if most < self.grain:
            return []
        found = [_even(self.batch, most, self.grain)]
        while self.options.mode == "best" and len(found) < 3 and found[-1] > self.grain:
            found.append(_even(self.batch, found[-1] - self.grain, self.grain))
        return found

    def _refine(self, i: int, j: int) -> Plan:
        """The best plan, also with any sub-batch and only what fits at it resident."""
        plan = self.plan(i, j)
        if self.options.mode != "best" or self.options.sub_batch:
            return plan
        look = self._look(self.bounds[i], self.bounds[j])
        sizes = {
            _even(self.batch, m, self.grain) for m in range(self.grain, self.batch + 1, self.grain)
        }
        plans = [plan]
        for size in sorted(sizes):
            if size >= self.grain and self._may_run(look, size):
                resident = look.squeeze(size, self.free)
                used = float(look.live(resident).max(initial=0.0)) * size
                found = self._priced(look, resident, size, used, leave=True)
                plans.append(self._waits(found, self.bounds[i], self.bounds[j]))
        return min(plans, key=lambda p: p.rank)


def _even(batch: int, most: int, grain: int) -> int:
    """The smallest sub-batch that takes no more iterations than `most` does."""
    size = ceil(batch / ceil(batch / most))
    return min(-(-size // grain) * grain, most)


def unit_bounds(steps: Steps) -> tuple[int, ...]:
    """Positions where units begin, and the end: no more than one large tensor leads across.

    A tensor counts between its writer and its last reader in the same direction (forward or
    backward); what is less than a sixteenth of the largest does not count.  Besides, one begins
    wherever a whole batch has to be complete, and with the first kernel that waits for it.
    """
    count = len(steps.nodes)
    ends: dict[int, list[tuple[int, float]]] = {}
    for store in steps.stores.values():
        if not store.batched or store.writer < 0:
            continue
        same = [r for r in store.readers if (r < steps.backward) == (store.writer < steps.backward)]
        if same:
            ends.setdefault(store.writer, []).append((same[-1], store.size))
    bounds, live, forced = [0], [], forced_bounds(steps) | _first_waits(steps)
    for k in range(1, count):
        live = [e for e in (*live, *ends.get(k - 1, ())) if e[0] >= k]
        largest = max((size for _, size in live), default=0)
        large = sum(size * 16 >= largest for _, size in live)
        if large <= 1 or k in forced:
            bounds.append(k)
    return (*bounds, count)


def forced_bounds(steps: Steps) -> set[int]:
    """Where no loop can lead across: the turn to backward, and behind what others wait for."""
    return {steps.backward, *(p + 1 for p in steps.barrier if p >= 0)}


def _first_waits(steps: Steps) -> set[int]:
    """Kernels that wait for more than all before them."""
    most = accumulate(steps.barrier, max, initial=-1)
    return {k for k, (b, before) in enumerate(zip(steps.barrier, most, strict=False)) if b > before}


def _thinned(
    bounds: tuple[int, ...], alone: list[float], forced: set[int], most: int
) -> tuple[int, ...]:
    """Fewer bounds: a unit moves at least a `most`th of all bytes, or it is joined to the next."""
    least, since, kept = sum(alone) / most, 0.0, [0]
    for low, high in pairwise(bounds):
        since += sum(alone[low:high])
        if since >= least or high in forced or high == len(alone):
            kept.append(high)
            since = 0.0
    return tuple(kept)
