"""Pooling and the window primitives it stands for.

A window op slides a `kernel` over all axes (1 where an axis is not pooled):
out = (dim + before + after - dilation (kernel - 1) - 1) / stride + 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ccnn.passes.graph import Builder, Node, Tensor
from ccnn.passes.ops.base import Op, Result
from ccnn.passes.ops.common import emit_map, fail, given, ints, take


@dataclass(frozen=True)
class Window:
    """The attributes of a window op, one entry an axis."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    dilations: tuple[int, ...]

    @property
    def attrs(self) -> dict[str, Any]:
        """As attributes of a node."""
        return {
            "kernel": self.kernel,
            "strides": self.strides,
            "before": self.before,
            "after": self.after,
            "dilations": self.dilations,
        }

    @property
    def places(self) -> int:
        """Elements in a window."""
        return int(np.prod(self.kernel, dtype=np.int64))

    def out(self, shape: Sequence[int]) -> tuple[int, ...]:
        """How many windows there are along each axis."""
        return tuple(
            (d + b + a - dil * (k - 1) - 1) // s + 1
            for d, k, s, b, a, dil in zip(
                shape,
                self.kernel,
                self.strides,
                self.before,
                self.after,
                self.dilations,
                strict=True,
            )
        )

    def taps(self, out: Sequence[int]) -> Iterator[tuple[int, tuple[slice, ...]]]:
        """Each position in the window, row-major, and the padded elements there."""
        for number, tap in enumerate(np.ndindex(*self.kernel)):
            yield (
                number,
                tuple(
                    slice(t * d, t * d + (n - 1) * s + 1, s)
                    for t, d, n, s in zip(tap, self.dilations, out, self.strides, strict=True)
                ),
            )

    def padded(self, x: np.ndarray, value: float) -> np.ndarray:
        """x with its padding."""
        pads = list(zip(self.before, self.after, strict=True))
        return np.pad(x, pads, constant_values=value)

    def inside(self, shape: Sequence[int]) -> tuple[slice, ...]:
        """Where x lies in its padded form."""
        return tuple(slice(b, b + d) for b, d in zip(self.before, shape, strict=True))


def window(node: Node, rank: int) -> Window:
    """The window of a node; raises GraphError when an attribute does not fit the rank."""
    return Window(
        ints(node, "kernel", rank, 1),
        ints(node, "strides", rank, 1),
        ints(node, "before", rank, 0),
        ints(node, "after", rank, 0),
        ints(node, "dilations", rank, 1),
    )


def _windows(node: Node, w: Window, shape: Sequence[int]) -> tuple[int, ...]:
    out = w.out(shape)
    if min(out, default=1) < 1:
        fail(node, f"a window {w.kernel} does not fit {tuple(shape)} padded")
    return out


def _index_dtype(w: Window) -> str:
    return "bytes" if w.places <= 256 else "index"


class WindowSum(Op):
    """The sum of each window; padding counts as 0."""

    name = "window_sum"
    primitive = True

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Result]:
        x = given(take(node, inputs, 1))[0]
        return [(_windows(node, window(node, len(x.shape)), x.shape), x.dtype)]

    def reference(self, node: Node, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        x = np.asarray(inputs[0])
        w = window(node, x.ndim)
        out, padded = w.out(x.shape), w.padded(x, 0)
        y = np.zeros(out, x.dtype)
        for _, where in w.taps(out):
            y += padded[where]
        return [y]


class WindowMax(Op):
    """The maximum of each window and the row-major position of the first; padding never wins."""

    name = "window_max"
    primitive = True

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Result]:
        x = given(take(node, inputs, 1))[0]
        w = window(node, len(x.shape))
        out = _windows(node, w, x.shape)
        return [(out, x.dtype), (out, _index_dtype(w))]

    def reference(self, node: Node, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        x = np.asarray(inputs[0])
        return list(max_windows(x, window(node, x.ndim)))


def max_windows(x: np.ndarray, w: Window) -> tuple[np.ndarray, np.ndarray]:
    """The maxima and the positions of the first of each."""
    out, padded = w.out(x.shape), w.padded(x, -np.inf)
    real = w.padded(np.ones(x.shape, bool), False) if any((*w.before, *w.after)) else None
    y, first = np.full(out, -np.inf, x.dtype), np.full(out, -1, np.int64)
    for number, where in w.taps(out):
        better = padded[where] > y
        better |= (first < 0) if real is None else (first < 0) & real[where]
        y = np.where(better, padded[where], y)
        first = np.where(better, number, first)
    return y, np.maximum(first, 0)


class WindowSumGrad(Op):
    """dx of window_sum: each dy goes to all places of its window; `shape` is that of x."""

    name = "window_sum_grad"
    primitive = True

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Result]:
        dy, shape = given(take(node, inputs, 1))[0], ints(node, "shape", low=0)
        _same(node, dy.shape, _windows(node, window(node, len(shape)), shape))
        return [(shape, dy.dtype)]

    def reference(self, node: Node, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        dy, shape = np.asarray(inputs[0]), node.attr("shape")
        w = window(node, len(shape))
        dx = w.padded(np.zeros(shape, dy.dtype), 0)
        for _, where in w.taps(dy.shape):
            dx[where] += dy
        return [dx[w.inside(shape)]]


def _same(node: Node, got: Sequence[int], expected: Sequence[int]) -> None:
    if tuple(got) != tuple(expected):
        fail(node, f"dy has shape {tuple(got)}, the window makes it {tuple(expected)}")


class WindowMaxGrad(Op):
    """dx of window_max: each dy goes to the place that idx names."""

    name = "window_max_grad"
    primitive = True

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Result]:
        dy, idx = given(take(node, inputs, 2))
        shape = ints(node, "shape", low=0)
        out = _windows(node, window(node, len(shape)), shape)
        _same(node, dy.shape, out)
        _same(node, idx.shape, out)
        return [(shape, dy.dtype)]

    def reference(self, node: Node, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        dy, idx, shape = np.asarray(inputs[0]), np.asarray(inputs[1]), node.attr("shape")
        w = window(node, len(shape))
        dx = w.padded(np.zeros(shape, dy.dtype), 0)
        for number, where in w.taps(dy.shape):
            dx[where] += np.where(idx == number, dy, 0)
        return [dx[w.inside(shape)]]


def _spatial(node: Node, x: Tensor) -> Window:
    """The window of a pooling node over the trailing axes of x."""
    kernel = ints(node, "kernel", low=1)
    n, lead = len(kernel), len(x.shape) - len(kernel)
    if lead < 0:
        fail(node, f"a kernel {kernel} is too long for a tensor of shape {x.shape}")
    pads, extra = ints(node, "pads", 2 * n, 0), node.attr("ceil_extra") or (0,) * n
    if len(extra) != n:
        fail(node, f"attribute 'ceil_extra' needs {n} numbers, it has {len(extra)}")
    ones, zeros = (1,) * lead, (0,) * lead
    return Window(
        ones + kernel,
        ones + ints(node, "strides", n, 1),
        zeros + pads[:n],
        zeros + tuple(p + e for p, e in zip(pads[n:], extra, strict=True)),
        ones + ints(node, "dilations", n, 1),
    )


class MaxPool(Op):
    """The largest of each window, and its position, which the gradient uses."""

    name = "max_pool"

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Result]:
        x = given(take(node, inputs, 1))[0]
        w = _spatial(node, x)
        out = _windows(node, w, x.shape)
        return [(out, x.dtype), (out, _index_dtype(w))]

    def reference(self, node: Node, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        x = np.asarray(inputs[0])
        return list(max_windows(x, _spatial(node, Tensor("x", x.shape))))

    def expand(self, b: Builder, node: Node) -> Sequence[str]:
        x = node.inputs[0]
        return b.emit_all("window_max", [x], **_spatial(node, b.tensors[x]).attrs)

    def gradient(
        self, b: Builder, node: Node, douts: Sequence[str | None], wanted: Sequence[bool]
    ) -> list[str | None]:
        x = b.tensors[node.inputs[0]]
        if douts[0] is None:
            return [None]
        attrs = _spatial(node, x).attrs
        return [b.emit("window_max_grad", [douts[0], node.outputs[1]], shape=x.shape, **attrs)]


class AvgPool(Op):
    """The mean of each window.

    Divided by the places inside the padded image (count_include_pad) or inside the image;
    `ceil_extra`, padding at the end that only ceil_mode added, is never counted.
    """

    name = "avg_pool"

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Result]:
        x = given(take(node, inputs, 1))[0]
        return [(_windows(node, _spatial(node, x), x.shape), x.dtype)]

    def reciprocals(self, node: Node, x: Tensor) -> np.ndarray:
        """1 / count for each window, shape [1, 1, P, Q]."""
        w = _spatial(node, x)
        lead, out = len(x.shape) - len(node.attr("kernel")), w.out(x.shape)
        extra = (*(0,) * lead, *(node.attr("ceil_extra") or (0,) * (len(x.shape) - lead)))
        counts = np.ones((1,) * len(x.shape))
        for k in range(lead, len(x.shape)):
            at = np.arange(out[k])[:, None] * w.strides[k] - w.before[k]
            at = at + np.arange(w.kernel[k])[None] * w.dilations[k]
            low, high = 0, x.shape[k]
            if node.attr("count_include_pad", False):
                low, high = -w.before[k], high + w.after[k] - extra[k]
            line = ((at >= low) & (at < high)).sum(1)
            counts = counts * line.reshape([-1 if j == k else 1 for j in range(len(x.shape))])
        return 1 / np.maximum(counts, 1)

    def reference(self, node: Node, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        x = np.asarray(inputs[0])
        tensor = Tensor("x", x.shape)
        w = _spatial(node, tensor)
        out, padded = w.out(x.shape), w.padded(x, 0)
        total = sum((padded[where] for _, where in w.taps(out)), np.zeros(out, x.dtype))
        return [(total * self.reciprocals(node, tensor)).astype(x.dtype)]

    def _scaled(self, b: Builder, node: Node, values: str, x: Tensor) -> str:
        shares = self.reciprocals(node, x)
        if np.all(shares == shares.flat[0]):
            return emit_map(b, [values], [f"a * {float(shares.flat[0])!r}"], [x.dtype])[0]
        constant = b.constant(shares, "share")
        return emit_map(b, [values, constant], ["a * b"], [x.dtype])[0]

    def expand(self, b: Builder, node: Node) -> Sequence[str]:
        x = b.tensors[node.inputs[0]]
        total = b.emit("window_sum", [x.name], **_spatial(node, x).attrs)
        return [self._scaled(b, node, total, x)]

    def gradient(
        self, b: Builder, node: Node, douts: Sequence[str | None], wanted: Sequence[bool]
    ) -> list[str | None]:
        x = b.tensors[node.inputs[0]]
        if douts[0] is None:
            return [None]
        share = self._scaled(b, node, douts[0], x)
        return [b.emit("window_sum_grad", [share], shape=x.shape, **_spatial(node, x).attrs)]


POOLING: tuple[Op, ...] = (
    WindowSum(),
    WindowMax(),
    WindowSumGrad(),
    WindowMaxGrad(),
    MaxPool(),
    AvgPool(),
)
