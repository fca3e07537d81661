"""Constant folding of operators that pick or set single positions: masks, position tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ccnn.compiler.reader.onnx_node import OnnxNode
from ccnn.compiler.reader.problems import Refusal

Operands = Sequence[Any]


def flat_places(shape: tuple[int, ...], places: np.ndarray, batch_dims: int) -> np.ndarray:
    """Where in a flattened tensor of that shape each index tuple (the last axis) points.

    An index tuple counts axes from `batch_dims` on; axes before are those of `places`.  What is
    pointed at may be a run: the positions of the first element of each are returned.

    Raises Refusal for what does not lie in the tensor.
    """
    if places.dtype.kind not in "iu" or not places.ndim or places.shape[-1] > len(shape):
        raise Refusal(f"its indices {list(places.shape)} do not fit {list(shape)}")
    lead, count = places.shape[:batch_dims], places.shape[-1]
    sizes = np.asarray(shape[batch_dims : batch_dims + count], np.int64)
    if lead != tuple(shape[:batch_dims]) or len(sizes) != count:
        raise Refusal(f"its indices {list(places.shape)} do not fit {list(shape)}")
    if np.any(places < -sizes) or np.any(places >= sizes):
        raise Refusal(f"its indices lie outside {list(shape)}")
    steps = [int(np.prod(shape[k + 1 :], dtype=np.int64)) for k in range(len(shape))]
    at = (places % sizes) @ np.asarray(steps[batch_dims : batch_dims + count], np.int64)
    for axis in range(batch_dims):
        ranks = [-1 if k == axis else 1 for k in range(at.ndim)]
        at = at + np.arange(shape[axis]).reshape(ranks) * steps[axis]
    return at


def along_axis(shape: tuple[int, ...], places: np.ndarray, axis: int) -> np.ndarray:
    """Where in a flattened tensor the elements lie that GatherElements picks."""
    if places.ndim != len(shape) or places.dtype.kind not in "iu":
        raise Refusal(f"its indices {list(places.shape)} do not fit {list(shape)}")
    full = [np.arange(n).reshape([-1 if k == a else 1 for k in range(places.ndim)])
            for a, n in enumerate(places.shape)]  # fmt: skip
    full[axis] = places
    tuples = np.stack(np.broadcast_arrays(*full), -1)
    return flat_places(shape, tuples, 0)


def gather_nd(node: OnnxNode, inputs: Operands) -> np.ndarray:
    """GatherND."""
    data, places = inputs
    at = flat_places(data.shape, places, node.int("batch_dims", 0))
    tail = data.shape[node.int("batch_dims", 0) + places.shape[-1] :]
    runs = at[..., None] + np.arange(int(np.prod(tail, dtype=np.int64)))
    return data.reshape(-1)[runs].reshape(*at.shape, *tail)


def gather_elements(node: OnnxNode, inputs: Operands) -> np.ndarray:
    """GatherElements."""
    data, places = inputs
    axis = node.int("axis", 0) % data.ndim
    return data.reshape(-1)[along_axis(data.shape, places, axis)]


def scatter_nd(node: OnnxNode, inputs: Operands) -> np.ndarray:
    """ScatterND; only without a reduction."""
    data, places, updates = inputs
    _no_reduction(node)
    at = flat_places(data.shape, places, 0)
    tail = int(np.prod(data.shape[places.shape[-1] :], dtype=np.int64))
    result = data.reshape(-1).copy()
    result[(at[..., None] + np.arange(tail)).reshape(-1)] = updates.reshape(-1)
    return result.reshape(data.shape)


def scatter_elements(node: OnnxNode, inputs: Operands) -> np.ndarray:
    """ScatterElements; only without a reduction."""
    data, places, updates = inputs
    _no_reduction(node)
    result = data.reshape(-1).copy()
    result[along_axis(data.shape, places, node.int("axis", 0) % data.ndim)] = updates
    return result.reshape(data.shape)


def _no_reduction(node: OnnxNode) -> None:
    if node.text("reduction", "none") != "none":
        raise Refusal(f"reduction='{node.text('reduction')}' is not supported")


def cum_sum(node: OnnxNode, inputs: Operands) -> np.ndarray:
    """CumSum."""
    data, axis = inputs[0], int(inputs[1].reshape(-1)[0])
    turned = np.flip(data, axis) if node.int("reverse", 0) else data
    total = np.cumsum(turned, axis, dtype=data.dtype)
    total = total - turned if node.int("exclusive", 0) else total
    return np.flip(total, axis) if node.int("reverse", 0) else total


def trilu(node: OnnxNode, inputs: Operands) -> np.ndarray:
    """Trilu."""
    k = int(inputs[1].reshape(-1)[0]) if len(inputs) > 1 and inputs[1] is not None else 0
    return np.triu(inputs[0], k) if node.int("upper", 1) else np.tril(inputs[0], k)


def clip(node: OnnxNode, inputs: Operands) -> np.ndarray:
    """Clip; bounds from attributes or inputs."""
    low, high = ([*inputs[1:], None, None])[:2]
    low = node.attrs.get("min", low)
    high = node.attrs.get("max", high)
    result = inputs[0] if low is None else np.maximum(inputs[0], low)
    return np.asarray(result if high is None else np.minimum(result, high), inputs[0].dtype)
