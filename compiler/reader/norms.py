"""Normalisations, softmax and reductions.

BatchNormalization arrives in three forms, and each becomes a trainable `batch_norm`: the
inference form (what an exporter writes in eval mode), the training form (training_mode=1, or
four or five outputs before operator set 14), and, where an exporter folded it into the
convolution before, not at all - `report` tells of that one, or suspects it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ccnn.compiler.reader.context import MACHINE_NAME, Context, Known, Live
from ccnn.compiler.reader.elementwise import Translate
from ccnn.compiler.reader.problems import Refusal


def axis_of(c: Context, axis: int, rank: int) -> int:
    """A non-negative axis; raises Refusal when there is none such."""
    if not -rank <= axis < rank:
        raise Refusal(f"axis {axis} is outside its input {list(c.shape(0))}")
    return axis % rank


def axes_of(c: Context, axes: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """Sorted non-negative axes, each once."""
    found = sorted(axis_of(c, a, rank) for a in axes)
    if len(set(found)) != len(found):
        raise Refusal(f"an axis is named twice in {list(axes)}")
    return tuple(found)


def _affine(c: Context, position: int, neutral: float) -> str:
    """Scale or bias of a norm; a constant of ones (zeros) is what affine=False exports as.

    Exporters that store constants as initializers make up their names.
    """
    value = c.value(position)
    if isinstance(value, Known) and value.is_float and np.all(value.array == neutral):
        if value.kind != "initializer":
            return c.tensor(position)
        if MACHINE_NAME.match(value.name):
            c.findings.note(
                f"'{value.name}' is {neutral:g} throughout and has a generated name: a constant",
                node=c.node.name, op=c.node.op,
            )  # fmt: skip
            return c.constant(value.array)
    return c.weight(position)


def _check_channels(c: Context, positions: range, size: int, what: str = "channel") -> None:
    for p in positions:
        if c.node.has(p) and c.shape(p) != (size,):
            raise Refusal(
                f"input {p} ('{c.node.inputs[p]}') has the shape {list(c.shape(p))}; "
                f"one value for each {what} is needed: [{size}]"
            )


def _batch_norm(c: Context) -> list[Live]:
    node, shape = c.node, c.shape(0)
    if len(shape) < 2:
        raise Refusal(f"its input {list(shape)} has no channel axis")
    if not node.int("spatial", 1):
        raise Refusal("spatial=0 (statistics for each position) is not supported")
    _check_channels(c, range(1, 5), shape[1])
    trains = bool(node.int("training_mode", 0)) or (node.opset < 14 and len(node.outputs) > 1)
    if not trains:
        c.counts["inference_norms"] = c.counts.get("inference_norms", 0) + 1
    if shape[0] * int(np.prod(shape[2:], dtype=np.int64)) == 1:
        raise Refusal(
            f"it normalises each channel of {list(shape)} over a single value",
            "read the model with a larger batch (--batch)",
        )
    if any(isinstance(c.value(k), Live) for k in (3, 4)):
        return [_norm_of_computed(c, trains)]
    operands = [c.tensor(0), _affine(c, 1, 1.0), _affine(c, 2, 0.0), _state(c, 3), _state(c, 4)]
    results = c.final_all(
        "batch_norm", *operands, epsilon=node.float("epsilon", 1e-5),
        momentum=node.float("momentum", 0.9), unbiased=c.options.unbiased_variance,
    )  # fmt: skip
    return results[:3]


def _norm_of_computed(c: Context, trains: bool) -> Live:
    """A batch norm without running statistics: mean and variance are computed in the model.

    Weight standardisation and track_running_stats=False are written so.
    """
    x, shape = c.tensor(0), c.shape(0)
    column = (shape[1], *(1,) * (len(shape) - 2))
    scale, bias = (c.emit("reshape", _affine(c, k, 2.0 - k), shape=column) for k in (1, 2))
    axes = (0, *range(2, len(shape)))
    mean = var = ""
    if not trains:
        mean, var = (c.emit("reshape", c.tensor(k), shape=column) for k in (3, 4))
    centred = c.emit("sub", x, mean or c.emit("reduce_mean", x, axes=axes, keepdims=True))
    squares = "" if var else c.emit("mul", centred, centred)
    var = var or c.emit("reduce_mean", squares, axes=axes, keepdims=True)
    deviation = c.emit("sqrt", c.emit("add", var, c.constant(c.node.float("epsilon", 1e-5))))
    return c.final("add", c.emit("mul", c.emit("div", centred, deviation), scale), bias)


def _state(c: Context, position: int) -> str:
    value = c.value(position)
    if not isinstance(value, Known) or not value.is_float:
        name = c.node.inputs[position]
        raise Refusal(f"its running statistics '{name}' are not floating-point numbers")
    if position == 4 and np.any(value.array < 0):
        raise Refusal(f"its running variance '{value.name}' is negative", "the file is damaged")
    if users := c.uses.get(value.name) or _readers(c, value.name):
        c.findings.warning(
            f"its running statistics '{value.name}' are also used by '{users[0]}'; "
            "they are kept apart from now on",
            "the exporter merged equal tensors: export in training mode "
            "(training=torch.onnx.TrainingMode.PRESERVE) to keep the names",
            node=c.node.name, op=c.node.op,
        )  # fmt: skip
        value = replace(value, name=c.stem(f"{value.name}.{c.node.name}"))
    return c.parameter(value, "state")


def _readers(c: Context, name: str) -> list[str]:
    """Nodes that read a tensor, other than as running statistics."""
    return [
        n.name for n in c.source.nodes
        if name in (n.inputs[:3] if n.op == "BatchNormalization" else n.inputs)
    ]  # fmt: skip


def _instance_norm(c: Context) -> Live:
    shape = c.shape(0)
    if len(shape) < 3:
        raise Refusal(f"its input {list(shape)} has no spatial axes")
    _check_channels(c, range(1, 3), shape[1])
    return c.final(
        "instance_norm", c.tensor(0), _affine(c, 1, 1.0), _affine(c, 2, 0.0),
        epsilon=c.node.float("epsilon", 1e-5),
    )  # fmt: skip


def _group_norm(c: Context) -> Live:
    shape, groups = c.shape(0), c.node.int("num_groups")
    if len(shape) < 2 or groups < 1 or shape[1] % groups:
        raise Refusal(f"num_groups={groups} does not divide the channels of {list(shape)}")
    scale, bias = _affine(c, 1, 1.0), _affine(c, 2, 0.0)
    if c.shape(1) == (groups,) and groups != shape[1]:  # operator set 18: one value a group
        _check_channels(c, range(1, 3), groups, "group")
        scale, bias = (_repeat(c, t, groups, shape[1] // groups) for t in (scale, bias))
    else:
        _check_channels(c, range(1, 3), shape[1])
    return c.final(
        "group_norm", c.tensor(0), scale, bias, groups=groups,
        epsilon=c.node.float("epsilon", 1e-5),
    )  # fmt: skip


def _repeat(c: Context, tensor: str, groups: int, times: int) -> str:
    column = c.emit("reshape", tensor, shape=(groups, 1))
    return c.emit(
        "reshape", c.emit("expand", column, shape=(groups, times)), shape=(groups * times,)
    )


def _layer_norm(c: Context) -> Live:
    rank = len(c.shape(0))
    axis = axis_of(c, c.node.int("axis", -1), rank)
    tail = c.shape(0)[axis:]
    operands = [c.tensor(0)]
    for position in (1, 2):
        if not c.node.has(position):
            operands.append("")
            continue
        tensor = _affine(c, position, 2.0 - position)
        if c.builder.shape(tensor) != tail:
            missing = (1,) * (len(tail) - len(c.builder.shape(tensor)))
            tensor = c.emit("reshape", tensor, shape=(*missing, *c.builder.shape(tensor)))
            tensor = c.emit("expand", tensor, shape=tail)
        operands.append(tensor)
    return c.final("layer_norm", *operands, axis=axis, epsilon=c.node.float("epsilon", 1e-5))


def _lrn(c: Context) -> Live:
    size = c.node.int("size")
    if size < 1:
        raise Refusal(f"size={size} should be positive")
    return c.final(
        "lrn", c.tensor(0), size=size, alpha=c.node.float("alpha", 1e-4),
        beta=c.node.float("beta", 0.75), bias=c.node.float("bias", 1.0),
    )  # fmt: skip


def _softmax(op: str) -> Translate:
    def run(c: Context) -> Live:
        shape = c.shape(0)
        old = c.node.opset < 13
        axis = c.node.int("axis", 1 if old else -1)
        if old and axis == len(shape):
            raise Refusal(f"axis {axis} leaves nothing to normalise over")
        axis = axis_of(c, axis, len(shape))
        if not old:
            return c.final(op, c.tensor(0), axis=axis)
        # Before operator set 13 everything from `axis` on is one flat axis.
        wide = [k for k in range(axis, len(shape)) if shape[k] != 1] or [axis]
        if len(wide) == 1:
            return c.final(op, c.tensor(0), axis=wide[0])
        rows = int(np.prod(shape[:axis], dtype=np.int64))
        columns = int(np.prod(shape[axis:], dtype=np.int64))
        flat = c.emit("reshape", c.tensor(0), shape=(rows, columns))
        return c.reshaped(c.emit(op, flat, axis=1), shape)

    return run


def _reduced_axes(c: Context) -> tuple[int, ...]:
    if "axes" in c.node.attrs:
        return c.node.ints("axes")
    return c.ints(1) if c.node.has(1) else ()


def _reduction(op: str) -> Translate:
    def run(c: Context) -> Live | Known:
        rank = len(c.shape(0))
        axes = _reduced_axes(c)
        if not axes and c.node.int("noop_with_empty_axes", 0):
            return c.value(0)
        axes = axes_of(c, axes or tuple(range(rank)), rank)
        if not axes:
            return c.value(0)
        return c.final(op, c.tensor(0), axes=axes, keepdims=bool(c.node.int("keepdims", 1)))

    return run


def _log_sum(c: Context) -> Live:
    rank, keep = len(c.shape(0)), bool(c.node.int("keepdims", 1))
    axes = axes_of(c, _reduced_axes(c) or tuple(range(rank)), rank)
    return c.final("log", c.emit("reduce_sum", c.tensor(0), axes=axes, keepdims=keep))


def _log_sum_exp(c: Context) -> Live:
    """log Σ exp(x - m) + m for the largest m, through which nothing need flow back."""
    x, rank = c.tensor(0), len(c.shape(0))
    axes = axes_of(c, _reduced_axes(c) or tuple(range(rank)), rank)
    top = c.emit("reduce_max", x, axes=axes, keepdims=True)
    top = c.emit("detached", top, expr="a")
    powers = c.emit("exp", c.emit("sub", x, top))
    total = c.emit("log", c.emit("reduce_sum", powers, axes=axes, keepdims=True))
    if c.node.int("keepdims", 1):
        return c.final("add", total, top)
    shape = tuple(d for k, d in enumerate(c.shape(0)) if k not in axes)
    return c.reshaped(c.emit("add", total, top), shape)


def _mean_variance(c: Context) -> Live:
    """(x - mean) / (deviation + 1e-9)."""
    x, axes = c.tensor(0), axes_of(c, c.node.ints("axes", (0, 2, 3)), len(c.shape(0)))
    centred = c.emit("sub", x, c.emit("reduce_mean", x, axes=axes, keepdims=True))
    squares = c.emit("mul", centred, centred)
    deviation = c.emit("sqrt", c.emit("reduce_mean", squares, axes=axes, keepdims=True))
    return c.final("div", centred, c.emit("add", deviation, c.constant(1e-9)))


def _rms_norm(c: Context) -> Live:
    """x scale / sqrt(mean of squares + epsilon) over the axes from `axis` on."""
    x, rank = c.tensor(0), len(c.shape(0))
    axes = tuple(range(axis_of(c, c.node.int("axis", -1), rank), rank))
    mean = c.emit("reduce_mean", c.emit("mul", x, x), axes=axes, keepdims=True)
    root = c.emit("sqrt", c.emit("add", mean, c.constant(c.node.float("epsilon", 1e-5))))
    return c.final("mul", c.emit("div", x, root), c.weight(1))


NORMS: dict[str, Translate] = {
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm,
    "LayerNormalization": _layer_norm,
    "LRN": _lrn,
    "Softmax": _softmax("softmax"),
    "LogSoftmax": _softmax("log_softmax"),
    "ReduceMean": _reduction("reduce_mean"),
    "ReduceSum": _reduction("reduce_sum"),
    "ReduceMax": _reduction("reduce_max"),
    "ReduceMin": _reduction("reduce_min"),
    "ReduceL1": _reduction("reduce_l1"),
    "ReduceL2": _reduction("reduce_l2"),
    "ReduceSumSquare": _reduction("reduce_sumsq"),
    "ReduceLogSum": _log_sum,
    "ReduceLogSumExp": _log_sum_exp,
    "MeanVarianceNormalization": _mean_variance,
    "RMSNormalization": _rms_norm,
}
