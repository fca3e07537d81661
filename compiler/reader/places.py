"""Operators that pick or set positions known beforehand, running sums and triangles."""

from __future__ import annotations

import math

import numpy as np

from ccnn.compiler.reader.context import Context, Known, Live
from ccnn.compiler.reader.elementwise import Translate
from ccnn.compiler.reader.fold_places import along_axis, flat_places, trilu
from ccnn.compiler.reader.norms import axis_of
from ccnn.compiler.reader.problems import Refusal

_MOST = 1 << 20


def _places(c: Context) -> np.ndarray:
    if isinstance(c.value(1), Live):
        raise Refusal("its indices are data", "picking by data has no fixed schedule")
    if c.old_batch is not None:
        raise Refusal(
            f"it picks fixed positions in a file made for batch {c.old_batch}",
            "export with a symbolic batch, or with the batch that is wanted",
        )
    places = c.known(1)
    if not 0 < places.size <= _MOST:
        raise Refusal(f"its indices have {places.size} elements")
    return places


def _pick(c: Context, flat: str, axis: int, at: np.ndarray, shape: tuple[int, ...]) -> Live:
    indices = tuple(int(v) for v in at.reshape(-1))
    return c.reshaped(c.emit("gather", flat, axis=axis, indices=indices), shape)


def _gather_nd(c: Context) -> Live:
    shape, places, lead = c.shape(0), _places(c), c.node.int("batch_dims", 0)
    if not 0 <= lead < min(places.ndim, len(shape)) or lead + places.shape[-1] > len(shape):
        raise Refusal(f"its indices {list(places.shape)} do not fit {list(shape)}")
    inner = lead + places.shape[-1]
    tail, result = shape[inner:], (*places.shape[:-1], *shape[inner:])
    per_sample = places.reshape(-1, *places.shape[lead:])
    if lead and (per_sample == per_sample[0]).all() and places.shape[:lead] == shape[:lead]:
        # The same in each sample: the samples stay apart.
        at = flat_places(shape[lead:inner], per_sample[0], 0)
        sizes = (math.prod(shape[:lead]), math.prod(shape[lead:inner]), *tail)
        flat = c.emit("reshape", c.tensor(0), shape=sizes)
        return _pick(c, flat, 1, at, result)
    at = flat_places(shape[:inner], places, lead)
    flat = c.emit("reshape", c.tensor(0), shape=(math.prod(shape[:inner]), *tail))
    return _pick(c, flat, 0, at, result)


def _gather_elements(c: Context) -> Live:
    shape, places = c.shape(0), _places(c)
    at = along_axis(shape, places, axis_of(c, c.node.int("axis", 0), len(shape)))
    flat = c.emit("reshape", c.tensor(0), shape=(math.prod(shape),))
    return _pick(c, flat, 0, at, places.shape)


def _scatter(c: Context, at: np.ndarray, tail: tuple[int, ...]) -> Live:
    """Runs of `tail` elements of the first operand, some of them replaced by the third's."""
    if c.node.text("reduction", "none") != "none":
        raise Refusal(f"reduction='{c.node.text('reduction')}' is not supported")
    shape, lanes = c.shape(0), math.prod(tail)
    runs = math.prod(shape) // lanes
    flat = c.emit("reshape", c.tensor(0), shape=(runs, lanes))
    new = c.emit("reshape", c.tensor(2), shape=(at.size, lanes))
    source = np.arange(runs)
    source[at.reshape(-1)] = runs + np.arange(at.size)
    return _pick(c, c.emit("concat", flat, new, axis=0), 0, source, shape)


def _scatter_nd(c: Context) -> Live:
    shape, places = c.shape(0), _places(c)
    inner = places.shape[-1] if places.ndim else 0
    return _scatter(c, flat_places(shape[:inner], places, 0), shape[inner:])


def _scatter_elements(c: Context) -> Live:
    shape, places = c.shape(0), _places(c)
    at = along_axis(shape, places, axis_of(c, c.node.int("axis", 0), len(shape)))
    return _scatter(c, at, ())


def _cum_sum(c: Context) -> Live:
    """A product with a triangle of ones, along the axis."""
    shape = c.shape(0)
    axis = axis_of(c, int(c.scalar(1)), len(shape))
    size = shape[axis]
    ones = np.triu(np.ones((size, size), np.float32), 1 if c.node.int("exclusive", 0) else 0)
    last = (*(k for k in range(len(shape)) if k != axis), axis)
    rows = c.emit("transpose", c.tensor(0), perm=last)
    reverse = bool(c.node.int("reverse", 0))
    y = c.emit("matmul", rows, c.constant(ones), trans_a=False, trans_b=reverse)
    return c.final("transpose", y, perm=tuple(int(k) for k in np.argsort(last)))


def _trilu(c: Context) -> Known | Live:
    shape = c.shape(0)
    if len(shape) < 2:
        raise Refusal(f"its input {list(shape)} is no matrix")
    k = np.asarray(c.scalar(1) if c.node.has(1) else 0)
    mask = trilu(c.node, [np.ones(shape[-2:], np.float32), k])
    return c.final("mul", c.tensor(0), c.constant(mask))


PLACES: dict[str, Translate] = {
    "GatherND": _gather_nd,
    "GatherElements": _gather_elements,
    "ScatterND": _scatter_nd,
    "ScatterElements": _scatter_elements,
    "CumSum": _cum_sum,
    "Trilu": _trilu,
}
