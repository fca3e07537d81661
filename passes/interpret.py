"""Runs a graph with numpy: the oracle that every pass and every program is checked against."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import numpy as np

from ccnn.passes.graph import Graph, GraphError, Node, Tensor
from ccnn.passes.ops import op_named

_WHOLE = {"index": np.dtype(np.int64), "bytes": np.dtype(np.uint8)}


def interpret(
    graph: Graph,
    values: Mapping[str, np.ndarray],
    dtype: np.dtype | type = np.float64,
    *,
    keep: Collection[str] | None = None,
    step: int = 0,
    disturb: Callable[[Tensor, np.ndarray], np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """The value of every tensor, by name; 'float' and 'accum' are both computed in `dtype`.

    `values` gives the inputs and may replace constants, parameters and state, which else come
    from `graph.data`.  With `keep`, only those tensors are returned and the others are freed as
    soon as nothing reads them.  `step` counts training steps for `random`.  `disturb` replaces
    each result as it is made, to see how far an error carries.  Raises GraphError when a value
    is missing or has the wrong shape.
    """
    known = _start(graph, values, np.dtype(dtype))
    last = _last_use(graph) if keep is not None else {}
    for position, node in enumerate(graph.nodes):
        for name, value in zip(node.outputs, _run(node, known, step), strict=True):
            if name:
                fitted = _fit(graph[name], value, np.dtype(dtype), f"node '{node.name}'")
                known[name] = disturb(graph[name], fitted) if disturb else fitted
        for name in {*node.inputs, *node.outputs}:
            if keep is not None and name not in keep and last.get(name, position) <= position:
                known.pop(name, None)
    return known if keep is None else {k: known[k] for k in keep}


def after_step(graph: Graph, results: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The parameters and state after a step: feed it to `interpret` as values of the next."""
    return {name: results[new] for name, new in graph.updates.items()}


def _start(
    graph: Graph, values: Mapping[str, np.ndarray], dtype: np.dtype
) -> dict[str, np.ndarray]:
    unknown = [name for name in values if name not in graph.tensors]
    if unknown:
        raise GraphError(f"a value is given for '{unknown[0]}', which is no tensor of the graph")
    known: dict[str, np.ndarray] = {}
    for tensor in graph.of_role("input", "parameter", "state", "constant"):
        value = values.get(tensor.name, graph.data.get(tensor.name))
        if value is None:
            raise GraphError(f"the {tensor.role} '{tensor.name}' {tensor.shape} has no value")
        known[tensor.name] = _fit(tensor, value, dtype, f"the {tensor.role}")
    return known


def _fit(tensor: Tensor, value: np.ndarray, dtype: np.dtype, source: str) -> np.ndarray:
    array = np.asarray(value)
    if array.shape != tensor.shape:
        raise GraphError(
            f"'{tensor.name}' has shape {tensor.shape}, {source} gives it {array.shape}"
        )
    return array.astype(_WHOLE.get(tensor.dtype, dtype), copy=False)


def _run(node: Node, known: Mapping[str, np.ndarray], step: int) -> list[np.ndarray]:
    if node.attr("seed") is not None:
        node = node.with_attrs(step=step)
    return op_named(node.op).reference(node, [known[i] if i else None for i in node.inputs])


def _last_use(graph: Graph) -> dict[str, int]:
    return {name: k for k, node in enumerate(graph.nodes) for name in node.inputs if name}
