"""Optimizer steps, as PyTorch defines them.

SGD:  d = g + weight_decay w;  v' = momentum v + d;  w' = w - lr v'   (nesterov: d + momentum v')
Adam: (Kingma and Ba 2015, algorithm 1) m' = beta1 m + (1 - beta1) g, v' = beta2 v + (1 - beta2) g²,
      w' = w - lr m'/(1 - beta1^t) / (sqrt(v'/(1 - beta2^t)) + epsilon); weight decay joins the
      gradient, or shrinks w by itself when `decoupled` (AdamW).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ccnn.passes.graph import Builder, Node, Tensor
from ccnn.passes.ops.base import Op, Result
from ccnn.passes.ops.common import emit_map, fail, given, take


def _number(node: Node, name: str, default: float) -> float:
    value = node.attr(name, default)
    if not isinstance(value, int | float):
        fail(node, f"attribute '{name}' must be a number, it is {value!r}")
    return float(value)


class Sgd(Op):
    """w, g and (with momentum) v to w' and v'."""

    name = "sgd"

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Result]:
        tensors = given(take(node, inputs, 2, 3))
        if len({t.shape for t in tensors}) != 1:
            fail(node, f"w, g and v differ in shape: {[t.shape for t in tensors]}")
        return [(t.shape, t.dtype) for t in (tensors[0], *tensors[2:])]

    def _rates(self, node: Node) -> tuple[float, float, float]:
        return (
            _number(node, "lr", 0.01),
            _number(node, "momentum", 0.0),
            _number(node, "weight_decay", 0.0),
        )

    def reference(self, node: Node, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        lr, momentum, decay = self._rates(node)
        w, d = np.asarray(inputs[0]), np.asarray(inputs[1])
        d = d + decay * w
        if len(inputs) < 3 or inputs[2] is None:
            return [w - lr * d]
        v = momentum * inputs[2] + d
        return [w - lr * (d + momentum * v if node.attr("nesterov", False) else v), v]

    def expand(self, b: Builder, node: Node) -> Sequence[str]:
        lr, momentum, decay = self._rates(node)
        names = [n for n in node.inputs if n]
        dtypes = [b.tensors[o].dtype for o in node.outputs]
        d = f"(b + {decay!r} * a)" if decay else "b"
        if len(names) == 2:
            return emit_map(b, names, [f"a - {lr!r} * {d}"], dtypes)
        v = f"({momentum!r} * c + {d})"
        step = f"({d} + {momentum!r} * {v})" if node.attr("nesterov", False) else v
        return emit_map(b, names, [f"a - {lr!r} * {step}", v], dtypes)


class Adam(Op):
    """w, g, m, v and the number t of this step (from 1) to w', m' and v'."""

    name = "adam"

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Result]:
        w, g, m, v, t = given(take(node, inputs, 5))
        if not w.shape == g.shape == m.shape == v.shape or t.size != 1:
            fail(node, f"w, g, m, v differ in shape: {w.shape}, {g.shape}, {m.shape}, {v.shape}")
        return [(x.shape, x.dtype) for x in (w, m, v)]

    def reference(self, node: Node, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        w, g, m, v, t = (np.asarray(a) for a in inputs)
        lr, decay = _number(node, "lr", 1e-3), _number(node, "weight_decay", 0.0)
        beta1, beta2 = _number(node, "beta1", 0.9), _number(node, "beta2", 0.999)
        if node.attr("decoupled", False):
            w = w - lr * decay * w
        else:
            g = g + decay * w
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        root = np.sqrt(v / (1 - beta2**t)) + _number(node, "epsilon", 1e-8)
        return [w - lr * (m / (1 - beta1**t)) / root, m, v]

    def expand(self, b: Builder, node: Node) -> Sequence[str]:
        w, g, m, v, t = node.inputs
        lr, decay = _number(node, "lr", 1e-3), _number(node, "weight_decay", 0.0)
        beta1, beta2 = _number(node, "beta1", 0.9), _number(node, "beta2", 0.999)
        epsilon = _number(node, "epsilon", 1e-8)
        rate, root = emit_map(  # the corrections depend on t alone: once, not per element
            b,
            [t],
            [f"{lr!r} / (1 - pow({beta1!r}, a))", f"1 / sqrt(1 - pow({beta2!r}, a))"],
            ["accum", "accum"],
        )
        decoupled = node.attr("decoupled", False)
        grad = f"(b + {decay!r} * a)" if decay and not decoupled else "b"
        kept = f"a * {1 - lr * decay!r}" if decay and decoupled else "a"
        new_m = f"({beta1!r} * c + {1 - beta1!r} * {grad})"
        new_v = f"({beta2!r} * d + {1 - beta2!r} * {grad} * {grad})"
        new_w = f"{kept} - e * {new_m} / (sqrt({new_v}) * f + {epsilon!r})"
        dtypes = [b.tensors[o].dtype for o in node.outputs]
        return emit_map(b, [w, g, m, v, rate, root], [new_w, new_m, new_v], dtypes)


OPTIMIZER: tuple[Op, ...] = (Sgd(), Adam())
