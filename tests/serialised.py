"""Runs a grouped graph as its groups say, sub-batch by sub-batch, and counts what that moves.

Written from the definition of a group alone, so that it can judge both the choice of groups and
the formulas that estimate their traffic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ccnn.passes.batch_axis import BatchAxis, batch_axis
from ccnn.passes.graph import Graph, Group, Node
from ccnn.passes.ops import op_named
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
            self._block(group or Group((node.name,)), members)
        return self

    def _block(self, group: Group, nodes: list[Node]) -> None:
        size = group.sub_batch or self.axis.batch
        on_chip = {self.root[t] for t in group.resident}, {self.root[t] for t in group.kept}
        last = {self.root[t]: k for k, n in enumerate(nodes) for t in (*n.inputs, *n.outputs) if t}
        parts: dict[str, list[np.ndarray]] = {}
        chip: set[str] = set()
        for low in range(0, self.axis.batch, size):
            high = min(low + size, self.axis.batch)
            chip &= on_chip[1]  # what is resident goes when an iteration ends
            known: dict[str, np.ndarray] = {}
            for k, node in enumerate(nodes):
                self._node(node, known, parts, low, high)
                self._count(node, nodes, group, on_chip, chip, low, high)
                for store in [s for s in chip if s in on_chip[0] and last[s] <= k]:
                    chip.discard(store)
        for name, found in parts.items():
            self.values[name] = found[0] if len(found) == 1 else np.concatenate(found)

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
                assert low == 0 or kind == "free", f"{node.name} needs the whole batch"
                parts[name] = [value]
                if high == self.axis.batch:  # there is no second part: may be read at once
                    known[name] = value

    def _count(
        self, node: Node, nodes: list[Node], group: Group, on_chip: tuple[set[str], set[str]],
        chip: set[str], low: int, high: int,
    ) -> None:  # fmt: skip
        if node.op == "reshape":
            return
        resident, kept = on_chip
        for store in {self.root[i] for i in node.inputs if i}:
            if store in chip:
                continue
            samples = high - low if store in self.axis.rows else None
            self.read += self.bytes_of(store, samples)
            if store in resident | kept:
                chip.add(store)
        for store in {self.root[o] for o in node.outputs if o}:
            tensor = self.graph[store]
            if store in self.axis.rows:
                if store in resident:
                    chip.add(store)
                if store not in resident or self._needed_elsewhere(store, nodes):
                    self.written += self.bytes_of(store, high - low)
                continue
            final = high == self.axis.batch
            width = self.sizes.partial if tensor.dtype == "float" else self.sizes.accum
            if store in kept:
                chip.add(store)
                self.written += self.bytes_of(store) if final else 0
                continue
            self.read += tensor.size * width if low else 0
            self.written += self.bytes_of(store) if final else tensor.size * width
        self.most = max(self.most, self._room(chip, group, high - low))

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
        return room + sum(self.bytes_of(s, samples) for s in chip - kept)


def run_serialised(
    graph: Graph, values: Mapping[str, np.ndarray], sizes: ElementBytes | None = None
) -> SerialRun:
    """Run a grouped graph; all values of inputs, parameters, state and constants are given."""
    known = {k: np.asarray(v) for k, v in {**graph.data, **values}.items() if k in graph.tensors}
    return SerialRun(graph, known, sizes or ElementBytes()).run()
