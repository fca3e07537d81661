"""Windows that slide over some axes: sums and maxima, forward and backward.

A sum is a Conv with a kernel of ones over the axes the window moves along, seen as
[M, 1, those axes]; its gradient is the ConvTranspose.  A maximum is taken over the slices that
belong to each place of the window; its gradient puts dy into the channel of the place that won
and lets a ConvTranspose with one-hot kernels [places, 1, kernel] bring it home.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ccnn.compiler.export.writer import BOOL, INT64, Writer
from ccnn.passes.graph import Node
from ccnn.passes.ops.pooling import Window, max_windows, window


@dataclass(frozen=True)
class _Moving:
    """The axes along which a window moves, and the window there alone."""

    axes: tuple[int, ...]
    shape: tuple[int, ...]
    """Of x, all axes."""
    out: tuple[int, ...]
    """Number of windows, all axes."""
    window: Window

    @property
    def others(self) -> tuple[int, ...]:
        return tuple(k for k in range(len(self.shape)) if k not in self.axes)

    def attrs(self) -> dict[str, Any]:
        """As attributes of a Conv."""
        return {
            "kernel_shape": list(self.window.kernel),
            "strides": list(self.window.strides),
            "dilations": list(self.window.dilations),
            "pads": [*self.window.before, *self.window.after],
        }

    def rest(self) -> list[int]:
        """Output padding of the ConvTranspose that leads back to x."""
        v = self.window
        return [
            self.shape[axis] + v.before[k] + v.after[k]
            - ((self.out[axis] - 1) * v.strides[k] + v.dilations[k] * (v.kernel[k] - 1) + 1)
            for k, axis in enumerate(self.axes)
        ]  # fmt: skip

    def enter(self, w: Writer, name: str, shape: Sequence[int]) -> str:
        """A tensor of this shape as [M, 1, moving axes]."""
        moved = w.transpose(name, (*self.others, *self.axes))
        lead = int(np.prod([shape[k] for k in self.others], dtype=np.int64))
        return w.reshape(moved, (lead, 1, *(shape[k] for k in self.axes)))

    def leave(self, w: Writer, name: str, shape: Sequence[int]) -> str:
        """The way back from `enter`."""
        order = (*self.others, *self.axes)
        back = w.reshape(name, [shape[k] for k in order])
        return w.transpose(back, [int(k) for k in np.argsort(order)])


def _moving(node: Node, shape: Sequence[int]) -> _Moving:
    v = window(node, len(shape))
    facts = list(zip(v.kernel, v.strides, v.before, v.after, strict=True))
    axes = tuple(k for k, f in enumerate(facts) if f != (1, 1, 0, 0)) or (len(shape) - 1,)
    part = Window(*(tuple(a[k] for k in axes) for a in
                    (v.kernel, v.strides, v.before, v.after, v.dilations)))  # fmt: skip
    return _Moving(axes, tuple(shape), v.out(shape), part)


def write_window_sum(w: Writer, node: Node) -> list[str]:
    """A Conv with ones."""
    x = node.inputs[0]
    m = _moving(node, w.shape(x))
    entered = m.enter(w, w.cast(w.named(x), w.accum), m.shape)
    ones = w.constant(np.ones((1, 1, *m.window.kernel)), w.accum)
    y = m.leave(w, w.emit("Conv", [entered, ones], **m.attrs()), m.out)
    return [w.cast(y, w.type(w.named(x)))]


def write_window_sum_grad(w: Writer, node: Node) -> list[str]:
    """A ConvTranspose with ones."""
    dy = node.inputs[0]
    m = _moving(node, node.attr("shape"))
    entered = m.enter(w, w.cast(w.named(dy), w.accum), m.out)
    ones = w.constant(np.ones((1, 1, *m.window.kernel)), w.accum)
    dx = w.emit("ConvTranspose", [entered, ones], output_padding=m.rest(), **m.attrs())
    return [w.cast(m.leave(w, dx, m.shape), w.type(w.named(dy)))]


def write_window_max(w: Writer, node: Node) -> list[str]:
    """ReduceMax and ArgMax over the places of each window; ArgMax names the first."""
    x = node.inputs[0]
    m = _moving(node, w.shape(x))
    entered = m.enter(w, w.cast(w.named(x), w.accum), m.shape)
    places = _places(w, m, entered)
    y = w.emit("ReduceMax", [places, w.ints([-1])], keepdims=0)
    first = w.emit("ArgMax", [places], to=INT64, axis=-1, keepdims=0, select_last_index=0)
    if any((*m.window.before, *m.window.after)):
        # Where nothing in a window is above -inf, padding would be the first of the maxima.
        lowest = w.emit("Equal", [y, w.constant(-np.inf, w.accum)], to=BOOL)
        first = w.emit("Where", [lowest, _first_real(w, m), first], to=INT64)
    y = w.cast(m.leave(w, y, m.out), w.type(w.named(x)))
    index = w.graph[node.outputs[1]] if node.outputs[1] else None
    first = m.leave(w, first, m.out)
    return [y, first if index is None else w.cast(first, w.type_of(index))]


def _places(w: Writer, m: _Moving, entered: str) -> str:
    """The elements of each window as a last axis of [M, 1, windows, places]."""
    dims, v = [m.shape[k] for k in m.axes], m.window
    out = [m.out[k] for k in m.axes]
    lead = [int(np.prod([m.shape[k] for k in m.others], dtype=np.int64)), 1]
    whole = not any(v.before) and set(out) == {1} and set(v.dilations) == {1}
    if whole and tuple(dims) == v.kernel:
        return w.reshape(entered, (*lead, *out, v.places))
    column = w.reshape(entered, (*lead, *dims, 1))
    if any((*v.before, *v.after)):
        pads = (0, 0, *v.before, 0, 0, 0, *v.after, 0)
        column = w.emit("Pad", [column, w.ints(pads), w.constant(-np.inf, w.accum)])
    axes, steps = w.ints(range(2, 2 + len(dims))), w.ints(v.strides)
    slices = []
    for _, where in v.taps(out):
        starts, ends = w.ints(s.start for s in where), w.ints(s.stop for s in where)
        slices.append(w.emit("Slice", [column, starts, ends, axes, steps]))
    return w.emit("Concat", slices, axis=-1)


def _first_real(w: Writer, m: _Moving) -> str:
    """For each window the first place that is not padding, as [1, 1, windows]."""
    inside = np.full([m.shape[k] for k in m.axes], -np.inf)
    return w.constant(max_windows(inside, m.window)[1][None, None], INT64)


def write_window_max_grad(w: Writer, node: Node) -> list[str]:
    """dy in the channel of the place that won, then a ConvTranspose with one-hot kernels."""
    dy, index = node.inputs
    m = _moving(node, node.attr("shape"))
    count, kernel = m.window.places, m.window.kernel
    entered = m.enter(w, w.cast(w.named(dy), w.accum), m.out)
    won = m.enter(w, w.cast(w.named(index), INT64), m.out)
    numbers = np.arange(count).reshape(1, count, *(1 for _ in kernel))
    here = w.emit("Equal", [won, w.constant(numbers, INT64)], to=BOOL)
    spread = w.emit("Where", [here, entered, w.constant(0.0, w.accum)], to=w.accum)
    one_hot = w.constant(np.eye(count).reshape(count, 1, *kernel), w.accum)
    dx = w.emit("ConvTranspose", [spread, one_hot], output_padding=m.rest(), **m.attrs())
    return [w.cast(m.leave(w, dx, m.shape), w.type(w.named(dy)))]
