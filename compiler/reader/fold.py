"""Constant folding: ONNX nodes whose inputs are all known, evaluated with numpy.

Only what exporters put into shape arithmetic and constants is here; results larger than
`MAX_FOLDED` elements are refused, so a damaged file cannot fill the memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx

from ccnn.compiler.reader.fold_places import (
    clip,
    cum_sum,
    gather_elements,
    gather_nd,
    scatter_elements,
    scatter_nd,
    trilu,
)
from ccnn.compiler.reader.onnx_node import OnnxNode
from ccnn.compiler.reader.problems import Refusal

MAX_FOLDED = 1 << 24

Operands = Sequence[Any]
"""Arrays, None for an absent one; `fold` lets None through only where an operand is optional."""

Fold = Callable[[OnnxNode, Operands], "np.ndarray | tuple[np.ndarray, ...]"]


def check_size(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape as a tuple; raises Refusal when a constant of that shape is too large."""
    shape = tuple(int(d) for d in shape)
    if any(d < 0 for d in shape) or len(shape) > 32:
        raise Refusal(f"its constant result would have the shape {list(shape)}")
    if math.prod(shape) > MAX_FOLDED:
        raise Refusal(
            f"its constant result would have {math.prod(shape):.3g} elements {list(shape)}",
            "the file is damaged, or a shape was meant otherwise",
        )
    return shape


def _numpy(function: Callable[..., np.ndarray]) -> Fold:
    def run(node: OnnxNode, inputs: Operands) -> np.ndarray:
        arrays = [a for a in inputs if a is not None]
        check_size(np.broadcast_shapes(*(a.shape for a in arrays)))
        with np.errstate(all="ignore"):
            return np.asarray(function(*arrays))

    return run


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if a.dtype.kind in "iu":
        if not np.all(b):
            raise Refusal("it divides by zero")
        return np.trunc(a / b).astype(a.dtype) if np.any((a < 0) | (b < 0)) else a // b
    return a / b


def _power(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.power(a.astype(np.float64), b).astype(a.dtype)


def _many(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    def run(*arrays: np.ndarray) -> np.ndarray:
        total = arrays[0]
        for a in arrays[1:]:
            total = function(total, a)
        return total

    return run


def given_ints(node: OnnxNode, inputs: Operands, name: str, position: int):
    """Integers from an attribute (older operator sets) or a constant input; None if in neither."""
    if name in node.attrs:
        return node.ints(name)
    if position < len(inputs) and inputs[position] is not None:
        return tuple(int(v) for v in np.asarray(inputs[position]).reshape(-1))
    return None


def _constant(node: OnnxNode, inputs: Operands) -> np.ndarray:
    for name, dtype in (
        ("value", None), ("value_float", np.float32), ("value_floats", np.float32),
        ("value_int", np.int64), ("value_ints", np.int64),
    ):  # fmt: skip
        if name in node.attrs:
            value = node.attrs[name]
            if name == "value" and not isinstance(value, np.ndarray):
                raise Refusal("its value is no tensor")
            return np.asarray(value, dtype)
    raise Refusal("it holds no number (text and sparse constants are not supported)")


def _constant_of_shape(node: OnnxNode, inputs: Operands) -> np.ndarray:
    fill = node.attrs.get("value", np.zeros(1, np.float32))
    if not isinstance(fill, np.ndarray) or fill.size != 1:
        raise Refusal("its value should be a tensor of one element")
    return np.full(check_size(_vector(inputs[0])), fill.reshape(-1)[0], fill.dtype)


def _vector(array: np.ndarray | None) -> tuple[int, ...]:
    if array is None or array.dtype.kind not in "iu" or array.ndim > 1:
        raise Refusal("it needs a list of integers")
    return tuple(int(v) for v in array.reshape(-1))


def _cast_type(code: int) -> np.dtype:
    known = onnx.TensorProto.DataType.values()
    if code not in known or code in (0, onnx.TensorProto.STRING):
        raise Refusal(f"it casts to the unknown or unsupported type {code}")
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(code))


def _cast(node: OnnxNode, inputs: Operands) -> np.ndarray:
    with np.errstate(all="ignore"):
        return inputs[0].astype(_cast_type(node.int("to")))


def _range(node: OnnxNode, inputs: Operands) -> np.ndarray:
    start, limit, delta = (a.reshape(-1)[0] for a in inputs)
    if not delta:
        raise Refusal("its step is 0")
    check_size((max(0, math.ceil((float(limit) - float(start)) / float(delta))),))
    return np.arange(start, limit, delta, dtype=inputs[0].dtype)


def _expand(node: OnnxNode, inputs: Operands) -> np.ndarray:
    shape = check_size(np.broadcast_shapes(inputs[0].shape, check_size(_vector(inputs[1]))))
    return np.broadcast_to(inputs[0], shape)


def _tile(node: OnnxNode, inputs: Operands) -> np.ndarray:
    repeats = _vector(inputs[1])
    if len(repeats) != inputs[0].ndim:
        raise Refusal("it needs one repeat for each axis")
    check_size([d * r for d, r in zip(inputs[0].shape, repeats, strict=True)])
    return np.tile(inputs[0], repeats)


def _axes_of(node: OnnxNode, inputs: Operands) -> tuple[int, ...] | None:
    return given_ints(node, inputs, "axes", 1)


def _unsqueeze(node: OnnxNode, inputs: Operands) -> np.ndarray:
    axes = _axes_of(node, inputs)
    if axes is None:
        raise Refusal("it has no axes")
    return np.expand_dims(inputs[0], axes)


def _slice(node: OnnxNode, inputs: Operands) -> np.ndarray:
    data = inputs[0]
    starts = given_ints(node, inputs, "starts", 1)
    ends = given_ints(node, inputs, "ends", 2)
    if data is None or starts is None or ends is None or len(starts) != len(ends):
        raise Refusal("its starts and ends do not match")
    axes = given_ints(node, inputs, "axes", 3) or tuple(range(len(starts)))
    steps = given_ints(node, inputs, "steps", 4) or (1,) * len(starts)
    cut = [slice(None)] * data.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        stop = None if step < 0 and end < -data.shape[axis] else end
        cut[axis] = slice(start, stop, step)
    return data[tuple(cut)]


def _reshape(node: OnnxNode, inputs: Operands) -> np.ndarray:
    shape = given_ints(node, inputs, "shape", 1)
    if shape is None:
        raise Refusal("it has no shape")
    keep = not node.attrs.get("allowzero", 0)
    data = inputs[0]
    return data.reshape([data.shape[k] if d == 0 and keep else d for k, d in enumerate(shape)])


def _split(node: OnnxNode, inputs: Operands) -> tuple[np.ndarray, ...]:
    whole, axis = np.asarray(inputs[0]), node.int("axis", 0)
    sizes = given_ints(node, inputs, "split", 1)
    if sizes is None:
        return tuple(np.array_split(whole, len(node.outputs), axis))
    return tuple(np.split(whole, np.cumsum(sizes)[:-1], axis))


def _reduce(function: Callable[..., np.ndarray]) -> Fold:
    def run(node: OnnxNode, inputs: Operands) -> np.ndarray:
        axes = _axes_of(node, inputs) or None
        if axes is None and node.attrs.get("noop_with_empty_axes"):
            return inputs[0]
        return np.asarray(function(inputs[0], axis=axes, keepdims=bool(node.int("keepdims", 1))))

    return run


def _gather(node: OnnxNode, inputs: Operands) -> np.ndarray:
    axis = node.int("axis", 0)
    check_size((*inputs[0].shape[:axis], *inputs[1].shape, *inputs[0].shape[axis + 1 :]))
    return np.take(inputs[0], inputs[1], axis)


FOLDS: dict[str, Fold] = {
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Cast": _cast,
    "CastLike": lambda n, i: i[0].astype(i[1].dtype),
    "Range": _range,
    "Expand": _expand,
    "Tile": _tile,
    "Unsqueeze": _unsqueeze,
    "Squeeze": lambda n, i: np.squeeze(i[0], _axes_of(n, i)),
    "Slice": _slice,
    "Reshape": _reshape,
    "Flatten": lambda n, i: i[0].reshape(math.prod(i[0].shape[: n.int("axis", 1)]), -1),
    "Split": _split,
    "Gather": _gather,
    "GatherND": gather_nd,
    "GatherElements": gather_elements,
    "ScatterND": scatter_nd,
    "ScatterElements": scatter_elements,
    "CumSum": cum_sum,
    "Trilu": trilu,
    "Clip": clip,
    "Transpose": lambda n, i: np.transpose(i[0], n.ints("perm") if "perm" in n.attrs else None),
    "Concat": lambda n, i: np.concatenate(list(i), n.int("axis")),
    "ReduceProd": _reduce(np.prod),
    "ReduceSum": _reduce(np.sum),
    "ReduceMax": _reduce(np.max),
    "ReduceMin": _reduce(np.min),
    "ReduceMean": _reduce(np.mean),
    "Identity": lambda n, i: i[0],
    "Add": _numpy(np.add),
    "Sub": _numpy(np.subtract),
    "Mul": _numpy(np.multiply),
    "Div": _numpy(_divide),
    "Mod": _numpy(np.mod),
    "Pow": _numpy(_power),
    "Neg": _numpy(np.negative),
    "Abs": _numpy(np.abs),
    "Sqrt": _numpy(np.sqrt),
    "Exp": _numpy(np.exp),
    "Log": _numpy(np.log),
    "Sin": _numpy(np.sin),
    "Cos": _numpy(np.cos),
    "Reciprocal": _numpy(np.reciprocal),
    "Floor": _numpy(np.floor),
    "Ceil": _numpy(np.ceil),
    "Round": _numpy(np.round),
    "Sign": _numpy(np.sign),
    "Min": _numpy(_many(np.minimum)),
    "Max": _numpy(_many(np.maximum)),
    "Sum": _numpy(_many(np.add)),
    "Equal": _numpy(np.equal),
    "Greater": _numpy(np.greater),
    "GreaterOrEqual": _numpy(np.greater_equal),
    "Less": _numpy(np.less),
    "LessOrEqual": _numpy(np.less_equal),
    "Not": _numpy(np.logical_not),
    "And": _numpy(np.logical_and),
    "Or": _numpy(np.logical_or),
    "Where": _numpy(np.where),
}


_OPTIONAL = ("Slice", "Split", "Squeeze", "ReduceProd", "ReduceSum", "ReduceMax", "ReduceMin",
             "ReduceMean", "Clip", "Trilu")  # fmt: skip


def fold(node: OnnxNode, inputs: Operands) -> tuple[np.ndarray, ...]:
    """The results of a node whose inputs are known; raises Refusal when it makes no sense."""
    absent = [k for k, a in enumerate(inputs) if a is None]
    if not inputs and node.op != "Constant":
        raise Refusal("it has no inputs")
    if 0 in absent or (absent and node.op not in _OPTIONAL):
        raise Refusal(f"input {absent[0]} is missing")
    results = FOLDS[node.op](node, inputs)
    return results if isinstance(results, tuple) else (results,)
