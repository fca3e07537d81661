"""Batch, group and instance normalisation with their gradients.

With x̂ = (x - mean) istd and y = x̂ scale + bias, over the n elements that share statistics:
    dbias = Σ dy,  dscale = Σ dy x̂,  dx = istd (g - Σg / n - x̂ Σ(g x̂) / n),  g = dy scale
(Ioffe and Szegedy 2015, section 3).  Forward reads x twice and writes y; backward reads x and dy
twice and writes dx (layer_norm three times when scale or bias are trained: its two kinds of sums
run over different axes).  mean and istd are extra results that the gradient uses.

What belongs to a channel is computed once for the channel, so that an element takes few steps:
    batch norm    dx = p (dy - Σdy / n - x̂ Σ(dy x̂) / n),  p = istd scale
    group norm    y = (x - mean) p + bias,  dx = dy p + s + (x - mean) r,
                  r = -istd³ Σ(g (x - mean)) / n,  s = -istd Σg / n
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from ccnn.passes.graph import Builder, Node, Tensor
from ccnn.passes.ops.base import Op, Result
from ccnn.passes.ops.common import (
    channel_shape,
    emit_map,
    emit_reduce,
    fail,
    given,
    reshaped,
    take,
)

APPLY = "(a - b) * c * d + e"
"""Of x, and of the mean, istd, scale and bias of its channel: one factor for both would round once
more, alike for a whole channel, which later sums over it show in float32."""
GROUP_APPLY = "(a - b) * c + d"
"""Of x, and of the mean, factor and bias of its channel in its sample."""


def check_vector(node: Node, tensor: Tensor | None, shape: Sequence[int], what: str) -> None:
    """Raise GraphError when a tensor that is given has another shape."""
    if tensor is not None and tensor.shape != tuple(shape):
        fail(node, f"{what} has shape {tensor.shape}, it should be {tuple(shape)}")


def finish(b: Builder, node: Node, var: str) -> str:
    """istd = 1 / sqrt(var + epsilon)."""
    epsilon = float(node.attr("epsilon", 1e-5))
    return emit_map(b, [var], [f"1 / sqrt(a + {epsilon!r})"], ["accum"])[0]


GRADIENT = "c * (a - d - (b - f) * g * e)"
"""Of dy, x, and of p, Σdy / n, Σ(dy x̂) / n, the mean and istd of its channel."""
GROUP_GRADIENT = "a * c + e + (b - f) * d"
"""Of dy, x, and of p, r, s and the mean of its channel in its sample."""


def istd_of(node: Node, var: np.ndarray) -> np.ndarray:
    """1 / sqrt(var + epsilon), with numpy."""
    return 1 / np.sqrt(var + node.attr("epsilon", 1e-5))


def norm_grads(
    dy: np.ndarray,
    x: np.ndarray,
    scale: np.ndarray,
    mean: np.ndarray,
    istd: np.ndarray,
    axes: tuple[int, ...],
    param_axes: tuple[int, ...],
) -> list[np.ndarray]:
    """dx, dscale and dbias plainly; statistics over `axes`, parameters shared over the others."""
    xhat = (x - mean) * istd
    g = dy * scale
    dx = istd * (g - g.mean(axes, keepdims=True) - xhat * (g * xhat).mean(axes, keepdims=True))
    return [dx, (dy * xhat).sum(param_axes), dy.sum(param_axes)]


class BatchNorm(Op):
    """Training-mode batch norm: y, new running mean and variance, and the batch's mean and istd.

    new = old momentum + batch (1 - momentum); `unbiased` takes the n/(n-1) variance for that.
    """

    name = "batch_norm"
    updates: ClassVar[Mapping[int, int]] = {1: 3, 2: 4}

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Result]:
        x, scale, bias, mean, var = given(take(node, inputs, 5))
        if len(x.shape) < 2:
            fail(node, f"needs x [N, C, …], got {x.shape}")
        for what, t in (("scale", scale), ("bias", bias), ("mean", mean), ("variance", var)):
            check_vector(node, t, x.shape[1:2], what)
        if node.attr("unbiased", False) and x.size == x.shape[1]:
            fail(node, "has one value per channel, so no unbiased variance: use a larger batch")
        stats = channel_shape(x.shape[1], len(x.shape))
        return [
            (x.shape, "float"),
            (mean.shape, mean.dtype),
            (var.shape, var.dtype),
            (stats, "accum"),
            (stats, "accum"),
        ]

    def reference(self, node: Node, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        x, scale, bias, mean, var = (np.asarray(a) for a in inputs)
        axes, shape = _others(x.ndim), channel_shape(x.shape[1], x.ndim)
        batch_mean, batch_var = x.mean(axes), x.var(axes)
        istd = istd_of(node, batch_var)
        y = (x - batch_mean.reshape(shape)) * (istd * scale).reshape(shape) + bias.reshape(shape)
        keep, n = node.attr("momentum", 0.9), x.size // x.shape[1]
        seen = batch_var * _correction(node, n)
        return [
            y,
            mean * keep + batch_mean * (1 - keep),
            var * keep + seen * (1 - keep),
            batch_mean.reshape(shape),
            istd.reshape(shape),
        ]

    def expand(self, b: Builder, node: Node) -> Sequence[str]:
        x, scale, bias, old_mean, old_var = node.inputs
        shape = b.shape(x)
        stats = channel_shape(shape[1], len(shape))
        mean, var = b.emit_all("moments", [x], axes=_others(len(shape)))
        istd = finish(b, node, var)
        column, shift = (reshaped(b, t, stats) for t in (scale, bias))
        y = emit_map(b, [x, mean, istd, column, shift], [APPLY], ["float"])[0]
        keep = float(node.attr("momentum", 0.9))
        factor = _correction(node, b.tensors[x].size // shape[1])
        flat = [reshaped(b, t, shape[1:2]) for t in (mean, var)]
        new = emit_map(
            b,
            [old_mean, old_var, *flat],
            [f"a * {keep!r} + c * {1 - keep!r}", f"b * {keep!r} + d * {(1 - keep) * factor!r}"],
            [b.tensors[old_mean].dtype, b.tensors[old_var].dtype],
        )
        return [y, *new, mean, istd]

    def gradient(
        self, b: Builder, node: Node, douts: Sequence[str | None], wanted: Sequence[bool]
    ) -> list[str | None]:
        if douts[0] is None:
            return [None] * 5
        x, scale = node.inputs[:2]
        grads = b.emit_all("batch_norm_grad", [douts[0], x, scale, *node.outputs[3:5]])
        return [*grads, None, None]


def _others(rank: int) -> tuple[int, ...]:
    return (0, *range(2, rank))


def _correction(node: Node, n: int) -> float:
    return n / (n - 1) if node.attr("unbiased", False) and n > 1 else 1.0


class BatchNormGrad(Op):
    """dx, dscale, dbias from dy, x, scale, mean and istd: one reduce, one map."""

    name = "batch_norm_grad"

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Result]:
        _, x, scale, _, _ = given(take(node, inputs, 5))
        return [(x.shape, "float"), (scale.shape, scale.dtype), (scale.shape, scale.dtype)]

    def reference(self, node: Node, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        dy, x, scale, mean, istd = (np.asarray(a) for a in inputs)
        axes = _others(x.ndim)
        return norm_grads(dy, x, scale.reshape(mean.shape), mean, istd, axes, axes)

    def expand(self, b: Builder, node: Node) -> Sequence[str]:
        dy, x, scale, mean, istd = node.inputs
        rank, n = len(b.shape(x)), b.tensors[x].size // b.shape(x)[1]
        exprs, axes = ["a", "a * ((b - c) * d)"], _others(rank)
        sums = emit_reduce(b, "sum", [dy, x, mean, istd], exprs, axes, ["accum"] * 2)
        column = reshaped(b, scale, b.shape(mean))
        exprs = ["a * b", f"c * {1 / n!r}", f"d * {1 / n!r}"]
        factors = emit_map(b, [istd, column, *sums], exprs, ["accum"] * 3)
        dx = emit_map(b, [dy, x, *factors, mean, istd], [GRADIENT], ["float"])[0]
        dtype = b.tensors[scale].dtype
        small = emit_map(b, sums, ["b", "a"], [dtype, dtype])
        return [dx, *(reshaped(b, s, b.shape(scale)) for s in small)]


class GroupNorm(Op):
    """Normalises each sample over groups of channels; also gives mean and istd as [N, C, 1, …]."""

    name = "group_norm"

    def groups(self, node: Node, channels: int) -> int:
        """Into how many groups the channels divide."""
        return node.attr("groups")

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Result]:
        x, scale, bias = given(take(node, inputs, 3))
        if len(x.shape) < 3:
            fail(node, f"needs x [N, C, …], got {x.shape}")
        groups = self.groups(node, x.shape[1])
        if type(groups) is not int or groups < 1 or x.shape[1] % groups:
            fail(node, f"{x.shape[1]} channels do not divide into {groups!r} groups")
        check_vector(node, scale, x.shape[1:2], "scale")
        check_vector(node, bias, x.shape[1:2], "bias")
        stats = (*x.shape[:2], *[1] * (len(x.shape) - 2))
        return [(x.shape, "float"), (stats, "accum"), (stats, "accum")]

    def reference(self, node: Node, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        x, scale, bias = (np.asarray(a) for a in inputs)
        groups = self.groups(node, x.shape[1])
        parts = x.reshape(x.shape[0], groups, -1)
        stats = (*x.shape[:2], *[1] * (x.ndim - 2))
        mean, istd = (
            np.repeat(s, x.shape[1] // groups, axis=1).reshape(stats)
            for s in (parts.mean(2), istd_of(node, parts.var(2)))
        )
        column = channel_shape(x.shape[1], x.ndim)
        y = (x - mean) * istd * scale.reshape(column) + bias.reshape(column)
        return [y, mean, istd]

    def expand(self, b: Builder, node: Node) -> Sequence[str]:
        x, scale, bias = node.inputs
        shape = b.shape(x)
        groups = self.groups(node, shape[1])
        view = reshaped(b, x, (shape[0], groups, shape[1] // groups, *shape[2:]))
        mean, var = b.emit_all("moments", [view], axes=tuple(range(2, len(shape) + 1)))
        stats, istd = b.shape(node.outputs[1]), finish(b, node, var)
        split = (1, groups, shape[1] // groups)
        inverse, column = reshaped(b, istd, (shape[0], groups, 1)), reshaped(b, scale, split)
        factor = emit_map(b, [inverse, column], ["a * b"], ["accum"])[0]
        mean, istd = (_per_channel(b, s, stats) for s in (mean, istd))
        shift = reshaped(b, bias, channel_shape(shape[1], len(shape)))
        y = emit_map(b, [x, mean, reshaped(b, factor, stats), shift], [GROUP_APPLY], ["float"])[0]
        return [y, mean, istd]

    def gradient(
        self, b: Builder, node: Node, douts: Sequence[str | None], wanted: Sequence[bool]
    ) -> list[str | None]:
        if douts[0] is None:
            return [None] * 3
        x, scale = node.inputs[:2]
        groups = self.groups(node, b.shape(x)[1])
        inputs = [douts[0], x, scale, *node.outputs[1:3]]
        return list(b.emit_all("group_norm_grad", inputs, groups=groups))


def _per_channel(b: Builder, stat: str, shape: Sequence[int]) -> str:
    """A statistic per group, [N, G, 1, …], repeated for each channel of the group."""
    n, groups = b.shape(stat)[:2]
    if groups != shape[1]:
        stat = reshaped(b, stat, (n, groups, 1))
        stat = b.emit("expand", [stat], shape=(n, groups, shape[1] // groups))
    return reshaped(b, stat, shape)


class InstanceNorm(GroupNorm):
    """Normalises each channel of each sample on its own."""

    name = "instance_norm"

    def groups(self, node: Node, channels: int) -> int:
        return channels


class GroupNormGrad(Op):
    """dx, dscale, dbias: sums per sample and channel in one sweep, the rest on small tensors."""

    name = "group_norm_grad"

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Result]:
        _, x, scale, _, _ = given(take(node, inputs, 5))
        return [(x.shape, "float"), (scale.shape, scale.dtype), (scale.shape, scale.dtype)]

    def reference(self, node: Node, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        dy, x, scale, mean, istd = (np.asarray(a) for a in inputs)
        split = (x.shape[0], node.attr("groups"), x.shape[1] // node.attr("groups"), -1)
        scale_column = np.broadcast_to(scale.reshape(channel_shape(x.shape[1], x.ndim)), mean.shape)
        dy, parts, gain, mean, istd = (a.reshape(split) for a in (dy, x, scale_column, mean, istd))
        dx, dscale, dbias = norm_grads(dy, parts, gain, mean, istd, (2, 3), (0, 3))
        return [dx.reshape(x.shape), dscale.reshape(-1), dbias.reshape(-1)]

    def expand(self, b: Builder, node: Node) -> Sequence[str]:
        dy, x, scale, mean, istd = node.inputs
        shape, stats, groups = b.shape(x), b.shape(mean), node.attr("groups")
        exprs, inside = ["a", "a * (b - c)"], range(2, len(shape))
        sums = emit_reduce(b, "sum", [dy, x, mean], exprs, inside, ["accum"] * 2)
        split = (shape[0], groups, shape[1] // groups)
        column = reshaped(b, scale, (1, *split[1:]))
        parts = [reshaped(b, s, split) for s in sums]
        exprs, dtypes = ["a * c", "b * c"], ["accum", "accum"]
        grouped = emit_reduce(b, "sum", [*parts, column], exprs, [2], dtypes)
        n = b.tensors[x].size // (shape[0] * groups)
        exprs = ["a * b", f"-(a * a * a * (d * {1 / n!r}))", f"-(c * {1 / n!r} * a)"]
        operands = [reshaped(b, istd, split), column, *grouped]
        factors = emit_map(b, operands, exprs, ["accum"] * 3)
        inputs = [dy, x, *(reshaped(b, f, stats) for f in factors), mean]
        dx = emit_map(b, inputs, [GROUP_GRADIENT], ["float"])[0]
        dtype = b.tensors[scale].dtype
        small = emit_reduce(b, "sum", [*sums, istd], ["b * c", "a"], [0], [dtype, dtype])
        return [dx, *(reshaped(b, s, b.shape(scale)) for s in small)]


NORMALIZATION: tuple[Op, ...] = (
    BatchNorm(),
    BatchNormGrad(),
    GroupNorm(),
    InstanceNorm(),
    GroupNormGrad(),
)
