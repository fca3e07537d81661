"""Prices runs of kernels as groups, many of them: the formulas of passes/traffic.py on arrays.

A `Window` begins at one position and grows; what it touches is kept up to date, so that pricing
all runs that begin there takes one walk over the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import overload

import numpy as np

from ccnn.passes.steps import ARRAY_OPS, Steps
from ccnn.passes.tile_traffic import Products, TileRoom


@dataclass(frozen=True)
class Names(Sequence[str]):
    """Some of the stores of a step, spelled out when asked for: most plans are thrown away."""

    all: Sequence[str]
    places: np.ndarray

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[str]: ...
    def __getitem__(self, at: int | slice) -> str | Sequence[str]:
        if isinstance(at, slice):
            return [self.all[int(k)] for k in self.places[at]]
        return self.all[int(self.places[at])]


@dataclass(frozen=True)
class Plan:
    """How a run of kernels executes: each alone (no group), or as a group."""

    moved: float
    """DRAM bytes."""
    starts: float = 0.0
    """What starting its kernels costs, in bytes."""
    sub_batch: int = 0
    """Samples at a time; 0: the whole batch at once."""
    resident: Sequence[str] = ()
    kept: Sequence[str] = ()
    alone: bool = False
    rows: int = 0
    """Rows of the coarsest tensor at a time; 0: whole images."""
    leaving: tuple[int, ...] = ()
    """Positions of weight gradients that run behind the group, each on the whole batch."""
    carried: bool = False
    """Rows that two bands need stay in the buffer instead of being made again."""
    again: float = 0.0
    """DRAM bytes that tiles are expected to read again, in a room that is small."""
    backwards: bool = False
    """The last samples go first."""
    found: Sequence[str] = ()
    """Stores of which the group before left samples in the buffer."""
    found_samples: int = 0
    left: Sequence[str] = ()
    """Stores of which the group leaves samples for the next."""
    left_samples: int = 0

    @property
    def cost(self) -> float:
        """What is kept low."""
        return self.moved + self.starts + self.again

    @property
    def rank(self) -> tuple[float, bool, int]:
        """Less is better: lower cost, no group, larger sub-batches."""
        return self.cost, not self.alone, -(self.sub_batch or 1 << 62)


class Tables:
    """The stores of a step as arrays."""

    def __init__(self, steps: Steps, in_place: bool = False, tiles: TileRoom | None = None) -> None:
        stores = list(steps.stores.values())
        self.steps = steps
        self.number = {s.name: k for k, s in enumerate(stores)}
        self.names = [s.name for s in stores]
        self.size = np.array([s.size for s in stores], np.float64)
        self.partial = np.array([s.partial for s in stores], np.float64)
        self.room = np.array([s.room for s in stores], np.float64)
        self.batched = np.array([s.batched for s in stores], bool)
        self.fixed = np.array([s.batched or s.apart for s in stores], bool)
        """What cannot be kept: it differs by iteration, or is made beside the group."""
        self.writer = np.array([s.writer for s in stores], np.int64)
        end = len(steps.nodes)
        last = [end if s.outside else max(s.readers, default=-1) for s in stores]
        self.last_reader = np.array(last, np.int64)
        number = self.number
        self.reads = [tuple(number[s] for s in names) for names in steps.reads]
        self.writes = [tuple(number[s] for s in names) for names in steps.writes]
        layers = [n.op in ARRAY_OPS and steps.axis.kinds[n.name] == "keeps" for n in steps.nodes]
        self.is_layer = np.array(layers, np.int64)
        self.layers = np.concatenate([[0], np.cumsum(layers)]).astype(np.int64)
        """Layers before each position; a layer is a convolution or product of samples."""
        self.gradients = np.array(
            [
                (k, *self.reads[k], self.writes[k][0])
                for k, n in enumerate(steps.nodes)
                if n.op in ARRAY_OPS
                and steps.axis.kinds[n.name] == "sums"
                and len(self.reads[k]) == 2
            ],
            np.int64,
        ).reshape(-1, 4)
        """Rows (position of a weight gradient, its operands, its result)."""
        self.merges = [steps.axis.kinds[n.name] == "merges" for n in steps.nodes]
        over = [o for k in range(end) for o in self._over(k)] if in_place else []
        self.products = Products(steps, tiles) if tiles else None
        self.over = np.array(over, np.int64).reshape(-1, 3)
        """Rows (position of a map, operand, result): the result may lie where the operand did."""

    def _over(self, k: int) -> list[tuple[int, int, int]]:
        node, graph = self.steps.nodes[k], self.steps.graph
        if node.op != "map" or len(node.outputs) != 1:
            return []
        out, made = graph[node.outputs[0]], self.writes[k][0]
        read = {
            self.number[self.steps.root[i]]
            for i in node.inputs
            if i and (graph[i].shape, graph[i].dtype) == (out.shape, out.dtype)
        }
        return [(k, s, made) for s in sorted(read) if self.room[s] == self.room[made]]


class Window:
    """The kernels at positions `low` … `high` - 1 and what they touch."""

    def __init__(self, tables: Tables, low: int) -> None:
        count = len(tables.names)
        self.tables, self.low, self.high = tables, low, low
        self.order: list[int] = []
        self._first = np.full(count, -1, np.int64)
        self._last = np.zeros(count, np.int64)
        self._reads = np.zeros(count, np.int64)
        self._by_layers = np.zeros(count, np.int64)
        self.waits = -1
        """The last position that a kernel here waits for."""
        self.merges = False
        """Whether it takes moments over the batch."""

    def grow(self, high: int) -> None:
        """Take in the kernels before position `high`."""
        t, first, last = self.tables, self._first, self._last
        for k in range(self.high, high):
            for s in t.reads[k]:
                self._reads[s] += 1
                self._by_layers[s] += t.is_layer[k]
            for s in (*t.reads[k], *t.writes[k]):
                last[s] = k
                if first[s] < 0:
                    first[s] = k
                    self.order.append(s)
            self.waits = max(self.waits, t.steps.barrier[k])
            self.merges = self.merges or t.merges[k]
        self.high = high
        self.touched = np.array(self.order, np.int64)

    def look(self) -> Look:
        """What the window uses, as a group."""
        t, at = self.tables, self.touched
        writer = t.writer[at]
        return Look(
            self,
            self._first[at],
            self._last[at],
            self._reads[at],
            self._by_layers[at],
            (writer >= self.low) & (writer < self.high),
            t.last_reader[at] >= self.high,
        )


@dataclass(frozen=True)
class Look:
    """Arrays over the stores that a window touches; see traffic.Use for what they mean."""

    window: Window
    first: np.ndarray
    last: np.ndarray
    reads: np.ndarray
    by_layers: np.ndarray
    """How many of the readers are layers."""
    written: np.ndarray
    later: np.ndarray

    def of(self, values: np.ndarray) -> np.ndarray:
        """One of the tables, for the stores touched."""
        return values[self.window.touched]

    def can_reside(self, near: bool = False) -> np.ndarray:
        """Stores that save traffic on chip; `near`: only those no other layer runs beside."""
        t = self.window.tables
        worth = self.of(t.batched) & (self.reads >= np.where(self.written, 1, 2))
        if near:
            between = t.layers[self.last] - t.layers[np.minimum(self.first + 1, self.last)]
            ends = t.is_layer[self.last] * (self.reads > 0)
            ends += t.is_layer[self.first] * (~self.written & (self.first < self.last))
            worth = worth & (between <= self.by_layers - ends)
        return worth

    def live(self, resident: np.ndarray) -> np.ndarray:
        """Bytes of one sample that are resident at each position."""
        t, low, count = self.window.tables, self.window.low, self.window.high - self.window.low
        room = self.of(t.room)[resident]
        change = np.bincount(self.first[resident] - low, room, count + 1)
        change -= np.bincount(self.last[resident] - low + 1, room, count + 1)
        live = np.cumsum(change[:count], dtype=np.float64)
        if len(t.over):
            at, made = self._written_over(resident)
            live[at - low] -= t.room[made]
        return live

    def _written_over(self, resident: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions where a result takes the place of an operand, and the results."""
        t = self.window.tables
        first, last = np.full((2, len(t.names)), -1, np.int64)
        there = self.window.touched[resident]
        first[there], last[there] = self.first[resident], self.last[resident]
        at, read, made = t.over.T
        fits = (at >= self.window.low) & (first[made] == at) & (last[read] == at)
        _, one = np.unique(at[fits], return_index=True)
        return at[fits][one], made[fits][one]

    def saved(self) -> np.ndarray:
        """Bytes that each store saves by being resident."""
        inside = self.reads + ~self.later
        return np.where(self.written, inside, self.reads - 1) * self.of(self.window.tables.size)

    def plan(
        self,
        resident: np.ndarray,
        sub_batch: int,
        terms: tuple[int, float],
        room: float | None,
        left: float,
        leave: bool = False,
    ) -> Plan:
        """The group with these stores resident; `room` bytes may keep others (None: none may).

        `terms` are the batch and what one start of a kernel costs; `left` is what the resident
        stores leave of the whole buffer.  With `leave`, weight gradients leave the group where
        operands in DRAM are cheaper than partial sums.
        """
        batch, start = terms
        rounds = ceil(batch / sub_batch)
        once, each = self._away
        away = once + each * rounds
        bytes_moved = float(away.sum() - self._saved[resident].sum())
        kept: np.ndarray = np.zeros(0, np.int64)
        if room is not None:
            gain = np.where(self._fixed, 0.0, away - self._size)
            kept = _fill(gain, self._room, room)
            bytes_moved -= float(gain[kept].sum())
        gone, saves = self._leaving(resident, kept, rounds) if leave and rounds > 1 else ((), 0.0)
        span = self.window.low, self.window.high
        products, again = self.window.tables.products, 0.0
        if products:
            held = self.window.touched[np.concatenate([np.flatnonzero(resident), kept])]
            left -= float(self._room[kept].sum())
            again = products.again(*span, held, rounds, left, gone)
        staying = span[1] - span[0] - len(gone)
        return Plan(
            bytes_moved - saves,
            start * (rounds * staying + len(gone)),
            0 if sub_batch >= batch else sub_batch,
            self._names(np.flatnonzero(resident)),
            self._names(kept),
            leaving=gone,
            again=again,
        )

    def _leaving(
        self, resident: np.ndarray, kept: np.ndarray, rounds: int
    ) -> tuple[tuple[int, ...], float]:
        """Weight gradients that had better run behind the group, and the bytes that saves."""
        rows, made, read = self._gradients
        sums = 2 * self._partial[made] * (rounds - 1)

        def more(count: np.ndarray) -> np.ndarray:
            """Bytes that each touched store moves more when so many of its readers leave."""
            size = self._size
            before = np.where(self.written & ~self.later, 0.0, size)
            after = np.where(self.written | (self.reads > count), size, 0.0) + count * size
            return np.where(resident & (count > 0), after - before, 0.0)

        alone = more(np.ones(len(self._size)))
        away = np.ones(len(self._size), bool)
        away[kept] = False
        chosen = np.flatnonzero((sums > alone[read].sum(axis=1)) & away[made])
        if not len(chosen) or len(chosen) == self.window.high - self.window.low:
            return (), 0.0
        count = np.bincount(read[chosen].ravel(), minlength=len(self._size))
        saves = float(sums[chosen].sum() - more(count).sum())
        return tuple(rows[chosen].tolist()), saves

    @cached_property
    def _gradients(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Positions of weight gradients, and places of their results and of their two operands."""
        t, w = self.window.tables, self.window
        rows = t.gradients[(t.gradients[:, 0] >= w.low) & (t.gradients[:, 0] < w.high)]
        place = np.zeros(len(t.names), np.int64)
        place[w.touched] = np.arange(len(w.touched))
        return rows[:, 0], place[rows[:, 3]], place[rows[:, 1:3]]

    @cached_property
    def _partial(self) -> np.ndarray:
        return self.of(self.window.tables.partial)

    @cached_property
    def _away(self) -> tuple[np.ndarray, np.ndarray]:
        """Bytes that each store moves from DRAM and back: once, and more in each iteration."""
        t = self.window.tables
        size, partial, batched = self._size, self.of(t.partial), self.of(t.batched)
        sums = self.reads * size + size - 2 * partial
        once = np.where(batched, (self.reads + self.written) * size, self.written * sums)
        again = np.where(self.written, 2 * partial, self.reads * size)
        return once, np.where(batched, 0.0, again)

    @cached_property
    def _saved(self) -> np.ndarray:
        return self.saved()

    @cached_property
    def _size(self) -> np.ndarray:
        return self.of(self.window.tables.size)

    @cached_property
    def _room(self) -> np.ndarray:
        return self.of(self.window.tables.room)

    @cached_property
    def _fixed(self) -> np.ndarray:
        return self.of(self.window.tables.fixed)

    def _names(self, places: np.ndarray) -> Names:
        return Names(self.window.tables.names, self.window.touched[places])

    def squeeze(self, sub_batch: int, free: float) -> np.ndarray:
        """Stores that fit together at this sub-batch, those first that save most for their room."""
        t, low = self.window.tables, self.window.low
        worth = np.flatnonzero(self.can_reside())
        room = self.of(t.room) * sub_batch
        held = room * (self.last - self.first + 1)
        rate = self.saved()[worth] / np.maximum(held[worth], 1.0)
        used = np.zeros(self.window.high - low)
        chosen = np.zeros(len(self.first), bool)
        for k in worth[np.argsort(-rate, kind="stable")]:
            part = used[self.first[k] - low : self.last[k] - low + 1]
            if part.max() + room[k] <= free:
                part += room[k]
                chosen[k] = True
        return chosen


def _fill(gain: np.ndarray, room: np.ndarray, free: float) -> np.ndarray:
    """Places of the stores to keep: those that gain most for a byte, as long as they fit."""
    worth = np.flatnonzero(gain > 0)
    if room[worth].sum() <= free:
        return worth
    order = np.lexsort((worth, -room[worth], -gain[worth] / np.maximum(room[worth], 1.0)))
    kept, left = [], worth[order]
    while len(left):  # as many as fit one behind the other, then the others that still fit
        fit = int(np.searchsorted(np.cumsum(room[left]), free, "right"))
        kept.append(left[:fit])
        free -= float(room[left[:fit]].sum())
        left = left[fit:]
        left = left[room[left] <= free]
    return np.concatenate([worth[:0], *kept])
