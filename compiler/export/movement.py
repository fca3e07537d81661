"""Ops that only move data."""

from __future__ import annotations

import numpy as np

from ccnn.compiler.export.writer import Writer
from ccnn.passes.graph import Node

_BEFORE_ALL = -(2**63) + 1
"""The end of a slice that walks backwards and takes element 0 as well."""


def write_reshape(w: Writer, node: Node) -> list[str]:
    """Reshape."""
    return [w.reshape(w.named(node.inputs[0]), node.attr("shape"))]


def write_transpose(w: Writer, node: Node) -> list[str]:
    """Transpose."""
    return [w.transpose(w.named(node.inputs[0]), node.attr("perm"))]


def write_expand(w: Writer, node: Node) -> list[str]:
    """Expand, whose broadcasting is numpy's."""
    return [w.emit("Expand", [w.named(node.inputs[0]), w.ints(node.attr("shape"))])]


def write_concat(w: Writer, node: Node) -> list[str]:
    """Concat."""
    return [w.emit("Concat", [w.named(i) for i in node.inputs], axis=node.attr("axis"))]


def write_slice(w: Writer, node: Node) -> list[str]:
    """Slice of the axes that are cut; an end in front of element 0 is far in front of it."""
    shape = w.shape(node.inputs[0])
    facts = zip(node.attr("starts"), node.attr("steps"), node.attr("sizes"), strict=True)
    cuts = [
        (start, end if (end := start + step * size) >= 0 else _BEFORE_ALL, axis, step)
        for axis, (start, step, size) in enumerate(facts)
        if (start, step, size) != (0, 1, shape[axis])
    ]
    if not cuts:
        return [w.named(node.inputs[0])]
    numbers = [w.ints(column) for column in zip(*cuts, strict=True)]
    return [w.emit("Slice", [w.named(node.inputs[0]), *numbers])]


def write_pad(w: Writer, node: Node) -> list[str]:
    """Zeros between neighbours, then Pad for what is added and Slice for what is taken away.

    [d] becomes [d, 1], is padded to [d, interior + 1] and read as one axis again, whose last
    `interior` zeros are too many.
    """
    x, shape = w.named(node.inputs[0]), list(w.shape(node.inputs[0]))
    interior = node.attr("interior") or (0,) * len(shape)
    before, after = list(node.attr("before")), list(node.attr("after"))
    for axis, gap in enumerate(interior):
        if gap and shape[axis] > 1:
            x, shape[axis] = _spread(w, x, shape, axis, gap), shape[axis] * (gap + 1)
            after[axis] -= gap
    grown = [max(b, 0) for b in before], [max(a, 0) for a in after]
    if any((*grown[0], *grown[1])):
        value = w.constant(node.attr("value", 0.0), w.type(x))
        x = w.emit("Pad", [x, w.ints((*grown[0], *grown[1])), value])
    cuts = [
        (max(-b, 0), max(b, 0) + d + a, axis)
        for axis, (b, a, d) in enumerate(zip(before, after, shape, strict=True))
        if b < 0 or a < 0
    ]
    if cuts:
        x = w.emit("Slice", [x, *(w.ints(c) for c in zip(*cuts, strict=True))])
    return [x]


def _spread(w: Writer, x: str, shape: list[int], axis: int, gap: int) -> str:
    tall = [*shape[: axis + 1], 1, *shape[axis + 1 :]]
    pads = np.zeros((2, len(tall)), np.int64)
    pads[1, axis + 1] = gap
    zero = w.constant(0.0, w.type(x))
    padded = w.emit("Pad", [w.reshape(x, tall), w.ints(pads.ravel().tolist()), zero])
    return w.reshape(padded, [*shape[:axis], shape[axis] * (gap + 1), *shape[axis + 1 :]])
