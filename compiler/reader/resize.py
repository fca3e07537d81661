"""Resize and Upsample: along each axis a linear map with constant coefficients.

The matrix of an axis holds, for each output position, the weights of the input positions it
reads; nearest, linear and cubic differ only in these.  Nearest with a whole factor is written
as an expansion, which costs no multiplication.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ccnn.compiler.reader.context import Context, Known, Live
from ccnn.compiler.reader.elementwise import Translate
from ccnn.compiler.reader.norms import axis_of
from ccnn.compiler.reader.problems import Refusal
from ccnn.compiler.reader.tensors import MAX_ELEMENTS


def coordinate(mode: str, place: float, scale: float, size: float, result: float) -> float:
    """Where in the input an output position lies (ONNX Resize, coordinate_transformation_mode)."""
    match mode:
        case "asymmetric":
            return place / scale
        case "align_corners":
            return place * (size - 1) / (result - 1) if result > 1 else 0.0
        case "pytorch_half_pixel":
            return (place + 0.5) / scale - 0.5 if result > 1 else 0.0
        case "half_pixel_symmetric":
            # The centre of the input stays the centre where the size was rounded.
            adjustment = result / (scale * size)
            return size / 2 * (1 - adjustment) + (place + 0.5) / scale - 0.5
        case "tf_half_pixel_for_nn":
            return (place + 0.5) / scale
        case "half_pixel":
            return (place + 0.5) / scale - 0.5
    raise Refusal(f"coordinate_transformation_mode='{mode}' is not supported")


def nearest_place(mode: str, x: float) -> int:
    """The input position that `x` is rounded to (ONNX Resize, nearest_mode)."""
    match mode:
        case "round_prefer_floor":
            return math.ceil(x - 0.5)
        case "round_prefer_ceil":
            return math.floor(x + 0.5)
        case "floor":
            return math.floor(x)
        case "ceil":
            return math.ceil(x)
    raise Refusal(f"nearest_mode='{mode}' is unknown")


def _cubic_weight(distance: float, a: float) -> float:
    """Keys' cubic convolution kernel (1981)."""
    d = abs(distance)
    if d <= 1:
        return ((a + 2) * d - (a + 3)) * d * d + 1
    return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a if d < 2 else 0.0


def interpolation_matrix(
    mode: str, transform: str, nearest: str, cubic: float, exclude_outside: bool,
    size: int, result: int, scale: float,
) -> np.ndarray:  # fmt: skip
    """The [result, size] matrix of one axis."""
    matrix = np.zeros((result, size))
    for place in range(result):
        x = coordinate(transform, place, scale, size, result)
        if mode == "nearest":
            # Runtimes find ties in float32, and a tie decides which neighbour is taken.
            facts: Any = [np.float32(v) for v in (place, scale, size, result)]
            x = float(coordinate(transform, *facts))
            matrix[place, min(max(nearest_place(nearest, x), 0), size - 1)] = 1.0
            continue
        if mode == "linear":
            x = min(max(x, 0.0), size - 1.0)
        base = math.floor(x)
        reach = range(base, base + 2) if mode == "linear" else range(base - 1, base + 3)
        for k in reach:
            w = max(0.0, 1 - abs(x - k)) if mode == "linear" else _cubic_weight(x - k, cubic)
            if mode == "cubic" and exclude_outside and not 0 <= k < size:
                continue
            matrix[place, min(max(k, 0), size - 1)] += w
        if mode == "cubic" and exclude_outside:
            matrix[place] /= matrix[place].sum()
    return matrix


def _scales(c: Context) -> tuple[list[float], list[int]]:
    """Scale and result size of each axis."""
    shape = c.shape(0)
    old = c.node.op == "Upsample" or c.node.opset < 11
    axes = c.node.ints("axes", tuple(range(len(shape))))
    axes = tuple(axis_of(c, a, len(shape)) for a in axes)
    scales, sizes = [1.0] * len(shape), list(shape)
    place = 1 if old else 2
    if "scales" in c.node.attrs:
        value = c.node.attrs["scales"]
        values = value if isinstance(value, tuple) else ()
    elif not old and c.node.has(3) and c.known(3).size:
        given = c.ints(3)
        if c.node.text("keep_aspect_ratio_policy", "stretch") != "stretch":
            raise Refusal("keep_aspect_ratio_policy other than 'stretch' is not supported")
        if len(given) != len(axes) or any(g < 1 for g in given):
            raise Refusal(f"sizes={list(given)} do not fit its input {list(shape)}")
        for axis, size in zip(axes, given, strict=True):
            if axis == 0 and c.old_batch == size:
                size = shape[0]
            scales[axis], sizes[axis] = size / shape[axis], size
        return scales, sizes
    else:
        values = tuple(float(v) for v in c.known(place).reshape(-1))
    if len(values) != len(axes) or not all(math.isfinite(v) and v > 0 for v in values):
        raise Refusal(f"scales={list(values)[:9]} do not fit its input {list(shape)}")
    for axis, scale in zip(axes, values, strict=True):
        scales[axis], sizes[axis] = scale, math.floor(shape[axis] * scale)
    if any(s < 1 for s in sizes) or math.prod(sizes) > MAX_ELEMENTS:
        raise Refusal(f"its result would have the shape {sizes}")
    return scales, sizes


def _resize(c: Context) -> Known | Live:
    node, shape = c.node, c.shape(0)
    old = node.op == "Upsample" or node.opset < 11
    mode = node.text("mode", "nearest")
    if mode not in ("nearest", "linear", "bilinear", "cubic"):
        raise Refusal(f"mode='{mode}' is unknown")
    mode = "linear" if mode == "bilinear" else mode
    transform = "asymmetric" if old else node.text("coordinate_transformation_mode", "half_pixel")
    nearest = "floor" if old else node.text("nearest_mode", "round_prefer_floor")
    scales, sizes = _scales(c)
    if node.int("antialias", 0) and any(s < 1 for s in scales) and mode != "nearest":
        raise Refusal("antialias is not supported when shrinking", "export with antialias=False")
    x = c.tensor(0)
    for axis in range(len(shape)):
        if sizes[axis] == shape[axis] and scales[axis] == 1.0:
            continue
        if axis < 1 or (axis == 1 and len(shape) > 3):
            raise Refusal(f"it resizes axis {axis}", "only spatial axes can be resized")
        if sizes[axis] > 1 << 14 or sizes[axis] * shape[axis] > 1 << 24:
            raise Refusal(f"it resizes an axis of {shape[axis]} to {sizes[axis]}")
        matrix = interpolation_matrix(
            mode, transform, nearest, node.float("cubic_coeff_a", -0.75),
            bool(node.int("exclude_outside", 0)), shape[axis], sizes[axis], scales[axis],
        )  # fmt: skip
        x = _apply(c, x, axis, matrix)
    return c.reshaped(x, c.builder.shape(x))


def _apply(c: Context, x: str, axis: int, matrix: np.ndarray) -> str:
    shape = c.builder.shape(x)
    result, size = matrix.shape
    times = result // size
    if times * size == result and np.array_equal(matrix, np.repeat(np.eye(size), times, 0)):
        rows, inner = math.prod(shape[: axis + 1]), math.prod(shape[axis + 1 :])
        y = c.emit("reshape", x, shape=(rows, 1, inner))
        y = c.emit("expand", y, shape=(rows, times, inner))
        y = c.emit("reshape", y, shape=(*shape[:axis], result, *shape[axis + 1 :]))
    else:
        last = len(shape) - 1
        perm = list(range(len(shape)))
        perm[axis], perm[last] = last, axis
        y = c.emit("transpose", x, perm=perm) if axis != last else x
        y = c.emit("matmul", y, c.constant(matrix.T), trans_a=False, trans_b=False)
        y = c.emit("transpose", y, perm=perm) if axis != last else y
    if x in c.batched:
        c.batched.add(y)
    return y


RESIZE: dict[str, Translate] = {"Resize": _resize, "Upsample": _resize}
