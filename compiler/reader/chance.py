"""Random layers: left out as Dropout is, or kept by --dropout.

Stochastic depth has no operator of its own.  Exporters write a branch's factor as
(u < p) / p or floor(u + p) / p with u uniform in [0, 1), or as Bernoulli(p) / p; noise is normal
or uniform numbers that are scaled and added.  Left out, what is drawn stands for its mean: the
factor is then 1 and normal noise 0.  For that, uniform numbers carry their ends through
arithmetic with constants, and a comparison of them is its probability.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ccnn.compiler.reader.context import Context, Known, Live, Value
from ccnn.compiler.reader.elementwise import Translate
from ccnn.compiler.reader.fold import check_size, fold
from ccnn.compiler.reader.onnx_node import OnnxNode
from ccnn.compiler.reader.problems import Refusal

_NOTHING = np.zeros(0)
_FIX = "export without the random layer, or in eval mode"
_COMPARED = {"Less": False, "LessOrEqual": False, "Greater": True, "GreaterOrEqual": True}
"""Comparisons, and whether they hold above their second operand."""
_AFFINE = ("Add", "Sub", "Mul", "Div", "Neg", "Cast", "CastLike", "Identity", "Unsqueeze",
           "Squeeze", "Reshape", "Expand")  # fmt: skip
_LINEAR = ("Add", "Sub", "Mul", "Sum")
"""What may combine random numbers with data: the mean of the result is that of the means."""


@dataclass(frozen=True)
class Drawn(Known):
    """Random numbers that stand for their mean; `ends` where they are uniform between two."""

    ends: tuple[np.ndarray, np.ndarray] | None = None


@dataclass(frozen=True)
class Odds(Known):
    """A random condition: the probability that it holds."""

    probability: np.ndarray = field(default_factory=lambda: _NOTHING)


def expected(node: OnnxNode, values: Sequence[Value | None]) -> list[Known] | None:
    """What an operator makes of random numbers, None where it reads none.

    Raises Refusal where the mean of the result is not known from what it reads.
    """
    read = values[:1] if node.op == "CastLike" else values
    drawn = [v for v in read if isinstance(v, Drawn | Odds)]
    if not drawn or node.op in ("Shape", "Size"):
        return None
    if any(isinstance(v, Live) for v in values) and node.op in _LINEAR and _no_odds(drawn):
        return None  # the mean is a constant like others
    arrays = [v.array if isinstance(v, Known) else None for v in values]
    if len(drawn) > 1 or node.domain or any(isinstance(v, Live) for v in values):
        raise Refusal("it mixes random numbers with others in a way that is not supported", _FIX)
    name, first = node.output(0), drawn[0]
    if isinstance(first, Odds):
        if node.op not in ("Cast", "CastLike", "Identity"):
            raise Refusal("it reads a random condition; only a cast to numbers may", _FIX)
        return [Known(first.probability.astype(np.float32), name)]
    if first.ends and node.op in _COMPARED and len(arrays) == 2:
        return [_odds(node, values, first.ends)]
    if first.ends and node.op == "Floor":
        return [Known(_mean_floor(*first.ends), name)]
    if node.op not in _AFFINE or (node.op == "Div" and values[0] is not first):
        raise Refusal(f"the mean of {node.op} of random numbers is not known", _FIX)
    made = [
        fold(node, [e if v is first else a for v, a in zip(values, arrays, strict=True)])[0]
        for e in (first.array, *(first.ends or ()))
    ]
    return [Drawn(made[0], name, ends=(made[1], made[2]) if first.ends else None)]


def _no_odds(drawn: Sequence[Known]) -> bool:
    return not any(isinstance(v, Odds) for v in drawn)


def _odds(
    node: OnnxNode, values: Sequence[Value | None], ends: tuple[np.ndarray, np.ndarray]
) -> Odds:
    low, high = np.minimum(*ends), np.maximum(*ends)
    other = next(v for v in values if isinstance(v, Known) and not isinstance(v, Drawn))
    shape = check_size(np.broadcast_shapes(low.shape, other.array.shape))
    below = np.clip((other.array - low) / np.maximum(high - low, 1e-30), 0.0, 1.0)
    holds_above = _COMPARED[node.op] == isinstance(values[0], Drawn)
    odds = np.broadcast_to(1.0 - below if holds_above else below, shape)
    return Odds(odds > 0, node.output(0), probability=odds)


def _mean_floor(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The mean of floor(u), u uniform between two ends: over any unit, it is the lower end."""
    if not np.allclose(high - low, 1.0, atol=1e-6):
        raise Refusal("the mean of Floor of these random numbers is not known", _FIX)
    return low


def _shape(c: Context) -> tuple[int, ...]:
    shape = c.shape(0) if c.node.op.endswith("Like") else c.node.ints("shape")
    if c.old_batch is not None and shape[:1] == (c.old_batch,):
        return check_size((c.batch, *shape[1:]))
    return check_size(shape)


def _uniform(c: Context) -> Known | Live:
    low, high = c.node.float("low", 0.0), c.node.float("high", 1.0)
    shape = _shape(c)
    if c.options.dropout:
        return c.final("map", _draw(c, shape), exprs=(f"a * {high - low!r} + {low!r}",),
                       dtypes=("float",))  # fmt: skip
    _left_out(c)
    ends = [np.broadcast_to(np.float32(v), shape) for v in (low, high)]
    mean = np.broadcast_to(np.float32((low + high) / 2), shape)
    return Drawn(mean, c.node.output(0), ends=(ends[0], ends[1]))


def _normal(c: Context) -> Known | Live:
    """Drawn from two uniform numbers u and v as sqrt(-2 log(1 - u)) cos(2 pi v) (Box, Muller)."""
    mean, scale, shape = c.node.float("mean", 0.0), c.node.float("scale", 1.0), _shape(c)
    if c.options.dropout:
        drawn = f"sqrt(-2 * log(1 - a)) * cos({2 * math.pi!r} * b) * {scale!r} + {mean!r}"
        uniform = _draw(c, shape), _draw(c, shape)
        return c.final("map", *uniform, exprs=(drawn,), dtypes=("float",))
    _left_out(c)
    return Drawn(np.broadcast_to(np.float32(mean), shape), c.node.output(0))


def _bernoulli(c: Context) -> Known | Live:
    if not c.options.dropout:
        probability = c.known(0)
        _left_out(c)
        return Drawn(probability.astype(np.float32), c.node.output(0))
    shape = c.shape(0)
    return c.final("map", _draw(c, shape), c.tensor(0), exprs=("a < b",), dtypes=("float",))


def _draw(c: Context, shape: tuple[int, ...]) -> str:
    seed = c.options.dropout_seed + c.counts.get("active_dropout", 0)
    c.counts["active_dropout"] = c.counts.get("active_dropout", 0) + 1
    return c.emit("random", shape=shape, seed=seed)


def _left_out(c: Context) -> None:
    c.counts["random"] = c.counts.get("random", 0) + 1


CHANCE: dict[str, Translate] = {
    "RandomUniform": _uniform,
    "RandomUniformLike": _uniform,
    "RandomNormal": _normal,
    "RandomNormalLike": _normal,
    "Bernoulli": _bernoulli,
}
