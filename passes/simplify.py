"""Pass `simplify`: work that need not be done at run time is not done.

before:  %a: float[4] = reshape(%x) {shape=(4,)}  # r1 forward
         %b: float[2, 2] = reshape(%a) {shape=(2, 2)}  # r2 forward
after:   %b: float[2, 2] = reshape(%x) {shape=(2, 2)}  # r2 forward

Equal constants become one, maps and reshapes of constants become constants, a reshape reads the
source of the reshape before it, a reshape that changes nothing or was made before goes, maps to
single numbers that say the same are done once, and what nobody needs is not done.  Larger maps
that say the same stay: to keep a tensor may cost more than to compute it again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from ccnn.passes.graph import Graph, Node, Tensor
from ccnn.passes.ops import op_named
from ccnn.passes.prune import live_nodes


@dataclass(frozen=True)
class Simplify:
    """Folds constants, merges equal ones, shortens chains of reshapes and drops dead nodes."""

    name: ClassVar[str] = "simplify"
    most_folded: int = 1 << 20
    """Constants with more elements are left to be computed in the step."""

    def __call__(self, graph: Graph) -> Graph:
        """The simplified graph."""
        graph = _fold_constants(_merge_constants(graph), self.most_folded)
        graph = _shorten_reshapes(_merge_constants(graph))
        return drop_dead(_merge_single_numbers(graph))


def drop_dead(graph: Graph) -> Graph:
    """The graph without nodes and constants that nothing needs."""
    graph = graph.with_nodes(live_nodes(graph))
    used = {name for node in graph.nodes for name in node.inputs} | graph.needed
    kept = {k: t for k, t in graph.tensors.items() if t.role != "constant" or k in used}
    data = {k: v for k, v in graph.data.items() if k in kept}
    return replace(graph, tensors=kept, data=data)


def _renamed(nodes: Iterable[Node], names: dict[str, str]) -> list[Node]:
    return [replace(n, inputs=tuple(names.get(i, i) for i in n.inputs)) for n in nodes]


def _merge_constants(graph: Graph) -> Graph:
    first: dict[object, str] = {}
    names: dict[str, str] = {}
    for tensor in graph.of_role("constant"):
        if tensor.name not in graph.data:
            continue
        value = np.ascontiguousarray(graph.data[tensor.name])
        key = (tensor.dtype, tensor.shape, value.dtype.str, value.tobytes())
        names[tensor.name] = first.setdefault(key, tensor.name)
    return graph.with_nodes(_renamed(graph.nodes, names))


def _fold_constants(graph: Graph, most: int) -> Graph:
    """Maps and reshapes whose inputs are all constants become constants."""
    known = {t.name: graph.data[t.name] for t in graph.of_role("constant") if t.name in graph.data}
    tensors, nodes = dict(graph.tensors), []
    for node in graph.nodes:
        ready = (
            node.op in ("map", "reshape") and node.inputs and all(i in known for i in node.inputs)
        )
        needed = any(o in graph.needed for o in node.outputs)
        if not ready or needed or any(graph[o].size > most for o in node.outputs):
            nodes.append(node)
            continue
        arrays = [_precise(known[i]) for i in node.inputs]
        for name, value in zip(
            node.outputs, op_named(node.op).reference(node, arrays), strict=True
        ):
            old = graph[name]
            tensors[name] = Tensor(name, old.shape, old.dtype, "constant")
            known[name] = value.astype({"index": np.int32, "bytes": np.uint8}.get(old.dtype, float))
    data = {**graph.data, **known}
    return replace(graph, nodes=tuple(nodes), tensors=tensors, data=data)


def _precise(value: np.ndarray) -> np.ndarray:
    return value.astype(np.float64) if value.dtype.kind == "f" else value


def _shorten_reshapes(graph: Graph) -> Graph:
    source: dict[str, str] = {}
    seen: dict[tuple[str, tuple[int, ...]], str] = {}
    names: dict[str, str] = {}
    nodes = []
    for node in graph.nodes:
        node = replace(node, inputs=tuple(names.get(i, i) for i in node.inputs))
        if node.op == "reshape":
            (result,), (x,) = node.outputs, node.inputs
            x = source.get(x, x)
            key = (x, graph[result].shape)
            same = x if graph[x].shape == graph[result].shape else seen.get(key)
            if same is not None and result not in graph.needed:
                names[result] = same
                continue
            source[result] = x
            seen.setdefault(key, result)
            node = replace(node, inputs=(x,))
        nodes.append(node)
    return graph.with_nodes(nodes)


def _merge_single_numbers(graph: Graph) -> Graph:
    """Maps to one element with the same inputs and expressions are computed once."""
    first: dict[object, Node] = {}
    names: dict[str, str] = {}
    nodes = []
    for node in graph.nodes:
        node = replace(node, inputs=tuple(names.get(i, i) for i in node.inputs))
        if node.op == "map" and all(graph[o].size == 1 for o in node.outputs):
            same = first.setdefault((node.inputs, node.attrs), node)
            if same is not node and not any(o in graph.needed for o in node.outputs):
                names.update(zip(node.outputs, same.outputs, strict=True))
                continue
        nodes.append(node)
    return graph.with_nodes(nodes)
