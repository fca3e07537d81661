"""Checks that a graph keeps the rules of the language; each rule is one function below.

The docstring of a rule is what it says when it is broken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from ccnn.passes.graph import DTYPES, Graph, GraphError
from ccnn.passes.ops import op_named

Rule = Callable[[Graph], Iterator[str]]


def verify(graph: Graph) -> None:
    """Raise GraphError with every breach of every rule; do nothing when there is none."""
    for rule in RULES:  # a later rule may rely on the earlier ones
        breaches = [f"{rule.__doc__} ({where})" for where in rule(graph)]
        if breaches:
            more = f"\nand {len(breaches) - 5} more" if len(breaches) > 5 else ""
            raise GraphError(f"graph '{graph.name}': " + "\n".join(breaches[:5]) + more)


def names_agree(graph: Graph) -> Iterator[str]:
    """A tensor is filed under its own name and node names are unique."""
    for key, tensor in graph.tensors.items():
        if key != tensor.name:
            yield f"'{tensor.name}' is filed as '{key}'"
    seen: set[str] = set()
    for node in graph.nodes:
        if node.name in seen:
            yield f"two nodes are called '{node.name}'"
        seen.add(node.name)


def tensors_exist(graph: Graph) -> Iterator[str]:
    """Every tensor that is read, written, or named as output, gradient or update is declared."""
    for node in graph.nodes:
        for name in (*node.inputs, *node.outputs):
            if name and name not in graph.tensors:
                yield f"node '{node.name}' names '{name}'"
    for name in (*graph.needed, *graph.gradients, *graph.updates):
        if name not in graph.tensors:
            yield f"the graph names '{name}'"


def dtypes_exist(graph: Graph) -> Iterator[str]:
    """A tensor's dtype is float, accum, index or bytes, and no size is negative."""
    for tensor in graph.tensors.values():
        if tensor.dtype not in DTYPES or min(tensor.shape, default=0) < 0:
            yield f"'{tensor.name}' is {tensor.dtype} {tensor.shape}"


def written_once(graph: Graph) -> Iterator[str]:
    """Exactly the value tensors are written by a node, each by one."""
    writer: dict[str, str] = {}
    for node in graph.nodes:
        for name in filter(None, node.outputs):
            if name in writer:
                yield f"'{name}' is written by '{writer[name]}' and '{node.name}'"
            elif graph[name].role != "value":
                yield f"the {graph[name].role} '{name}' is written by '{node.name}'"
            writer[name] = node.name
    for tensor in graph.of_role("value"):
        if tensor.name not in writer:
            yield f"nothing writes '{tensor.name}'"


def written_before_read(graph: Graph) -> Iterator[str]:
    """A value is written before it is read."""
    known = {t.name for t in graph.tensors.values() if t.role != "value"}
    for node in graph.nodes:
        for name in node.inputs:
            if name and name not in known:
                yield f"node '{node.name}' reads '{name}' too early"
        known.update(node.outputs)


def attributes_frozen(graph: Graph) -> Iterator[str]:
    """Attributes are sorted by name, each once, and hold plain values."""
    for node in graph.nodes:
        keys = [k for k, _ in node.attrs]
        if keys != sorted(set(keys)):
            yield f"node '{node.name}' has attributes {keys}"
        for key, value in node.attrs:
            if not _plain(value):
                yield f"node '{node.name}' has {key} = {value!r}"


def _plain(value: object) -> bool:
    if isinstance(value, tuple):
        return all(_plain(v) for v in value)
    return type(value) in (int, float, bool, str)


def results_fit(graph: Graph) -> Iterator[str]:
    """The results of a node have the shapes and dtypes that its op says."""
    for node in graph.nodes:
        inputs = [graph[i] if i else None for i in node.inputs]
        expected = op_named(node.op).infer(node, inputs)
        if len(expected) != len(node.outputs):
            yield f"node '{node.name}' has {len(node.outputs)} of {len(expected)} results"
            continue
        for name, (shape, dtype) in zip(node.outputs, expected, strict=True):
            if name and (graph[name].shape, graph[name].dtype) != (tuple(shape), dtype):
                t = graph[name]
                yield f"'{name}' is {t.dtype} {t.shape}, '{node.name}' makes {dtype} {shape}"


def gradients_fit(graph: Graph) -> Iterator[str]:
    """A gradient has the shape of the tensor it is the gradient of."""
    for name, grad in graph.gradients.items():
        if graph[name].shape != graph[grad].shape:
            yield f"'{name}' {graph[name].shape}, its gradient '{grad}' {graph[grad].shape}"


def updates_fit(graph: Graph) -> Iterator[str]:
    """Only parameters and state are updated, by tensors of their shape and dtype."""
    for name, new in graph.updates.items():
        old, value = graph[name], graph[new]
        if old.role not in ("parameter", "state"):
            yield f"the {old.role} '{name}' is updated"
        elif (old.shape, old.dtype) != (value.shape, value.dtype):
            yield f"'{name}' is {old.dtype} {old.shape}, '{new}' {value.dtype} {value.shape}"


def data_fits(graph: Graph) -> Iterator[str]:
    """Data belongs to a constant, parameter or state tensor and has its shape."""
    for name, array in graph.data.items():
        tensor = graph.tensors.get(name)
        if tensor is None or tensor.role not in ("constant", "parameter", "state"):
            yield f"data is held for '{name}'"
        elif np.shape(array) != tensor.shape:
            yield f"'{name}' is {tensor.shape}, its data {np.shape(array)}"


def groups_are_runs(graph: Graph) -> Iterator[str]:
    """A group holds nodes that follow each other, and a node is in one group at most."""
    place = {node.name: k for k, node in enumerate(graph.nodes)}
    before = -1
    for k, group in enumerate(graph.groups):
        where = [place.get(name, -1) for name in group.nodes]
        if not where or -1 in where:
            yield f"group {k} has {group.nodes}"
        elif where != list(range(where[0], where[0] + len(where))):
            yield f"group {k}, from '{group.nodes[0]}' on, skips or turns around"
        elif where[0] <= before:
            yield f"group {k} begins with '{group.nodes[0]}' before the group ahead of it ends"
        before = max(before, *where, -1)


def groups_hold_what_they_use(graph: Graph) -> Iterator[str]:
    """A group's resident and kept tensors are used in it and named once; its sizes are >= 0."""
    nodes = {node.name: node for node in graph.nodes}
    for k, group in enumerate(graph.groups):
        if group.sub_batch < 0:
            yield f"group {k} has sub_batch {group.sub_batch}"
        if group.rows < 0:
            yield f"group {k} has rows {group.rows}"
        if group.carried and not group.rows:
            yield f"group {k} carries rows but has no bands"
        used = {t for name in group.nodes for t in (*nodes[name].inputs, *nodes[name].outputs)}
        named = [*group.resident, *group.kept]
        for name in dict.fromkeys(named):
            if name not in used or named.count(name) > 1:
                yield f"group {k} names '{name}'"


def groups_find_what_was_left(graph: Graph) -> Iterator[str]:
    """What a group leaves on chip the next group finds, from the other end of the batch; both
    touch it, loop over whole images and do not share them with other groups."""
    nothing: tuple[tuple[str, ...], int] = (), 0
    nodes = {node.name: node for node in graph.nodes}
    ends = zip((None, *graph.groups), (*graph.groups, None), strict=True)
    for k, (one, other) in enumerate(ends):
        left = (one.left, one.left_samples) if one else nothing
        if left != ((other.found, other.found_samples) if other else nothing):
            yield f"group {k} does not find what the group before leaves"
        if left == nothing or not one or not other:
            continue
        for group in (one, other):
            used = {t for n in group.nodes for t in (*nodes[n].inputs, *nodes[n].outputs)}
            if not used.issuperset(left[0]) or group.rows or group.halves or group.interleaved:
                yield f"group of '{group.nodes[0]}' cannot hand over {left[0]}"
        if one.left_samples < 1:
            yield f"group {k} finds {one.left_samples} samples"


RULES: tuple[Rule, ...] = (
    names_agree,
    tensors_exist,
    dtypes_exist,
    written_once,
    written_before_read,
    attributes_frozen,
    results_fit,
    gradients_fit,
    updates_fit,
    data_fits,
    groups_are_runs,
    groups_hold_what_they_use,
    groups_find_what_was_left,
)
"""In the order they are checked."""
