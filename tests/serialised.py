"""Runs a grouped graph as its groups say, sub-batch by sub-batch, and counts what that moves.

Written from the definition of a group alone, so that it can judge both the choice of groups and
the formulas that estimate their traffic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from ccnn.passes.batch_axis import BatchAxis, batch_axis
from ccnn.passes.graph import Graph, Group, Node
from ccnn.passes.ops import op_named
from ccnn.passes.row_bands import RowBands, row_bands
from ccnn.passes.steps import ElementBytes, storage_roots

COMBINE = {"sum": np.add, "max": np.maximum, "min": np.minimum}


def on_part(node: Node, axis: BatchAxis, samples: int) -> Node:
    """The node as it runs on so many samples."""
    rows = axis.rows.get(node.outputs[0])
    if rows is None:
        return node
    changed = {k: v for k, v in node.attributes.items() if k in ("shape", "sizes")}
    return node.with_attrs(**{k: (int(samples * rows), *v[1:]) for k, v in changed.items()})


@dataclass
class SerialRun:
    """One step: values by tensor, bytes moved, and the most that was resident at once."""

    graph: Graph
    values: dict[str, np.ndarray]
    sizes: ElementBytes
    read: int = 0
    written: int = 0
    most: float = 0.0
    axis: BatchAxis = field(init=False)
    root: dict[str, str] = field(init=False)
    lies: dict[str, range] = field(default_factory=dict)
    """Stores that the group before left in the buffer, and the samples of them."""
    found: set[str] = field(default_factory=set)
    """Stores whose samples of this iteration lie where a group finds or leaves them."""
    stays: set[str] = field(default_factory=set)
    """Stores whose samples of this iteration stay for the next group."""
    held: float = 0.0
    """Bytes of all that is found and left."""
    ends: tuple[bool, bool] = (True, True)
    """Whether this is the first iteration, and the last."""

    def __post_init__(self) -> None:
        self.axis, self.root = batch_axis(self.graph), storage_roots(self.graph)

    def bytes_of(self, store: str, samples: int | None = None) -> float:
        t = self.graph[store]
        whole = t.size * self.sizes.of(t.dtype)
        return whole if samples is None else whole * samples / self.axis.batch

    def run(self) -> SerialRun:
        """Everything, in order; nodes outside groups run on the whole batch."""
        left = {n.name: n for n in self.graph.nodes}
        for node in self.graph.nodes:
            group = self.graph.group_of.get(node.name)
            if node.name not in left:
                continue
            members = [left.pop(n) for n in (group.nodes if group else (node.name,))]
            if group and group.rows:
                BandRun(
                    self, group, row_bands(self.graph, members, group.rows, group.carried)
                ).run()
            else:
                self._block(group or Group((node.name,)), members)
        return self

    def _block(self, group: Group, nodes: list[Node]) -> None:
        size = group.sub_batch or self.axis.batch
        on_chip = {self.root[t] for t in group.resident}, {self.root[t] for t in group.kept}
        last = {self.root[t]: k for k, n in enumerate(nodes) for t in (*n.inputs, *n.outputs) if t}
        parts: dict[str, list[np.ndarray]] = {}
        chip: set[str] = set()
        ways = self._ways(group, size)
        for low, high in ways:
            chip &= on_chip[1]  # what is resident goes when an iteration ends
            self.ends = (low, high) == ways[0], (low, high) == ways[-1]
            self._pass_on(group, low, high)
            known: dict[str, np.ndarray] = {}
            for k, node in enumerate(nodes):
                self._node(node, known, parts, low, high)
                self._count(node, nodes, group, on_chip, chip, low, high)
                for store in [s for s in chip if s in on_chip[0] and last[s] <= k]:
                    chip.discard(store)
        if group in self.graph.groups:
            self.lies = {self.root[t]: self._zones(group)[1] for t in group.left}
        for name, found in parts.items():
            found = found[::-1] if group.backwards else found
            self.values[name] = found[0] if len(found) == 1 else np.concatenate(found)

    def _zones(self, group: Group) -> tuple[range, range]:
        """The samples that a group finds, and those that it leaves."""
        batch, found, left = self.axis.batch, group.found_samples, group.left_samples
        if group.backwards:
            return range(batch - found, batch), range(left)
        return range(found), range(batch - left, batch)

    def _ways(self, group: Group, size: int) -> list[tuple[int, int]]:
        """The iterations in their order: none is torn by what is found or left."""
        marks = sorted({0, self.axis.batch, *(e for z in self._zones(group) for e in zone_ends(z))})
        if group.backwards:
            ways = [
                (max(high - n - size, low), high - n)
                for low, high in pairwise(marks)
                for n in range(0, high - low, size)
            ]
            return sorted(ways, reverse=True)
        return [
            (low + n, min(low + n + size, high))
            for low, high in pairwise(marks)
            for n in range(0, high - low, size)
        ]

    def _pass_on(self, group: Group, low: int, high: int) -> None:
        """What of the samples of an iteration lies in the buffer before and after the group."""
        found, left = self._zones(group)
        self.found = {self.root[t] for t in group.found} if low in found else set()
        self.stays = {self.root[t] for t in group.left} if low in left else set()
        for t in group.found:
            assert self.lies[self.root[t]] == found, f"{t} was not left there"
        self.held = sum(
            self.bytes_of(self.root[t], samples)
            for names, samples in (
                (group.found, sum(s >= low if not group.backwards else s < high for s in found)),
                (group.left, sum(s < high if not group.backwards else s >= low for s in left)),
            )
            for t in names
        )

    def _node(
        self, node: Node, known: dict[str, np.ndarray], parts: dict[str, list[np.ndarray]],
        low: int, high: int,
    ) -> None:  # fmt: skip
        inputs = []
        for name in node.inputs:
            rows = self.axis.rows.get(name)
            if not name or name in known:
                inputs.append(known[name] if name else None)
            elif rows is None:
                inputs.append(self.values[name])
            else:
                inputs.append(self.values[name][int(low * rows) : int(high * rows)])
        results = op_named(node.op).reference(on_part(node, self.axis, high - low), inputs)
        kind = self.axis.kinds[node.name]
        for name, value in zip(node.outputs, results, strict=True):
            if name in self.axis.rows and kind == "keeps":
                known[name] = value
                parts.setdefault(name, []).append(value)
            elif kind == "sums" and name in parts:
                parts[name] = [COMBINE[node.attr("kind", "sum")](parts[name][0], value)]
            else:
                assert self.ends[0] or kind == "free", f"{node.name} needs the whole batch"
                parts[name] = [value]
                if self.ends[1]:  # there is no second part: may be read at once
                    known[name] = value

    def _count(
        self, node: Node, nodes: list[Node], group: Group, on_chip: tuple[set[str], set[str]],
        chip: set[str], low: int, high: int,
    ) -> None:  # fmt: skip
        if node.op == "reshape":
            return
        resident, kept = on_chip
        for store in {self.root[i] for i in node.inputs if i}:
            if store in chip or store in self.found:
                continue
            samples = high - low if store in self.axis.rows else None
            self.read += self.bytes_of(store, samples)
            if store in self.stays:
                self.found.add(store)
            elif store in resident | kept:
                chip.add(store)
        for store in {self.root[o] for o in node.outputs if o}:
            tensor = self.graph[store]
            if store in self.axis.rows:
                if store in self.stays:
                    self.found.add(store)
                    readers = [*nodes, *self._members(self._behind(group))]
                elif store in resident:
                    chip.add(store)
                    readers = nodes
                if store not in resident or self._needed_elsewhere(store, readers):
                    self.written += self.bytes_of(store, high - low)
                continue
            first, final = self.ends
            width = self.sizes.partial if tensor.dtype == "float" else self.sizes.accum
            if store in kept:
                chip.add(store)
                self.written += self.bytes_of(store) if final else 0
                continue
            self.read += 0 if first else tensor.size * width
            self.written += self.bytes_of(store) if final else tensor.size * width
        self.most = max(self.most, self._room(chip, group, high - low))

    def _behind(self, group: Group) -> Group:
        """The next group."""
        return self.graph.groups[self.graph.groups.index(group) + 1]

    def _members(self, group: Group) -> list[Node]:
        return [n for n in self.graph.nodes if n.name in group.nodes]

    def _needed_elsewhere(self, store: str, nodes: list[Node]) -> bool:
        inside = {n.name for n in nodes}
        readers = {
            n.name for n in self.graph.nodes if n.op != "reshape"
            if any(self.root[i] == store for i in n.inputs if i)
        }  # fmt: skip
        return bool(readers - inside) or any(self.root[t] == store for t in self.graph.needed)

    def _room(self, chip: set[str], group: Group, samples: int) -> float:
        """What is on chip now, and all that is kept, wherever the iteration stands."""
        kept = {self.root[t] for t in group.kept}
        room = 0.0
        for store in kept:
            made = self.graph.producer.get(store)
            tensor = self.graph[store]
            width = self.sizes.partial if tensor.dtype == "float" else self.sizes.accum
            inside = made is not None and made.name in group.nodes
            room += tensor.size * width if inside else self.bytes_of(store)
        return room + self.held + sum(self.bytes_of(s, samples) for s in chip - kept)


def zone_ends(zone: range) -> tuple[int, ...]:
    """Where a stretch of samples begins and ends."""
    return (zone.start, zone.stop) if zone else ()


@dataclass
class BandRun:
    """A group that runs by rows: what a band computes comes from the rows it has and no others."""

    step: SerialRun
    group: Group
    bands: RowBands
    first: bool = True
    """This is the first band of the first sample."""
    final: bool = False
    above: dict[str, np.ndarray] = field(default_factory=dict)
    """Rows carried over from the band before."""

    def run(self) -> None:
        """All bands of all samples."""
        batch, sums = self.step.axis.batch, {}
        for sample in range(batch):
            for band in range(self.bands.count):
                self.final = sample == batch - 1 and band == self.bands.count - 1
                self._band(sample, band, sums)
                self.first = False
        self.step.values |= sums

    def _band(self, sample: int, band: int, sums: dict[str, np.ndarray]) -> None:
        needs, known, fetched = self.bands.needs(band), {}, set()
        carried = self.bands.carries(band)
        ahead = self.bands.carries(band + 1) if band + 1 < self.bands.count else {}
        last = {t: k for k, n in enumerate(self.bands.nodes) for t in (*n.inputs, *n.outputs)}
        for k, node in enumerate(self.bands.nodes):
            part = self.bands.parts(band)[node.name]
            reads = [self._read(t, part.views.get(t), needs, known, sample) for t in node.inputs]
            for t in dict.fromkeys(node.inputs):
                self._count_read(t, part.views.get(t), needs, known, fetched)
            made = op_named(node.op).reference(on_part(part.node, self.step.axis, 1), reads)
            for t, value in zip(node.outputs, made, strict=True):
                if self.bands.works[node.name].sums:
                    sums[t] = sums[t] + value if t in sums else value
                    self._count_sum(t)
                    continue
                rows = self.bands.makes(band)[t]
                assert value.shape[2] == rows[1] - rows[0]
                unknown = np.nan if value.dtype.kind == "f" else 0
                known[t] = np.full_like(value, unknown, shape=self._there(value, needs[t]))
                known[t][:, :, rows[0] - needs[t][0] : rows[1] - needs[t][0]] = value
                if t in carried:
                    assert carried[t][1] == rows[0]
                    at = carried[t][0] - needs[t][0]
                    known[t][:, :, at : rows[0] - needs[t][0]] = self.above[t]
                if t in ahead:
                    low, high = (r - needs[t][0] for r in ahead[t])
                    assert low >= 0
                    self.above[t] = known[t][:, :, low:high]
                self._keep(t, self.bands.publishes(t, band), needs[t][0], known[t], sample)
            there = [t for t in (*known, *fetched) if t in self.group.resident and last[t] >= k]
            self.step.most = max(self.step.most, self._room(there, needs))

    @staticmethod
    def _there(value, needs):
        return (*value.shape[:2], needs[1] - needs[0], *value.shape[3:])

    def _read(self, t, rows, needs, known, sample):
        if t in known:
            return known[t][:, :, rows[0] - needs[t][0] : rows[1] - needs[t][0]]
        value = self.step.values[t]
        value = value[sample : sample + 1] if t in self.step.axis.rows else value
        return value[:, :, rows[0] : rows[1]] if rows else value

    def _part(self, t: str, rows: tuple[int, int] | None) -> float:
        whole = self.step.bytes_of(t, 1 if t in self.step.axis.rows else None)
        return whole * (rows[1] - rows[0]) / self.bands.height(t) if rows else whole

    def _count_read(self, t, rows, needs, known, fetched) -> None:
        if t in self.group.kept:
            self.step.read += self._part(t, None) if self.first and t not in fetched else 0
            fetched.add(t)
        elif t not in self.group.resident:
            self.step.read += self._part(t, rows)
        elif t not in known and t not in fetched:
            self.step.read += self._part(t, needs.get(t))
            fetched.add(t)

    def _count_sum(self, t: str) -> None:
        tensor, sizes = self.step.graph[t], self.step.sizes
        partial = tensor.size * (sizes.partial if tensor.dtype == "float" else sizes.accum)
        kept = t in self.group.kept
        self.step.read += 0 if kept or self.first else partial
        if self.final:
            self.step.written += self.step.bytes_of(t)
        else:
            self.step.written += 0 if kept else partial

    def _keep(self, t, owned, top, value, sample) -> None:
        whole = self.step.values.setdefault(t, np.zeros(self.step.graph[t].shape))
        whole[sample, :, slice(*owned)] = value[0, :, owned[0] - top : owned[1] - top]
        if t not in self.group.resident or self.step._needed_elsewhere(t, self.bands.nodes):
            self.step.written += self._part(t, owned)
        if t not in self.group.resident:
            assert owned == (top, top + value.shape[2]), f"two bands write rows of {t}"

    def _room(self, there: list[str], needs) -> float:
        room = sum(self._part(t, needs.get(t)) for t in there)
        room += sum(self._part(t, (0, n)) for t, n in self.bands.carried.items())
        for t in self.group.kept:
            tensor, sizes = self.step.graph[t], self.step.sizes
            width = sizes.partial if tensor.dtype == "float" else sizes.accum
            inside = any(t in n.outputs for n in self.bands.nodes)
            room += tensor.size * width if inside else self.step.bytes_of(t)
        return room


def run_serialised(
    graph: Graph, values: Mapping[str, np.ndarray], sizes: ElementBytes | None = None
) -> SerialRun:
    """Run a grouped graph; all values of inputs, parameters, state and constants are given."""
    known = {k: np.asarray(v) for k, v in {**graph.data, **values}.items() if k in graph.tensors}
    return SerialRun(graph, known, sizes or ElementBytes()).run()
