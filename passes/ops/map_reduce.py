"""The vector unit's primitives: map, reduce, moments and random."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np

from ccnn.passes.expr import evaluate, operands_of, parse_expr
from ccnn.passes.graph import DTYPES, Node, Tensor
from ccnn.passes.ops.base import Op, Result
from ccnn.passes.ops.common import axes_of, broadcast, fail, given, take


def working_dtype(arrays: Sequence[np.ndarray | None]) -> np.dtype:
    """The precision to compute in: that of the floating inputs, float64 when there are none."""
    kinds = [a.dtype for a in arrays if a is not None and a.dtype.kind == "f"]
    return np.result_type(*kinds) if kinds else np.dtype(np.float64)


def _check_exprs(node: Node, inputs: Sequence[Tensor]) -> tuple[str, ...]:
    exprs, dtypes = node.attr("exprs"), node.attr("dtypes")
    if not isinstance(exprs, tuple) or not isinstance(dtypes, tuple) or not exprs:
        fail(node, "attributes 'exprs' and 'dtypes' must be tuples of text with one entry a result")
    if len(exprs) != len(dtypes):
        fail(node, f"has {len(exprs)} expressions and {len(dtypes)} dtypes")
    for text in exprs:
        if max(operands_of(parse_expr(text)), default=0) >= len(inputs):
            fail(node, f"the expression '{text}' uses more operands than the {len(inputs)} inputs")
    if wrong := [d for d in dtypes if d not in DTYPES]:
        fail(node, f"dtype '{wrong[0]}' is none of {', '.join(DTYPES)}")
    return dtypes


class Map(Op):
    """One result per expression, each of the inputs' broadcast shape."""

    name = "map"
    primitive = True

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Result]:
        tensors = given(inputs)
        if len(tensors) != len(inputs) or not tensors:
            fail(node, "takes at least one input and none may be left out")
        shape = broadcast(node, [t.shape for t in tensors])
        return [(shape, d) for d in _check_exprs(node, tensors)]

    def reference(self, node: Node, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        return _evaluate_all(node, inputs)


def _evaluate_all(node: Node, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
    arrays = [np.asarray(a) for a in inputs if a is not None]
    dtype = working_dtype(arrays)
    shape = np.broadcast_shapes(*(a.shape for a in arrays))
    values = (evaluate(parse_expr(e), arrays, dtype) for e in node.attr("exprs"))
    return [np.broadcast_to(v, shape) for v in values]


class Reduce(Op):
    """Expressions over the broadcast inputs, reduced over axes that stay with size 1."""

    name = "reduce"
    primitive = True
    kinds: ClassVar[dict[str, Callable[..., np.ndarray]]] = {
        "sum": np.sum,
        "max": np.max,
        "min": np.min,
    }

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Result]:
        tensors = given(inputs)
        if len(tensors) != len(inputs) or not tensors:
            fail(node, "takes at least one input and none may be left out")
        if node.attr("kind") not in self.kinds:
            fail(node, f"kind {node.attr('kind')!r} is none of {', '.join(self.kinds)}")
        full = broadcast(node, [t.shape for t in tensors])
        axes = axes_of(node, len(full))
        shape = tuple(1 if k in axes else d for k, d in enumerate(full))
        return [(shape, d) for d in _check_exprs(node, tensors)]

    def reference(self, node: Node, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        run, axes = self.kinds[node.attr("kind")], node.attr("axes")
        return [run(v, axis=axes, keepdims=True) for v in _evaluate_all(node, inputs)]


class Moments(Op):
    """Mean and population variance over axes that stay with size 1, in one safe sweep."""

    name = "moments"
    primitive = True

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Result]:
        x = given(take(node, inputs, 1))[0]
        axes = axes_of(node, len(x.shape))
        shape = tuple(1 if k in axes else d for k, d in enumerate(x.shape))
        return [(shape, "accum"), (shape, "accum")]

    def reference(self, node: Node, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        x, axes = np.asarray(inputs[0]), node.attr("axes")
        return [x.mean(axis=axes, keepdims=True), x.var(axis=axes, keepdims=True)]


class Random(Op):
    """Uniform numbers in [0, 1) of 24 bits: a hash of (seed, step, position)."""

    name = "random"
    primitive = True

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Result]:
        take(node, inputs, 0)
        return [(node.attr("shape", ()), "accum")]

    def reference(self, node: Node, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        shape = node.attr("shape")
        count = int(np.prod(shape, dtype=np.int64))
        return [uniform(node.attr("seed"), node.attr("step", 0), 0, count).reshape(shape)]


GAMMA = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def uniform(seed: int, step: int, start: int, count: int) -> np.ndarray:
    """`count` numbers in [0, 1) with 24 bits; number k depends on (seed, step, start + k) only.

    Modulo 2^64, with splitmix64's mix and G = 0x9E3779B97F4A7C15:
    key = mix(mix(seed + G) + (step + 1) G),  u(pos) = (mix(key + (pos + 1) G) >> 40) / 2^24.
    """
    key = _mix_int(_mix_int((seed + GAMMA) & _MASK) + (step + 1) * GAMMA & _MASK)
    z = np.arange(count, dtype=np.uint64) * np.uint64(GAMMA)
    z += np.uint64((key + (start + 1) * GAMMA) & _MASK)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(_FIRST)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(_SECOND)
    z ^= z >> np.uint64(31)
    return (z >> np.uint64(40)).astype(np.float64) / 2**24


def _mix_int(z: int) -> int:
    z = ((z ^ (z >> 30)) * _FIRST) & _MASK
    z = ((z ^ (z >> 27)) * _SECOND) & _MASK
    return z ^ (z >> 31)
